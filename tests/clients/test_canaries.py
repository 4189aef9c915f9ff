"""Canaries as a program uses them: a part of the messages, by key, of a queue and of a group."""

import pytest

from ganglion.clients.errors import BadOption
from ganglion.clients.mesh import Mesh
from tests.clients.backends import under_each

_KEYS = [f"order-{number}" for number in range(40)]


@under_each
async def test_a_canary_of_a_queue_gets_its_part_and_always_the_same_keys(mesh: Mesh) -> None:
    """Each key is dealt with on one side, in every round, and both sides get some."""
    queue = mesh.queue("billing")
    await queue.declare(canary_share=0.3)
    sides: dict[str, set[str]] = {key: set() for key in _KEYS}
    async with (
        queue.consume(prefetch=1000, canary=True) as canary,
        queue.consume(prefetch=1000) as others,
    ):
        for _ in range(3):
            for key in _KEYS:
                await queue.send(b"", key=key)
        statistics = (await queue.describe()).statistics
        for consumer, side in ((canary, "canary"), (others, "others")):
            count = statistics["delivered_to_canaries"] if side == "canary" else 120
            while count and len(consumer):
                job = await anext(consumer)
                sides[job.key or ""].add(side)
                await job.ack()
                count -= 1
    assert all(len(side) == 1 for side in sides.values())
    assert (
        3 * sum(side == {"canary"} for side in sides.values())
        == (statistics["delivered_to_canaries"])
    )
    assert {"canary"} in sides.values()
    assert {"others"} in sides.values()


@under_each
async def test_a_canary_of_a_group_gets_its_part(mesh: Mesh, other: Mesh) -> None:
    """Of a group's messages, by key; all of them come, each to one member."""
    async with (
        mesh.subscribe("orders/#", group="g", canary_share=0.3) as canary,
        other.subscribe("orders/#", group="g") as others,
    ):
        for _ in range(3):
            for key in _KEYS:
                await mesh.publish("orders/created", b"", key=key)
        await mesh.flush()
        await other.flush()
        mine = [(await anext(canary)).key for _ in range(len(canary))]
        theirs = [(await anext(others)).key for _ in range(len(others))]
    assert len(mine) + len(theirs) == 120
    assert mine
    assert theirs
    assert not set(mine) & set(theirs)


@under_each
async def test_a_share_needs_a_group(mesh: Mesh) -> None:
    """Alone there is nobody to share with: the error says so before anything is sent."""
    with pytest.raises(BadOption, match="canary_share needs a group"):
        async with mesh.subscribe("orders/#", canary_share=0.3):
            pass
