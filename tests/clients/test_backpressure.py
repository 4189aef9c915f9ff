"""What happens when one side is slower than the other: who waits, what is dropped, what goes on."""

from collections.abc import Callable
from functools import partial

import anyio
import pytest

from ganglion.clients import publishing
from ganglion.clients.mesh import Mesh, connect
from ganglion.clients.subscriptions import Overflow
from ganglion.protocols.native.operations import Operation
from tests.clients.backends import eventually, under_each
from tests.clients.fake_node import FakeNode, Script, Talk

PAYLOAD = bytes(65_536)


@under_each
async def test_who_sends_more_than_the_network_takes_waits() -> None:
    """Above the high water nobody adds to what waits, and all of it arrives in order."""
    may_read = anyio.Event()
    arrived: list[str] = []
    sent = 0

    async def slow(talk: Talk) -> None:
        await talk.greeted()
        await may_read.wait()
        while arrived[-1:] != ["end"]:
            arrived.append((await talk.frame(Operation.MESSAGE))[1])
        await talk.until_gone()

    async def send(mesh: Mesh) -> None:
        nonlocal sent
        while not may_read.is_set():
            await mesh.send(f"{sent}", PAYLOAD)
            sent += 1
        await mesh.send("end")

    def has_sent_more_than(count: int) -> bool:
        return sent > count

    async with FakeNode(slow).running() as node, connect(node.url) as mesh:
        link = mesh._session.link
        assert link is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, mesh)
            waits = False
            while not (waits and link.is_full):  # until the buffers of the system are full, too
                before = sent
                with anyio.move_on_after(0.02) as waiting:
                    await eventually(partial(has_sent_more_than, before))
                waits = waiting.cancelled_caught
            assert link.is_full
            assert link._output_bytes < 1024 * 1024 + 2 * len(PAYLOAD)
            may_read.set()
        await eventually(lambda: arrived[-1:] == ["end"])
    assert arrived == [*(f"{number}" for number in range(sent)), "end"]


@under_each
async def test_so_many_publishes_may_be_without_confirmation() -> None:
    """``publishes_max`` of them, of tasks and publishers together; each answer makes room."""
    numbers: list[int] = []
    talks: list[Talk] = []
    async with (
        FakeNode(note(numbers, talks)).running() as node,
        connect(node.url, publishes_max=3) as mesh,
        anyio.create_task_group() as tasks,
    ):
        for number in range(4):
            tasks.start_soon(mesh.publish, f"{number}", b"")
        tasks.start_soon(publish_two, mesh)
        for confirmed in range(6):
            await eventually(partial(_are, numbers, min(confirmed + 3, 6)))
            await stays(partial(_are, numbers, min(confirmed + 3, 6)))
            number = numbers[confirmed]
            await talks[0].send((int(Operation.CONFIRMED), number, number, 0, 0, 0))


def _are(numbers: list[int], count: int) -> bool:
    return len(numbers) == count


async def publish_two(mesh: Mesh) -> None:
    """A publisher that has two on the way."""
    async with mesh.publisher() as publisher:
        await publisher.publish("p", b"")
        await publisher.publish("p", b"")


