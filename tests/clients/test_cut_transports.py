"""TLS and WebSocket connections that are cut: in handshakes, between records, and within frames.

The parts of a program and what they promise are those of `tests.clients.parts`; the places are a
sample, drawn by a seed that the test names.
"""

import random
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import pytest
import trustme

from ganglion.clients.mesh import Mesh
from tests.clients.backends import BACKENDS, eventually
from tests.clients.cutting import Cut, CuttingProxy, Direction, How, check_empty, patient
from tests.clients.parts import every_call
from tests.support import Daemon, start_daemon

pytestmark = [pytest.mark.slow, pytest.mark.faults]

LISTENERS: Final = {"ganglions": "natives", "ws": "web", "wss": "webs"}
"""Schemes, and the listeners that they are for."""
CUTS: Final = 60
"""Connections that are cut under each scheme and backend."""
HELLO_BYTES: Final = 4_000
"""About what a TLS handshake and a greeting have; half of the cuts fall into it."""
SESSION_BYTES: Final = 9_000
DIRECTIONS: Final[tuple[Direction, ...]] = ("up", "down")
ABRUPT: Final[tuple[How, ...]] = ("close", "reset", "half")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who vouches for the node."""
    return trustme.CA()


@pytest.fixture(scope="module")
def node(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node with all listeners."""
    directory: Path = tmp_path_factory.mktemp("tls")
    server = authority.issue_cert("127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    flags = [flag for each in LISTENERS.values() for flag in (f"--{each}", "127.0.0.1:0")]
    certificate = ["--tls-cert", str(directory / "server.pem")]
    with start_daemon("--native", "127.0.0.1:0", *flags, *certificate) as daemon:
        yield daemon


@pytest.mark.parametrize("scheme", LISTENERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_cuts_of_other_transports(
    backend: str, scheme: str, node: Daemon, authority: trustme.CA
) -> None:
    """Wherever they fall, every call ends as it may, and nothing is lost, doubled or left over."""
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def play(other: Mesh, name: str, cut: Cut) -> None:
        proxy = CuttingProxy(node.ports[LISTENERS[scheme]], cut, scheme=scheme)
        try:
            with anyio.fail_after(30):
                async with proxy.running():
                    async with patient(proxy.url, tls=context) as mesh:
                        await every_call(mesh, other, name)
                        await check_empty(mesh)
                    await eventually(lambda: proxy.open == 0)
        except BaseException as error:
            error.add_note(f"{scheme} with {cut}")
            raise

    async def play_some(other: Mesh) -> None:
        for number, cut in cuts:
            await play(other, f"{scheme}-{backend}-{number}", cut)

    async def main() -> None:
        async with (
            patient(f"ganglion://127.0.0.1:{node.ports['native']}") as other,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(4):
                tasks.start_soon(play_some, other)

    chance = random.Random(f"{scheme} {backend}")
    cuts = iter(
        [
            (
                number,
                Cut(
                    chance.choice(DIRECTIONS),
                    chance.randrange(HELLO_BYTES if number % 2 else SESSION_BYTES),
                    chance.choice(ABRUPT),
                ),
            )
            for number in range(CUTS)
        ]
    )
    anyio.run(main, backend=backend)
