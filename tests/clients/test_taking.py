"""Taking items with a deadline, one or those that are here, from every kind of channel."""

import anyio
import pytest

from ganglion.clients.errors import BadOption, Closed, TimedOut
from ganglion.clients.mesh import Mesh
from tests.clients.backends import under_each


@under_each
async def test_get_waits_for_one(mesh: Mesh) -> None:
    """It raises when none came in time, and takes nothing then."""
    async with mesh.subscribe("t") as messages:
        with pytest.raises(TimedOut, match=r"nothing came within 0\.01 s"):
            await messages.get(timeout_s=0.01)
        await mesh.publish("t", b"x")
        assert (await messages.get()).payload == b"x"


@under_each
async def test_take_gives_what_is_here(mesh: Mesh) -> None:
    """At least one, no more than wanted, none after the deadline; and the node sends on."""
    async with mesh.subscribe("t", buffer=4) as messages:
        assert await messages.take(10, timeout_s=0) == []
        for first in range(0, 40, 4):  # ten buffers: what is taken is told to the node
            await mesh.publish_batch("t", [first, first + 1, first + 2, first + 3])
            found: list[int] = []
            while len(found) < 4:
                some = await messages.take(3)
                assert 1 <= len(some) <= 3
                found += [each.decode() for each in some]
            assert found == [first, first + 1, first + 2, first + 3]
        with pytest.raises(BadOption, match="count_max"):
            await messages.take(0)
    assert messages.dropped == 0
    with pytest.raises(Closed):
        await messages.take(1)


@under_each
async def test_a_cancelled_take_loses_nothing(mesh: Mesh) -> None:
    """What comes later is there for the next one."""
    async with mesh.subscribe("t") as messages:
        with anyio.move_on_after(0.01):
            await messages.take(1)
        await mesh.publish("t", b"x")
        assert (await messages.get()).payload == b"x"


@under_each
async def test_a_follower_knows_what_was_taken(mesh: Mesh) -> None:
    """Its position is that of the last record, whichever way it was taken."""
    stream = mesh.stream("s")
    await stream.declare()
    await stream.append_batch([b"1", b"2", b"3"])
    follower = stream.follow(after=0)
    assert (await follower.get()).sequence == 1
    assert follower.position == 1
    assert [each.sequence for each in await follower.take(10)] == [2, 3]
    assert follower.position == 3
    assert await follower.take(10, timeout_s=0) == []
    assert follower.position == 3
    await follower.aclose()
