"""A connection that is cut after N bytes, for every N in a session that uses every call.

In either direction and in every way in which connections end. Each part of `tests.clients.parts`
says what has to hold. Here it is also held against leaks: no task, socket or entry in a table is
left, and nothing waits for ever.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import anyio
import pytest

from ganglion.clients.mesh import Mesh
from ganglion.testing import RunningBroker
from tests.clients.backends import BACKENDS, eventually, run
from tests.clients.cutting import Cut, CuttingProxy, Direction, How, check_empty, patient
from tests.clients.parts import PARTS, Part, every_call
from tests.support import start_daemon

ABRUPT: Final[tuple[How, ...]] = ("close", "reset", "half")
"""Ways in which both sides soon know that a connection has ended."""
DIRECTIONS: Final[tuple[Direction, ...]] = ("up", "down")
ATTEMPT_S: Final = 20.0
GOODBYE_BYTES: Final = 8
"""Of a greeting that is not followed by anything: they are no part of it."""
AT_ONCE: Final = 8
"""Programs that run beside each other: each waits for the network most of the time."""

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_part = pytest.mark.parametrize("part", PARTS)


async def play(port: int, part: Part, other: Mesh, name: str, *cuts: Cut) -> CuttingProxy:
    """Play a part over connections with these cuts; the proxy that cut them."""
    proxy = CuttingProxy(port, *cuts)
    try:
        with anyio.fail_after(ATTEMPT_S):
            async with proxy.running():
                async with patient(proxy.url) as mesh:
                    await part(mesh, other, name)
                    await check_empty(mesh)
                await eventually(lambda: proxy.open == 0)
    except BaseException as error:
        error.add_note(f"{part.__name__} with the cuts {cuts}")
        raise
    return proxy


async def sweep(port: int, part: Part, cuts: Iterable[tuple[Cut, ...]]) -> int:
    """Play a part once for each of these, several at a time; how often it was played."""
    left = iter(cuts)
    played = 0

    async def play_some() -> None:
        nonlocal played
        for each in left:
            played += 1
            await play(port, part, other, f"{part.__name__}-{played}", *each)

    async with patient(f"ganglion://127.0.0.1:{port}") as other:
        await other.flush()  # its tasks run
        open_before, tasks_before = sockets(), len(anyio.get_running_tasks())
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(play_some)
        with anyio.fail_after(ATTEMPT_S):
            await eventually(lambda: sockets() <= open_before)
            await eventually(lambda: len(anyio.get_running_tasks()) <= tasks_before)
    return played


def sockets() -> int:
    """How many sockets this process has open."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += str(each.readlink()).startswith("socket:")
        except OSError:
            continue  # it was that of the listing itself
    return found


async def greet(_mesh: Mesh, _other: Mesh, _name: str) -> None:
    """The beginning that all parts share."""


async def every_place(
    port: int, part: Part, backend: str, chance: random.Random
) -> list[tuple[Cut, ...]]:
    """A cut at each byte: of every second one under this backend, of the others under the other.

    The bytes of the greeting are left to the part that is nothing else.
    """
    async with patient(f"ganglion://127.0.0.1:{port}") as other:
        greeting = (await play(port, greet, other, "greeting")).passed
        whole = (await play(port, part, other, f"{part.__name__}-whole")).passed
    cuts: list[tuple[Cut, ...]] = []
    for direction in DIRECTIONS:
        begin = 1 if part is greet else greeting[direction] - GOODBYE_BYTES
        places = range(begin + BACKENDS.index(backend), whole[direction] + 1, 2)
        cuts += [(Cut(direction, after, chance.choice(ABRUPT)),) for after in places]
    return cuts


@each_backend
@each_part
def test_a_part_survives_cuts_in_some_places(
    backend: str, part: str, broker: RunningBroker
) -> None:
    """Three connections in a row that are cut, at places drawn by chance."""

    async def main() -> None:
        chance = random.Random(f"{part} {backend}")
        ends: dict[Direction, int] = {"up": 200, "down": 330}
        cuts = [
            Cut(each, chance.randrange(1, ends[each]), chance.choice(ABRUPT))
            for each in chance.choices(DIRECTIONS, k=3)
        ]
        async with patient(broker.native_url) as other:
            proxy = await play(broker.native_port, PARTS[part], other, part, *cuts)
        assert proxy.accepted >= 2

    run(backend, main)


@pytest.mark.slow
@pytest.mark.faults
@each_backend
@pytest.mark.parametrize("part", [greet, *PARTS.values()], ids=lambda part: part.__name__)
def test_a_part_survives_a_cut_at_each_byte(backend: str, part: Part) -> None:
    """Whichever byte is the last one of a connection: every promise holds."""

    async def main() -> None:
        cuts = await every_place(port, part, backend, random.Random(part.__name__))
        assert await sweep(port, part, cuts) == len(cuts) > 10

    with start_daemon("--native", "127.0.0.1:0") as daemon:
        port = daemon.ports["native"]
        anyio.run(main, backend=backend)


@pytest.mark.slow
@pytest.mark.faults
@each_backend
def test_all_parts_at_once_survive_cut_after_cut(backend: str) -> None:
    """All calls on the way at once, and several connections that are cut, one after the other."""

    async def main() -> None:
        chance = random.Random(5)
        cuts = [
            tuple(
                Cut(each, chance.randrange(200, 2000), chance.choice(ABRUPT))
                for each in chance.choices(DIRECTIONS, k=4)
            )
            for _ in range(100)
        ]
        assert await sweep(port, every_call, cuts) == len(cuts)

    with start_daemon("--native", "127.0.0.1:0") as daemon:
        port = daemon.ports["native"]
        anyio.run(main, backend=backend)


@pytest.mark.slow
@pytest.mark.faults
@each_backend
@pytest.mark.parametrize("how", ["stall", "hole"])
def test_a_connection_that_falls_silent_is_noticed(backend: str, how: How) -> None:
    """Where nothing comes any more, and nobody says so, the keep-alive finds out."""

    async def main() -> None:
        chance = random.Random(how)
        cuts = [
            (Cut(each, chance.randrange(400, 1500), how),)
            for each in chance.choices(DIRECTIONS, k=24)
        ]
        assert await sweep(port, every_call, cuts) == len(cuts)

    with start_daemon("--native", "127.0.0.1:0") as daemon:
        port = daemon.ports["native"]
        anyio.run(main, backend=backend)


@each_backend
@pytest.mark.parametrize("direction", ["up", "down"])
def test_bytes_that_come_one_by_one_change_nothing(
    backend: str, direction: Direction, broker: RunningBroker
) -> None:
    """A connection that trickles is slow, and that is all: it is never made anew."""

    async def main() -> None:
        async with patient(broker.native_url) as other:
            cut = Cut(direction, 0, "trickle")
            proxy = await play(broker.native_port, PARTS["ask"], other, "trickle", cut)
        assert proxy.accepted == 1

    run(backend, main)
