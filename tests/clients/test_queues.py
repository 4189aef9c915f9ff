"""Queues: each way to settle, once; leases; contexts left by errors; looking after queues."""

import anyio
import pytest

from ganglion.clients.errors import BadOption, LeaseLost, NotFound, Refused
from ganglion.clients.mesh import Mesh
from tests.clients.backends import under_each


async def count(mesh: Mesh, name: str, what: str) -> int:
    """One of a queue's statistics."""
    return int((await mesh.queue(name).describe()).statistics[what])


@under_each
async def test_a_job_is_settled_once(mesh: Mesh) -> None:
    """A second time does nothing, or raises `LeaseLost` to who wants to know."""
    queue = mesh.queue("q")
    await queue.declare(dead_letter="d")
    await mesh.queue("d").declare()
    for _ in range(4):
        await queue.send(b"x", key="k", headers={"a": "1"})
    async with queue.consume() as jobs:
        acked, confirmed, rejected, returned = [await anext(jobs) for _ in range(4)]
        assert (acked.key, acked.headers, acked.attempts) == ("k", {"a": "1"}, 0)
        held = [acked.is_held]
        await acked.ack()
        assert [*held, acked.is_held] == [True, False]
        await acked.nack()
        with pytest.raises(LeaseLost, match="settled already"):
            await acked.ack(confirmed=True)
        with pytest.raises(LeaseLost, match="settled already"):
            await acked.extend(10)
        await confirmed.ack(confirmed=True)
        await rejected.reject("no good", confirmed=True)
        await returned.nack(0)
        again = await anext(jobs)
        assert again.attempts == 1
        await again.ack()
        assert await count(mesh, "q", "acknowledged") == 3
    (dead,) = await mesh.queue("d").browse()
    assert "no good" in dead.headers.values()
    assert await mesh.queue("d").redrive(5) == 1


@under_each
async def test_a_context_settles_by_how_it_is_left(mesh: Mesh) -> None:
    """Acknowledged; given back by an error, which goes on upwards; at once when cancelled."""
    queue = mesh.queue("q")
    await queue.declare(backoff_s=0.01)
    await queue.send(b"x")
    async with queue.consume() as jobs:
        with pytest.raises(ZeroDivisionError):
            async with await anext(jobs):
                raise ZeroDivisionError
        with anyio.CancelScope() as scope:
            async with await anext(jobs) as job:
                assert job.attempts == 1
                scope.cancel()
                await anyio.sleep_forever()
        async with await anext(jobs) as job:
            assert job.attempts == 2
            await job.extend(30)
        assert await count(mesh, "q", "acknowledged") == 1
        assert await count(mesh, "q", "messages") == 0


@pytest.mark.slow
@under_each
async def test_a_lease_that_ran_out_is_lost(mesh: Mesh) -> None:
    """Whoever asks learns it; the message goes to somebody else."""
    queue = mesh.queue("q")
    await queue.declare(lease_s=0.05)
    await queue.send(b"x")
    async with queue.consume() as jobs:
        first = await anext(jobs)
        second = await anext(jobs)
        with pytest.raises(LeaseLost, match="somebody else"):
            await first.extend(10)
        with pytest.raises(LeaseLost):
            await first.ack(confirmed=True)
        await second.extend(60)
        await second.ack(confirmed=True)


@under_each
async def test_a_consumer_that_is_closed_holds_nothing(mesh: Mesh) -> None:
    """Its jobs are somebody else's, and it says so."""
    queue = mesh.queue("q")
    await queue.declare()
    await queue.send(b"x")
    async with queue.consume() as jobs:
        job = await anext(jobs)
    assert not job.is_held
    with pytest.raises(LeaseLost):
        await job.ack(confirmed=True)
    await job.ack()
    assert await count(mesh, "q", "leased") == 0
    assert await count(mesh, "q", "messages") == 1


@under_each
async def test_prefetch_bounds_what_is_here(mesh: Mesh) -> None:
    """It can be changed, down to nothing."""
    queue = mesh.queue("q")
    await queue.declare(bindings=["t"])
    await mesh.publish_batch("t", [b"x"] * 10)
    async with queue.consume(prefetch=3) as jobs:
        await mesh.flush()
        assert await count(mesh, "q", "leased") == 3
        jobs.set_prefetch(5)
        assert jobs.prefetch == 5
        await mesh.flush()
        assert await count(mesh, "q", "leased") == 5
        jobs.set_prefetch(0)
        await (await anext(jobs)).ack(confirmed=True)
        assert await count(mesh, "q", "leased") == 4
        with pytest.raises(BadOption, match="prefetch must be from 0 to 1,000,000, not -1"):
            jobs.set_prefetch(-1)
    with pytest.raises(BadOption, match="prefetch must be from 1"):
        await queue.consume(prefetch=0).__aenter__()


@under_each
async def test_a_queue_is_looked_after(mesh: Mesh) -> None:
    """Declared, described, listed, browsed, paused, purged, deleted; who consumes is told."""
    queue = mesh.queue("q")
    with pytest.raises(NotFound):
        await queue.consume().__aenter__()
    with pytest.raises(Refused, match="colour"):
        await queue.declare(colour="red")  # type: ignore[call-arg]  # the node knows its options
    await queue.declare(bindings=["t"], lease_s=5)
    assert (await queue.describe()).definition["lease_s"] == 5
    await queue.declare(lease_s=6)
    await mesh.publish_batch("t", [b"1", b"2", b"3"])
    found = await queue.browse(count=2)
    assert [each.payload for each in found] == [b"1", b"2"]
    (third,) = await queue.browse(after=found[1].number)
    assert (third.payload, third.attempts) == (b"3", 0)
    await queue.pause()
    (listed,) = await mesh.queues()
    assert (listed["name"], listed["messages"], listed["paused"]) == ("q", 3, True)
    await queue.resume()
    assert await queue.purge() == 3
    async with queue.consume() as jobs:
        await queue.delete()
        with pytest.raises(NotFound, match="deleted"):
            await anext(jobs)
    async with queue.consume(declare=True):
        assert await count(mesh, "q", "consumers") == 1


@under_each
async def test_acknowledgements_survive_leaving_at_once(mesh: Mesh, other: Mesh) -> None:
    """What was acknowledged before a mesh is left is acknowledged."""
    queue = mesh.queue("q")
    await queue.declare()
    await queue.send(b"x")
    jobs = await queue.consume().__aenter__()
    await (await anext(jobs)).ack()
    await mesh._session.close()
    found = await other.queue("q").describe()
    while found.statistics["consumers"]:
        found = await other.queue("q").describe()
    assert found.statistics["acknowledged"] == 1
