"""Clients with work on the way while nodes are killed, drained and replaced.

A `Crowd` is a program that publishes with confirmation from many tasks, consumes, follows, serves
and asks, all the time. Whatever becomes of the nodes: no call ends in anything but success or a
documented error, what was confirmed is there exactly once, and everything goes on afterwards.
"""

import itertools
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import anyio
import anyio.to_thread
import pytest

from ganglion.clients.channels import Channel
from ganglion.clients.errors import (
    ConnectionLost,
    NoResponders,
    NotAuthorised,
    ResponderGone,
    RespondersBusy,
    TimedOut,
)
from ganglion.clients.mesh import Mesh
from ganglion.clients.session import StateChange
from tests.clients.backends import BACKENDS, eventually
from tests.clients.cutting import check_empty, patient
from tests.support import Daemon, free_port, start_daemon

pytestmark = [pytest.mark.slow, pytest.mark.faults]
each_backend = pytest.mark.parametrize("backend", BACKENDS)

DEADLINE_S: Final = 60.0
PUBLISHERS: Final = 8

DEFINITIONS: Final = """
[[queues]]
name = "work"
bindings = ["load/#"]

[[streams]]
name = "kept"
bindings = ["load/#"]
"""


@contextmanager
def node(directory: Path, port: int, config: str = "") -> Iterator[Daemon]:
    """A node on this port, with its data in this directory, over as many lives as it takes."""
    with start_daemon(
        *("--native", f"127.0.0.1:{port}", "--data", str(directory)), config=config + DEFINITIONS
    ) as daemon:
        yield daemon


class Crowd:
    """A program that does everything at once, for as long as it lives."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.confirmed: list[bytes] = []
        self.consumed: set[bytes] = set()
        self.followed: list[int] = []
        self.heard = 0
        self.answered = 0
        self._numbers = itertools.count()
        self._is_publishing = True
        self._publishing = 0

    @asynccontextmanager
    async def working(self) -> AsyncIterator["Crowd"]:
        """It works for the time of the context, and has nothing on the way when that is left."""
        mesh = self.mesh
        async with (
            mesh.queue("work").consume(prefetch=16) as jobs,
            mesh.stream("kept").follow(after=0) as records,
            mesh.subscribe("load/#", overflow="drop_oldest") as messages,
            mesh.serve("ask/me") as service,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(PUBLISHERS):
                tasks.start_soon(self._publish)
            tasks.start_soon(self._work, jobs)
            tasks.start_soon(self._follow, records)
            tasks.start_soon(self._hear, messages)
            tasks.start_soon(self._answer, service)
            tasks.start_soon(self._ask)
            yield self
            self._is_publishing = False
            await eventually(lambda: not self._publishing)
            await eventually(lambda: self.consumed >= set(self.confirmed))
            tasks.cancel_scope.cancel()

    async def goes_on(self) -> None:
        """Wait until everything that it does has been done once more."""
        for count in (
            lambda: len(self.confirmed),
            lambda: len(self.consumed),
            lambda: len(self.followed),
            lambda: self.heard,
            lambda: self.answered,
        ):
            await self._grows(count)

    async def _grows(self, count: Callable[[], int]) -> None:
        before = count()
        await eventually(lambda: count() > before + 3)

    async def _publish(self) -> None:
        self._publishing += 1
        while self._is_publishing:
            payload = b"%d" % next(self._numbers)
            await self.mesh.publish("load/x", payload)
            self.confirmed.append(payload)
        self._publishing -= 1

    async def _work(self, jobs: Channel[Any]) -> None:
        async for job in jobs:
            async with job:
                self.consumed.add(job.payload)

    async def _follow(self, records: Any) -> None:
        async for record in records:
            self.followed.append(record.sequence)

    async def _hear(self, messages: Channel[Any]) -> None:
        async for _ in messages:
            self.heard += 1

    async def _answer(self, service: Channel[Any]) -> None:
        async for request in service:
            async with request:
                await request.reply(request.payload)

    async def _ask(self) -> None:
        while True:
            try:
                reply = await self.mesh.request("ask/me", b"?", timeout_s=2)
            except (ConnectionLost, NoResponders, ResponderGone, RespondersBusy, TimedOut):
                await anyio.sleep(0.001)
            else:
                assert reply.payload == b"?"
                self.answered += 1


async def kept(port: int) -> list[bytes]:
    """What the stream of this node has."""
    found: list[bytes] = []
    async with patient(f"ganglion://127.0.0.1:{port}") as mesh:
        after = 0
        while records := await mesh.stream("kept").read(after=after):
            found += [each.payload for each in records]
            after = records[-1].sequence
    return found


def check_once(confirmed: list[bytes], found: list[bytes]) -> None:
    """Everything that was confirmed is there, and nothing is there twice."""
    doubles = [each for each, count in Counter(found).items() if count > 1]
    assert not doubles, f"there twice: {doubles[:10]}"
    missing = set(confirmed) - set(found)
    assert not missing, f"confirmed and not there: {sorted(missing)[:10]}"


@each_backend
def test_a_node_that_is_killed_loses_and_doubles_nothing(backend: str, tmp_path: Path) -> None:
    """SIGKILL three times under load, and the same node again on its port."""
    port = free_port()

    async def main() -> None:
        with anyio.fail_after(DEADLINE_S):
            async with AsyncNodes() as nodes:
                daemon = await nodes.start(node(tmp_path, port))
                async with patient(f"ganglion://127.0.0.1:{port}", client="crowd") as mesh:
                    async with Crowd(mesh).working() as crowd:
                        for _ in range(3):
                            await crowd.goes_on()
                            await anyio.to_thread.run_sync(daemon.kill)
                            daemon = await nodes.start(node(tmp_path, port))
                        await crowd.goes_on()
                    await check_empty(mesh)
                check_once(crowd.confirmed, await kept(port))
                assert crowd.followed == list(range(1, len(crowd.followed) + 1))

    anyio.run(main, backend=backend)


@each_backend
def test_a_node_that_drains_is_left_for_another_one(backend: str, tmp_path: Path) -> None:
    """SIGTERM with another node to go to: publishes are at one of both, and the old one ends soon.

    The client is told of the other node by the first one, and by its own list of addresses.
    """
    first_port, second_port = free_port(), free_port()
    told = f'[native]\naddresses = ["ganglion://127.0.0.1:{second_port}"]\n'
    urls = [f"ganglion://127.0.0.1:{first_port}", f"ganglion://127.0.0.1:{second_port}"]

    async def main(given: list[str], directory: Path) -> None:
        states: list[StateChange] = []
        with anyio.fail_after(DEADLINE_S):
            async with AsyncNodes() as nodes:
                first = await nodes.start(node(directory / "1", first_port, told))
                await nodes.start(node(directory / "2", second_port))
                async with patient(*given, on_state=states.append) as mesh:
                    crowd = Crowd(mesh)
                    crowd_followed: list[int] = []
                    async with crowd.working():
                        await crowd.goes_on()
                        crowd_followed = crowd.followed
                        crowd.followed = []
                        first.signal(signal.SIGTERM)
                        assert await anyio.to_thread.run_sync(first.wait) == 0
                        await crowd.goes_on()
                    await check_empty(mesh)
                assert crowd_followed == list(range(1, len(crowd_followed) + 1))
                assert [each.address for each in states if each.state == "open"] == urls
                assert "connecting" not in [each.state for each in states]
                await nodes.start(node(directory / "1", first_port))
                found = [*await kept(first_port), *await kept(second_port)]
                check_once(crowd.confirmed, found)

    anyio.run(main, urls[:1], tmp_path / "told", backend=backend)
    anyio.run(main, urls, tmp_path / "listed", backend=backend)


@each_backend
def test_a_node_that_drains_alone_is_waited_for(backend: str, tmp_path: Path) -> None:
    """SIGTERM without another node: what comes after it on its port goes on where it was."""
    port = free_port()

    async def main() -> None:
        with anyio.fail_after(DEADLINE_S):
            async with AsyncNodes() as nodes:
                config = "[limits]\ndrain_timeout_s = 0.5\n"
                daemon = await nodes.start(node(tmp_path, port, config))
                async with patient(f"ganglion://127.0.0.1:{port}") as mesh:
                    async with Crowd(mesh).working() as crowd:
                        await crowd.goes_on()
                        daemon.signal(signal.SIGTERM)
                        await anyio.to_thread.run_sync(daemon.wait)
                        await nodes.start(node(tmp_path, port))
                        await crowd.goes_on()
                    await check_empty(mesh)
                check_once(crowd.confirmed, await kept(port))
                assert crowd.followed == list(range(1, len(crowd.followed) + 1))

    anyio.run(main, backend=backend)


class AsyncNodes:
    """Nodes that are started one after the other, and all stopped at the end."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def start(self, context: AbstractContextManager[Daemon]) -> Daemon:
        """Start one, without blocking the loop."""
        return await anyio.to_thread.run_sync(self._stack.enter_context, context)

    async def __aexit__(self, *_error: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stack.close)