@under_each
async def test_so_many_bytes_may_be_without_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large has to wait for what is larger: memory is bounded, however few they are."""
    monkeypatch.setattr(publishing, "_BYTES_MAX", 2 * len(PAYLOAD))
    numbers: list[int] = []
    talks: list[Talk] = []
    async with (
        FakeNode(note(numbers, talks)).running() as node,
        connect(node.url) as mesh,
        anyio.create_task_group() as tasks,
    ):
        for number in range(3):
            tasks.start_soon(mesh.publish, f"{number}", PAYLOAD)
        await eventually(lambda: len(numbers) == 2)
        await stays(lambda: len(numbers) == 2)
        await talks[0].send((int(Operation.CONFIRMED), numbers[0], numbers[0], 0, 0, 0))
        await eventually(lambda: len(numbers) == 3)
        await talks[0].send((int(Operation.CONFIRMED), numbers[1], numbers[2], 0, 0, 0))


def note(numbers: list[int], talks: list[Talk]) -> Script:
    """A node that takes publishes and leaves it to the test to confirm them."""

    async def script(talk: Talk) -> None:
        talks.append(talk)
        await talk.greeted()
        while True:
            frame = await talk.frame()
            if frame[0] == Operation.PUBLISH:
                numbers.append(frame[1])
            elif frame[0] == Operation.GOODBYE:
                return

    return script


async def stays(condition: Callable[[], bool]) -> None:
    """Look for a while whether something that must not change does: enough turns for it to."""
    with anyio.move_on_after(0.01):
        await eventually(lambda: not condition())
    assert condition()


@pytest.mark.parametrize(
    ("overflow", "left"), [("drop_oldest", ["7", "8", "9"]), ("drop_newest", ["0", "1", "2"])]
)
@under_each
async def test_what_a_buffer_has_no_room_for_is_dropped_and_counted(
    mesh: Mesh, other: Mesh, overflow: Overflow, left: list[str]
) -> None:
    """The count is exact, for subscriptions that are plain and for those that are not."""
    async with (
        mesh.subscribe("t", buffer=3, overflow=overflow) as plain,
        mesh.subscribe("t", buffer=3, overflow=overflow, group="g") as shared,
    ):
        for number in range(10):
            await other.publish("t", b"%d" % number)
        await eventually(lambda: plain.dropped == shared.dropped == 7)
        for messages in (plain, shared):
            assert [(await anext(messages)).text for _ in range(3)] == left
            assert messages.dropped == 7


@under_each
async def test_a_buffer_that_blocks_is_filled_twice(mesh: Mesh, other: Mesh) -> None:
    """As many wait here as at the node; what is beyond is dropped there, and counted here."""
    async with mesh.subscribe("t", buffer=3) as messages:
        for number in range(10):
            await other.publish("t", b"%d" % number)
        taken = [(await anext(messages)).text for _ in range(6)]
        assert taken == ["0", "1", "2", "3", "4", "5"]
        await other.publish("t", b"last")
        assert (await anext(messages)).text == "last"
        assert messages.dropped == 4


@under_each
async def test_who_takes_nothing_holds_up_nobody_else(mesh: Mesh, other: Mesh) -> None:
    """Subscriptions, consumers, followers and services that are full leave the others alone."""
    await mesh.queue("q").declare(bindings=["t"])
    await mesh.stream("s").declare(bindings=["t"])
    async with (
        mesh.subscribe("t", buffer=1),
        mesh.subscribe("t", buffer=1, overflow="drop_newest"),
        mesh.queue("q").consume(prefetch=1),
        mesh.stream("s").follow(after=0, buffer=1),
        mesh.serve("ask/never", concurrency=1),
        mesh.subscribe("t") as messages,
        mesh.queue("q").consume(prefetch=5) as jobs,
        mesh.stream("s").follow(after=0) as records,
    ):
        for number in range(20):
            await other.publish("t", b"%d" % number)
        assert [(await anext(messages)).text for _ in range(20)] == [f"{n}" for n in range(20)]
        assert [(await anext(records)).sequence for _ in range(20)] == list(range(1, 21))
        for _ in range(19):  # the other consumer has one
            async with await anext(jobs):
                pass
        assert await mesh.publish("other", b"") is not None


@under_each
async def test_without_a_connection_what_is_sent_is_counted() -> None:
    """`send` waits for nobody: what could not go is in ``dropped``."""

    async def leave(talk: Talk) -> None:
        await talk.greeted()

    async def nobody(_talk: Talk) -> None:
        """A node that hangs up at once."""

    async with FakeNode(leave, nobody).running() as node, connect(node.url) as mesh:
        await eventually(lambda: mesh.state.state == "connecting")
        for _ in range(3):
            await mesh.send("t", b"x")
        assert mesh.dropped == 3
