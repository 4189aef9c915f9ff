"""Streams: versions, reading, following from stored to live, groups."""

from datetime import timedelta

import pytest

from ganglion.clients.errors import BadOption, NotFound, WrongVersion
from ganglion.clients.mesh import Mesh
from tests.clients.backends import under_each


@under_each
async def test_versions_are_checked(mesh: Mesh) -> None:
    """The error says what is expected and what is; nothing was appended."""
    stream = mesh.stream("s")
    await stream.declare(keyed=True)
    first = await stream.append(b"1", key="k", expected=0)
    with pytest.raises(WrongVersion) as caught:
        await stream.append(b"2", key="k", expected=0)
    assert (caught.value.key, caught.value.expected, caught.value.actual) == ("k", 0, first)
    with pytest.raises(WrongVersion):
        await stream.append_batch([b"2", b"3"], keys=["l", "k"], expected={"k": 0})
    assert await stream.append(b"2", key="k", expected=first) == first + 1
    assert (await stream.version("k"), await stream.version("l")) == (first + 1, 0)
    with pytest.raises(BadOption, match="expected needs a key"):
        await stream.append(b"3", expected=1)
    with pytest.raises(BadOption, match="2 values and 1 keys"):
        await stream.append_batch([b"1", b"2"], keys=["k"])
    with pytest.raises(BadOption, match="at least one value"):
        await stream.append_batch([])


@under_each
async def test_reading(mesh: Mesh) -> None:
    """Behind a record, from a time on, with a key, so many."""
    stream = mesh.stream("s")
    appended = await stream.append_batch(
        [b"1", b"2", b"3"], keys=["a", None, "a"], topic="of/it", declare=True
    )
    assert (appended.first, appended.last) == (1, 3)
    records = await stream.read()
    assert [(r.sequence, r.payload, r.key, r.topic) for r in records] == [
        (1, b"1", "a", "of/it"),
        (2, b"2", None, "of/it"),
        (3, b"3", "a", "of/it"),
    ]
    assert [r.sequence for r in await stream.read(key="a")] == [1, 3]
    assert [r.sequence for r in await stream.read(after=1, count=1)] == [2]
    assert [r.sequence for r in await stream.read(bytes_max=1)] == [1]
    before = records[0].time - timedelta(seconds=1)
    assert [r.sequence for r in await stream.read(from_time=before)] == [1, 2, 3]
    assert await stream.read(from_time=records[-1].time_s + 60) == []
    assert await stream.read(after=3) == []
    (listed,) = await mesh.streams()
    assert (listed["name"], listed["last"], listed["records"]) == ("s", 3, 3)
    await stream.delete()
    with pytest.raises(NotFound):
        await stream.read()


@under_each
async def test_following_from_what_is_stored_to_what_comes(mesh: Mesh, other: Mesh) -> None:
    """Nothing is missed and nothing comes twice at the switch, however small the buffer is."""
    stream = mesh.stream("s")
    await stream.append_batch([b"old"] * 50, declare=True)
    seen: list[int] = []
    async with stream.follow(after=10, buffer=7) as records:
        async for record in records:
            seen.append(record.sequence)
            assert records.position == record.sequence
            if record.sequence % 10 == 0 and record.sequence < 100:
                await other.stream("s").append_batch([b"new"] * 10)
            if record.sequence == 120:
                break
            if record.sequence == 100:
                await other.stream("s").append_batch([b"last"] * 20)
    assert seen[:90] == list(range(11, 101))
    assert seen == sorted(set(seen))


@under_each
async def test_following_only_what_comes(mesh: Mesh) -> None:
    """Without `after` a follower begins with the next record; two places exclude each other."""
    stream = mesh.stream("s")
    await stream.append(b"old", declare=True)
    async with stream.follow() as records:
        await stream.append(b"new")
        assert (await anext(records)).payload == b"new"
        await stream.delete()
        with pytest.raises(NotFound):
            await anext(records)
    with pytest.raises(BadOption, match="exclude each other"):
        await stream.follow(after=1, from_time=1.0).__aenter__()
    with pytest.raises(BadOption, match="buffer must be from 1"):
        await stream.follow(after=1, buffer=0).__aenter__()
    with pytest.raises(NotFound):
        await anext(stream.follow())


@under_each
async def test_a_group_shares_and_settles_one_by_one(mesh: Mesh, other: Mesh) -> None:
    """A confirmed acknowledgement is of that record alone; what is given back comes again."""
    stream = mesh.stream("s")
    await stream.append_batch([b"x"] * 4, declare=True)
    group = stream.group("g")
    assert await group.declare(after=0) == 0
    async with group.follow(prefetch=4) as records:
        first, second, third, fourth = [await anext(records) for _ in range(4)]
        await third.ack(confirmed=True)
        (standing,) = (await stream.describe()).statistics["groups"]
        assert standing["position"] == 0
        assert standing["unacknowledged"] == 3
        await first.ack()
        await second.nack()
        again = await anext(records)
        assert again.sequence == second.sequence
        async with again:
            pass
        with pytest.raises(ZeroDivisionError):
            async with fourth:
                raise ZeroDivisionError
    async with other.stream("s").group("g").follow() as records:
        async with await anext(records) as record:
            assert record.sequence == 4
        (standing,) = (await other.stream("s").describe()).statistics["groups"]
        assert standing["position"] == 4
    await group.delete()
    with pytest.raises(NotFound):
        await group.delete()