RULES: Final = '[[rules]]\neffect = "allow"\ntopics = ["#", "$queue/#"]\n'
DENIED: Final = '[[rules]]\neffect = "deny"\ntopics = "$queue/secret"\n'


@each_backend
def test_rules_that_change_end_what_they_forbid(backend: str, tmp_path: Path) -> None:
    """A denied channel ends, a denied call is refused, the rest goes on; without the user all ends.

    Nobody connects again as somebody who does not exist any more.
    """
    data = str(tmp_path)
    passwd = [sys.executable, "-m", "ganglion", "passwd"]
    subprocess.run([*passwd, "add", "ada", "--data", data], input=b"secret\n", check=True)

    async def main() -> None:
        url = f"ganglion://127.0.0.1:{daemon.ports['native']}"
        states: list[str] = []
        with anyio.fail_after(DEADLINE_S):
            async with patient(
                url, user="ada", password="secret", on_state=lambda each: states.append(each.state)
            ) as mesh:
                async with (
                    mesh.queue("secret").consume(declare=True) as secrets,
                    mesh.subscribe("open/#") as rest,
                ):
                    daemon.config_path.write_text(DENIED + RULES)
                    daemon.reload()
                    with pytest.raises(NotAuthorised):
                        await anext(secrets)
                    with pytest.raises(NotAuthorised):
                        await mesh.queue("secret").send(b"")
                    await mesh.publish("open/x", b"still")
                    assert (await anext(rest)).payload == b"still"
                    await anyio.run_process([*passwd, "delete", "ada", "--data", data])
                    daemon.reload()
                    with pytest.raises(NotAuthorised):
                        await anext(rest)
                with pytest.raises(NotAuthorised):
                    await mesh.publish("open/x", b"")
        assert states == ["open", "connecting", "closed"]

    with start_daemon("--native", "127.0.0.1:0", "--data", data, config=RULES) as daemon:
        anyio.run(main, backend=backend)
