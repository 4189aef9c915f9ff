"""What waits costs the memory of a window, and few operations of the store, however much it is."""

import tracemalloc
from pathlib import Path

import pytest

from ganglion.broker.core import backlog as backlog_module
from ganglion.broker.core.backlog import Backlog
from ganglion.broker.core.limits import Limits
from ganglion.broker.store import Kind
from ganglion.protocols.mqtt.packets import Publish
from tests.broker.core.virtual_queues import Disk, Taker, World
from tests.broker.store.stores import Core, open_rocks
from tests.protocols.mqtt.fake_link import Link

WINDOW = backlog_module._WINDOW_MESSAGES  # pyright: ignore[reportPrivateUsage] # the bound itself
CHUNK = backlog_module._CHUNK_MESSAGES_MAX  # pyright: ignore[reportPrivateUsage] # as above


def wait(world: World, core: Core) -> None:
    """Until what is recorded is on disk."""
    done: list[bool] = []
    world.commits.after_commit(lambda: done.append(True))

    def is_done() -> bool:
        world.tick()  # what came while another commit was under way
        return bool(done)

    core.wait(is_done)


def lanes(world: World) -> list[Backlog]:
    """The backlogs of the queue."""
    return world.queue()._lanes  # pyright: ignore[reportPrivateUsage] # memory has no other view


