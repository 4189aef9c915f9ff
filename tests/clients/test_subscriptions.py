"""Subscriptions: each way to overflow, groups, one's own messages, last values, several takers."""

from typing import Any

import anyio
import pytest

from ganglion.clients.errors import BadOption, Refused
from ganglion.clients.mesh import Mesh
from tests.clients.backends import eventually, under_each


@under_each
async def test_the_newest_or_the_oldest_is_dropped_here(mesh: Mesh, other: Mesh) -> None:
    """What there is no room for is counted; the buffer keeps the last ones, or the first."""
    async with (
        mesh.subscribe("t", buffer=3, overflow="drop_oldest") as last,
        mesh.subscribe("t", buffer=3, overflow="drop_newest") as first,
    ):
        for number in range(10):
            await other.publish("t", str(number))
        await eventually(lambda: (last.dropped, first.dropped) == (7, 7))
        assert [(await anext(last)).text for _ in range(3)] == ["7", "8", "9"]
        assert [(await anext(first)).text for _ in range(3)] == ["0", "1", "2"]


@under_each
async def test_a_slow_program_blocks_the_node(mesh: Mesh, other: Mesh) -> None:
    """With `block` no more comes than there is room for; the node keeps as many, and counts."""
    async with mesh.subscribe("t", buffer=4) as messages:
        for number in range(20):
            await other.publish("t", str(number))
        await mesh.flush()
        assert len(messages) == 4
        got = [(await anext(messages)).text for _ in range(8)]
        assert got == [str(number) for number in range(8)]
        await other.publish("t", "next")
        assert (await anext(messages)).text == "next"
        assert messages.dropped == 12


@under_each
async def test_members_of_a_group_share(mesh: Mesh, other: Mesh) -> None:
    """Each message goes to one of them."""
    async with (
        mesh.subscribe("t", group="g") as one,
        other.subscribe("t", group="g") as two,
    ):
        for _ in range(10):
            await mesh.publish("t", b"x")
        await eventually(lambda: len(one) + len(two) == 10)
        assert 0 < len(one) < 10


@under_each
async def test_ones_own_may_stay_away(mesh: Mesh, other: Mesh) -> None:
    """With own=False what this client publishes does not come."""
    async with mesh.subscribe("t", own=False) as messages:
        await mesh.publish("t", b"own")
        await other.publish("t", b"other")
        assert (await anext(messages)).payload == b"other"


@under_each
async def test_last_values_come_first_unless_they_are_not_wanted(mesh: Mesh) -> None:
    """They are marked as such, also where messages may be dropped."""
    await mesh.publish("t/1", b"last", retain=True)
    ways: list[dict[str, Any]] = [{}, {"overflow": "drop_newest"}]
    for way in ways:
        async with mesh.subscribe("t/+", **way) as messages:
            message = await anext(messages)
            assert (message.payload, message.retained) == (b"last", True)
        async with mesh.subscribe("t/+", retained=False, **way) as messages:
            await mesh.publish("t/2", b"new")
            message = await anext(messages)
            assert (message.payload, message.retained) == (b"new", False)


@under_each
async def test_several_tasks_take_from_one(mesh: Mesh) -> None:
    """Each message goes to one of them; closing lets all of them go on."""
    got: list[str] = []

    async def take(messages: Any) -> None:
        async for message in messages:
            got.append(message.text)  # noqa: PERF401 - they come one by one

    async with anyio.create_task_group() as tasks, mesh.subscribe("t") as messages:
        for _ in range(3):
            tasks.start_soon(take, messages)
        for number in range(30):
            await mesh.publish("t", str(number))
        await eventually(lambda: len(got) == 30)
    assert sorted(map(int, got)) == list(range(30))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buffer": 0}, "buffer must be from 1 to 1,000,000, not 0"),
        ({"overflow": "spill"}, "overflow must be block, drop_oldest or drop_newest, not 'spill'"),
        ({"group": "g", "own": False}, "own=False is not for a group"),
    ],
)
@under_each
async def test_options_that_cannot_be_are_told(
    mesh: Mesh, options: dict[str, Any], words: str
) -> None:
    """By name, on entering."""
    with pytest.raises(BadOption, match=words):
        await mesh.subscribe("t", **options).__aenter__()


@under_each
async def test_it_is_entered_once_and_before_it_is_iterated(mesh: Mesh) -> None:
    """Mistakes of order are told as such; after its end it just stops."""
    messages = mesh.subscribe("t")
    with pytest.raises(BadOption, match="enter it first"):
        await anext(messages)
    async with messages:
        with pytest.raises(BadOption, match="make another one"):
            await messages.__aenter__()
    assert [each async for each in messages] == []
    await messages.aclose()
    with pytest.raises(Refused, match="queue"):
        await mesh.subscribe("$queue/q").__aenter__()
    assert mesh._session.link is not None
    assert mesh._session.link.channels == {}