@pytest.mark.slow
def test_a_large_backlog_costs_the_memory_of_its_window(tmp_path: Path) -> None:
    """200,000 messages wait on RocksDB: a window of them is in memory, after a restart too."""
    core = Core()
    count, payload = 200_000, "x" * 256
    try:
        world = World(open_rocks(tmp_path / "data", core))
        world.declare()

        for _ in range(count // 500):
            world.publish(*[payload] * 500)
            world.tick()
            wait(world, core)
        (lane,) = lanes(world)
        assert lane.count == count
        assert lane.ready <= WINDOW + CHUNK
        world.store.close()

        tracemalloc.start()
        world.store = open_rocks(tmp_path / "data", core)
        world.restart()
        taker = Taker(world.queue(), credit=100)
        assert len(taker.new()) == 100
        used_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        (lane,) = lanes(world)
        assert lane.count == count
        assert lane.ready <= WINDOW + CHUNK
        assert used_bytes < 8 * 1024 * 1024  # all of it would be 50 MiB of payloads alone
        world.store.close()
    finally:
        core.close()


def test_a_window_is_bounded_in_bytes() -> None:
    """Of large messages fewer are in memory."""
    world = World()
    world.declare()
    for _ in range(40):
        world.send("x" * 500_000)
    (lane,) = lanes(world)
    assert lane.count == 40
    assert lane.ready <= 10
    world.restart()
    assert len(Taker(world.queue(), credit=100).new()) == 40


def test_a_thousand_messages_and_acknowledgements_are_a_few_operations() -> None:
    """A commit of a queue costs its chunks and its state, not its messages."""
    world = World()
    taker = Taker(world.declare(), credit=1000)
    world.disk.operations.clear()
    world.send(*map(str, range(1000)))
    assert world.disk.operations == [2 + 1]  # two chunks and the state
    taker.acknowledge(*taker.new())
    world.tick()
    assert world.disk.operations[1:] == [2 + 1]
    assert world.disk.count(Kind.BACKLOG) == 0


def away(link: Link, count: int) -> None:
    """Subscribers whose sessions outlive their connections, which are gone."""
    for number in range(count):
        client = link.connect(f"c{number}", expiry_s=3600)
        client.subscribe("news", 1)
        client.cut()


@pytest.mark.slow
def test_a_message_for_a_thousand_sessions_is_stored_once() -> None:
    """One payload and its count; for each session its entry and its state, which are small."""
    disk = Disk()
    link = Link(store=disk)
    away(link, 1000)
    publisher = link.connect("publisher")
    disk.operations.clear()
    publisher.complete("news", b"x" * 10_000, 1)
    assert disk.operations == [2 + 2 * 1000]
    assert disk.count(Kind.PAYLOAD) == 1
    assert [int.from_bytes(value, "big") for _, value in disk.scan(Kind.PAYLOAD_USES)] == [1000]
    assert sum(len(value) for _, value in disk.scan(Kind.BACKLOG)) < 1000 * 64


@pytest.mark.parametrize(
    ("plain", "groups", "uses"), [(0, 1, 0), (1, 1, 2), (0, 3, 3), (2, 3, 5), (1, 0, 0)]
)
def test_members_of_shared_subscriptions_count(plain: int, groups: int, uses: int) -> None:
    """A message for several of them, or for one and others, is stored once for all."""
    disk = Disk()
    link = Link(store=disk)
    filters = ["t"] * plain + [f"$share/g{number}/t" for number in range(groups) for _ in range(2)]
    for number, topic_filter in enumerate(filters):
        client = link.connect(f"c{number}", expiry_s=3600)
        client.subscribe(topic_filter, 1)
        client.cut()
    link.connect("transient").subscribe("$share/other/t", 1)
    publisher = link.connect("publisher")
    publisher.complete("t", b"x" * 10_000, 1)
    assert disk.count(Kind.PAYLOAD) == (1 if uses else 0)
    assert [int.from_bytes(each, "big") for _, each in disk.scan(Kind.PAYLOAD_USES)] == (
        [uses] if uses else []
    )
    came = 0
    for number in range(len(filters)):
        client = link.connect(f"c{number}", expiry_s=3600, clean_start=False, present=True)
        came += len(client.payloads())
    assert came == plain + groups
    assert disk.count(Kind.PAYLOAD) == disk.count(Kind.PAYLOAD_USES) == 0


def test_the_number_of_a_damaged_message_is_not_used_again() -> None:
    """Sessions may still refer to it, and would get another message in its place."""
    disk = Disk()
    link = Link(store=disk)
    away(link, 2)
    link.connect("publisher").complete("news", b"first", 1)
    disk.lose(Kind.PAYLOAD)
    Link(store=disk).connect("publisher").complete("news", b"second", 1)
    assert len({key for key, _ in disk.scan(Kind.PAYLOAD_USES)}) == 2


def test_a_shared_message_goes_with_the_last_session_that_has_it() -> None:
    """Read after a restart by each of them; then nothing is stored of it any more."""
    disk = Disk()
    link = Link(store=disk)
    away(link, 5)
    link.connect("publisher").complete("news", b"x", 1)
    disk = disk.after_crash()
    link = Link(store=disk)
    for number in range(5):
        assert disk.count(Kind.PAYLOAD) == disk.count(Kind.PAYLOAD_USES) == 1
        client = link.connect(f"c{number}", clean_start=False, present=True, expiry_s=3600)
        assert client.payloads() == [b"x"]
    assert disk.count(Kind.PAYLOAD) == disk.count(Kind.PAYLOAD_USES) == 0


@pytest.mark.slow
def test_a_session_with_more_than_a_window_gets_all_of_it_in_order() -> None:
    """Beyond the window it waits on disk, over a restart too, and counts against the limit."""
    link = Link(limits=Limits(queued_messages_per_session_max=4000))
    away(link, 1)
    publisher = link.connect("publisher")
    for number in range(4100):
        publisher.complete("news", str(number).encode(), 1)
    assert link.node.statistics.dropped == {"session queue is full": 100}
    link = link.restart()
    client = link.connect("c0", clean_start=False, present=True, expiry_s=3600)
    backlog = client.session.backlog
    assert backlog is not None
    assert backlog.ready <= WINDOW + CHUNK
    payloads: list[bytes] = []
    while more := client.payloads():
        payloads += more
    assert payloads == [str(number).encode() for number in range(4000)]


def test_qos_2_identifiers_are_the_same_after_a_restart() -> None:
    """What was on the way is sent again under its identifier, before what waits behind it."""
    link = Link()
    client = link.connect("c", expiry_s=3600, receive_maximum=2)
    client.subscribe("news", 2)
    publisher = link.connect("publisher")
    for payload in (b"a", b"b", b"c"):
        publisher.complete("news", payload, 2)
    first = [each for each in client.take() if isinstance(each, Publish)]
    assert [each.payload for each in first] == [b"a", b"b"]
    link = link.restart()
    client = link.connect("c", clean_start=False, present=True, expiry_s=3600, receive_maximum=2)
    again = [each for each in client.take() if isinstance(each, Publish)]
    assert [(each.packet_id, each.payload, each.dup) for each in again] == [
        (each.packet_id, each.payload, True) for each in first
    ]
