"""What a queue takes and how long it keeps it: limits, expiry, delays, deduplication."""

from typing import Any

import pytest

from ganglion.broker.core.deduplication import IDENTIFIERS_MAX, Deduplication
from ganglion.broker.core.message import PLAIN_TERMS, Message, MessageProperties, Terms
from ganglion.broker.store import Kind
from tests.broker.core.virtual_queues import Refused, Taker, World, text


def reasons(world: World, name: str = "dead") -> list[tuple[str, str]]:
    """Payload and reason of every message in a dead letter queue."""
    found: list[tuple[str, str]] = []
    for each in world.queue(name).browse():
        assert each.message.properties is not None
        about = dict(each.message.properties.user_properties)
        found.append((text(each.message), about["x-dead-letter-reason"]))
    return found


# -- length ----------------------------------------------------------------------------------------


def test_a_full_queue_refuses() -> None:
    """With `reject` the publisher is told; what consumers have and what is delayed counts."""
    world = World()
    taker = Taker(world.declare(max_messages=3), credit=1)
    world.send("a", "b")
    world.send("late", delay_s=10)
    with pytest.raises(Refused, match="queue q is full: max_messages = 3"):
        world.publish("c")
    taker.acknowledge("a")
    world.send("d")
    with pytest.raises(Refused):
        world.publish("e")
    world.advance(11)
    assert world.contents() == ["b", "d", "late"]


def test_a_message_that_nobody_can_be_told_of_is_dropped_and_counted() -> None:
    """Dead letters are not asked for: a dead letter queue that is full and refuses loses them."""
    world = World()
    world.declare("dead", max_messages=1)
    taker = Taker(world.declare(dead_letter="dead"))
    world.send("a", "b")
    taker.reject("a")
    taker.reject("b")
    world.tick()
    assert world.contents("dead") == ["a"]
    assert world.statistics.dropped == {"queue is full": 1}
    assert world.queue("dead").statistics().refused == 1


def test_bytes_are_limited_exactly() -> None:
    """Topic, payload and properties count; a message that fits exactly is taken."""
    world = World()
    size_bytes = len("$queue/q") + 10
    world.declare(max_bytes=2 * size_bytes)
    world.send("x" * 10, "y" * 10)
    with pytest.raises(Refused, match=f"no room for {size_bytes - 9} bytes: max_bytes = 36"):
        world.publish("z")


def test_a_message_larger_than_the_limit_is_never_taken() -> None:
    """Not even by an empty queue: the limit holds."""
    world = World()
    world.declare(max_bytes=20)
    with pytest.raises(Refused, match="28 bytes is larger than all of queue q: max_bytes = 20"):
        world.publish("x" * 20)
    world.queue().deliver(Message("t", b"x" * 20, 0), PLAIN_TERMS[0])  # nobody can be told
    assert world.queue().count == 0
    assert world.statistics.dropped == {"queue: larger than max_bytes": 1}
    assert world.queue().statistics().buried == 1


@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_larger_than_the_limit_is_a_dead_letter(qos: int) -> None:
    """Where its publisher cannot be told; to one that has no room for it either it is lost."""
    world = World()
    world.declare("small", max_bytes=20)
    world.declare("dead", max_bytes=1000, dead_letter="small")
    queue = world.declare(max_bytes=20, dead_letter="dead")
    for size in (21, 1000):
        queue.deliver(Message("", b"x" * size, qos), PLAIN_TERMS[qos])
    world.tick()
    assert queue.count == world.queue("small").count == 0
    assert reasons(world) == [("x" * 21, "larger than max_bytes")]
    assert world.statistics.dropped == {"queue: larger than max_bytes": 1}


def test_the_oldest_are_dropped_for_the_newest() -> None:
    """With `drop-oldest` the last ones stay, also where more come in one commit than fit."""
    world = World()
    queue = world.declare(max_messages=3, overflow="drop-oldest")
    for first in range(0, 10, 2):
        world.send(str(first), str(first + 1))
        assert queue.count <= 3
    assert world.contents() == ["7", "8", "9"]
    world.send(*map(str, range(10, 30)))
    assert world.contents() == ["27", "28", "29"]
    assert world.statistics.dropped == {"queue is full: the oldest goes": 27}
    world.tick()
    world.restart()
    assert world.contents() == ["27", "28", "29"]


def test_what_consumers_have_is_not_dropped() -> None:
    """It counts; the oldest of the rest go."""
    world = World()
    queue = world.declare(max_messages=3, overflow="drop-oldest")
    taker = Taker(queue, credit=2)
    world.send("a", "b", "c", "d", "e")
    assert taker.new() == ["a", "b"]
    assert world.contents() == ["a", "b", "e"]
    taker.acknowledge("a")
    assert taker.new() == ["e"]


def test_the_lowest_priority_is_dropped_first() -> None:
    """The oldest of it, what was given back included; then the next higher one."""
    world = World()
    queue = world.declare(max_messages=4, priorities=3, overflow="drop-oldest")
    taker = Taker(queue, credit=2)
    world.send("low1", "low2")
    world.send("high", priority=2)
    taker.leave()
    world.send("middle", priority=1)
    world.send("more", priority=1)
    world.send("most", priority=2)
    assert world.contents(priority=0) == []
    assert world.contents(priority=1) == ["middle", "more"]
    assert world.contents(priority=2) == ["high", "most"]


def test_the_oldest_are_buried_for_the_newest() -> None:
    """With `dead-letter` they go to the dead letter queue, with the reason."""
    world = World()
    world.declare(max_bytes=30, overflow="dead-letter", dead_letter="dead")
    world.send("aa", "bb", "cc")
    world.send("d" * 22)
    world.send("far too large" * 10)
    assert world.contents() == ["d" * 22]
    assert reasons(world) == [
        ("aa", "max length"),
        ("bb", "max length"),
        ("cc", "max length"),
        ("far too large" * 10, "max length"),
    ]


@pytest.mark.parametrize("limit", [{"max_messages": 3}, {"max_bytes": 3 * 13}])
def test_delayed_messages_alone_do_not_outgrow_the_limit(limit: dict[str, Any]) -> None:
    """They cannot make room for each other: what comes then is dropped and counted."""
    world = World()
    queue = world.declare(overflow="drop-oldest", **limit)
    for number in range(10):
        world.send(f"late{number}", delay_s=60)
    assert queue.count == 3
    assert world.statistics.dropped == {"queue is full": 7}
    world.advance(61)
    assert world.contents() == ["late0", "late1", "late2"]


@pytest.mark.slow
def test_a_limit_that_is_lowered_holds_at_once() -> None:
    """The oldest go, in steps, whatever waits."""
    world = World()
    world.declare()
    for first in range(0, 25_000, 500):
        world.send(*map(str, range(first, first + 500)))
    queue = world.declare(max_messages=5, overflow="drop-oldest")
    steps = 0
    while world.commits.is_open:
        world.tick()
        steps += 1
    assert steps < 10
    assert world.contents() == [str(each) for each in range(24_995, 25_000)]
    assert queue.count == 5


# -- expiry ----------------------------------------------------------------------------------------


def test_a_message_that_is_too_old_is_buried_without_a_consumer() -> None:
    """At its time it goes to the dead letter queue: a queue nobody reads may be a timer."""
    world = World()
    world.declare(ttl_s=10, dead_letter="dead")
    world.send("a")
    world.advance(5)
    world.send("b")
    world.advance(5.1)
    assert reasons(world) == [("a", "expired")]
    world.advance(5)
    assert reasons(world) == [("a", "expired"), ("b", "expired")]
    assert world.queue().count == 0


def test_age_counts_over_a_restart() -> None:
    """By the wall clock, the time when the node was away included."""
    world = World()
    world.declare(ttl_s=10)
    world.send("a")
    world.advance(4)
    world.send("b")
    world.restart(7)
    world.advance(0)
    assert world.contents() == ["b"]
    world.advance(4)
    assert world.contents() == []
    assert world.statistics.dropped == {"queue: expired": 2}


def test_age_goes_on_over_failures() -> None:
    """What comes back after a delay is not young again."""
    world = World()
    taker = Taker(world.declare(ttl_s=10, dead_letter="dead"))
    world.send("a")
    for _ in range(2):
        world.advance(3)
        taker.nack("a", 1)
        world.tick()
        world.advance(1.1)
    taker.credit = 0
    taker.nack("a", 1)
    world.tick()
    world.advance(3)
    assert world.queue().count == 0
    assert reasons(world) == [("a", "expired")]


def test_a_message_may_have_an_expiry_of_its_own() -> None:
    """The shorter of both counts. Behind one that lives longer it goes when its turn comes."""
    world = World()
    queue = world.declare(ttl_s=100)
    world.send("short", expires_s=5)
    world.send("long", expires_s=1000)
    world.send("behind", expires_s=6)
    world.advance(7)
    assert world.contents() == ["long", "behind"]
    taker = Taker(queue)
    assert taker.new() == ["long"]
    world.tick()
    assert queue.count == 1


def test_an_expiry_of_its_own_holds_for_what_is_read_after_a_restart() -> None:
    """What expired while the node was away is not given out to who asks first."""
    world = World()
    world.declare()
    world.send("long")
    world.send("short", expires_s=5)
    world.restart(7)
    assert Taker(world.queue()).new() == ["long"]
    world.tick()
    assert world.queue().count == 1


def test_what_a_consumer_has_does_not_expire() -> None:
    """Given back too late, it does."""
    world = World()
    queue = world.declare(ttl_s=10)
    taker = Taker(queue)
    world.send("a", "b")
    world.advance(20)
    taker.acknowledge("a")
    taker.nack("b", 0)
    world.tick()
    assert queue.count == 0
    assert world.statistics.dropped == {"queue: expired": 1}


@pytest.mark.slow
def test_a_mass_of_expired_messages_is_buried_in_steps() -> None:
    """No commit carries all of them; a consumer gets the first that is alive behind them."""
    world = World()
    queue = world.declare(ttl_s=10, dead_letter="dead")
    for first in range(0, 25_000, 500):
        world.send(*map(str, range(first, first + 500)))
    queue.pause()
    world.now += 11
    world.restart(0)
    world.publish("alive")
    taker = Taker(world.queue())
    while world.commits.is_open:
        world.tick()
    assert taker.new() == ["alive"]
    assert world.queue("dead").count == 25_000
    assert max(world.disk.operations[-4:]) < 500


# -- delays ----------------------------------------------------------------------------------------


def test_a_delayed_message_comes_when_it_is_due() -> None:
    """Not before, in the order in which they are due, behind what is there by then."""
    world = World()
    taker = Taker(world.declare(), credit=100)
    world.send("later", delay_s=20)
    world.send("late", delay_s=10)
    world.send("now")
    world.advance(9.9)
    assert taker.new() == ["now"]
    world.advance(0.2)
    assert taker.new() == ["late"]
    world.advance(10)
    assert taker.new() == ["later"]
    assert world.disk.count(Kind.DELAYED) == 0


def test_a_delay_of_zero_is_none() -> None:
    """The message has its place among the others."""
    world = World()
    world.declare()
    world.publish("a", delay_s=0.0)
    world.publish("b")
    world.tick()
    assert world.contents() == ["a", "b"]


@pytest.mark.slow
def test_many_delayed_messages_come_in_steps() -> None:
    """All that are due at the same time come, in order, a thousand in a commit at most."""
    world = World()
    taker = Taker(world.declare(), credit=10_000)
    world.send(*map(str, range(3500)), delay_s=10)
    world.advance(11)
    while world.commits.is_open:
        world.tick()
    world.advance(0)
    assert taker.new() == [str(each) for each in range(3500)]


def test_a_purge_while_delayed_messages_are_moved_forgets_each_once() -> None:
    """Those that are added, under way, on disk or moved but not committed: none comes back."""
    world = World()
    queue = world.declare(bindings=("t",))
    other = world.declare("other", bindings=("t",))
    world.send("disk", topic="t", delay_s=10)
    world.disk.slow = True
    world.publish("under way", topic="t", delay_s=20)
    world.tick()
    world.publish("added", topic="t", delay_s=20)
    world.timers.run(world.now + 11)  # moves the first one
    assert queue.count == 3
    queue.purge()
    queue.purge()
    world.disk.release()
    world.tick()
    world.advance(30)
    assert [text(each.message) for each in queue.browse()] == ["disk"]  # it was on its way
    assert [text(each.message) for each in other.browse()] == ["disk", "under way", "added"]
    assert world.disk.count(Kind.DELAYED) == 0
    assert world.disk.count(Kind.PAYLOAD) == 3
    other.purge()
    world.tick()
    assert world.disk.count(Kind.PAYLOAD) == world.disk.count(Kind.PAYLOAD_USES) == 1
    queue.purge()
    world.tick()
    assert world.disk.count(Kind.PAYLOAD) == world.disk.count(Kind.PAYLOAD_USES) == 0


def test_damaged_records_of_delays_cost_only_themselves() -> None:
    """Without the record of how many there are they are counted; a lost one does not count on."""
    world = World()
    world.declare()
    world.send("a", "b", "c", delay_s=10)
    world.disk.lose(Kind.BACKLOG_STATE, 1)
    world.restart()
    queue = world.queue()
    assert queue.count == 3
    world.send("d", delay_s=10)
    world.disk.lose(Kind.DELAYED, 0)
    world.advance(11)
    assert world.contents() == ["b", "c", "d"]
    assert queue.count == 3


# -- deduplication ---------------------------------------------------------------------------------


def test_an_identifier_is_taken_once_within_the_window() -> None:
    """The copy counts as taken, though the first one has been consumed; later it is a new one."""
    world = World()
    taker = Taker(world.declare(deduplication_s=60, lease_s=1000))
    world.send("a", message_id="1")
    world.send("a again", message_id="1")
    world.send("b", message_id="2")
    world.send("c")
    world.send("c")
    assert taker.new() == ["a", "b", "c", "c"]
    assert world.statistics.dropped == {"duplicate": 1}
    world.advance(59)
    world.send("a again", message_id="1")
    assert taker.new() == []
    world.advance(2)
    world.send("a", message_id="1")
    assert taker.new() == ["a"]


def test_identifiers_are_remembered_over_a_restart() -> None:
    """For as long as they would have been without one; then their records go."""
    world = World()
    world.declare(deduplication_s=60)
    world.send("a", message_id="1")
    world.restart(30)
    world.send("a", message_id="1")
    assert world.contents() == ["a"]
    world.restart(31)
    world.send("b", message_id="1")
    assert world.contents() == ["a", "b"]
    assert world.disk.count(Kind.DEDUPLICATION) == 1


def test_an_identifier_whose_message_was_not_committed_is_new_after_a_crash() -> None:
    """Message and identifier are durable together, or neither is."""
    world = World()
    world.declare(deduplication_s=60)
    world.disk.slow = True
    world.publish("lost", message_id="1")
    world.tick()
    world.publish("copy", message_id="1")  # is not acknowledged before the first one is durable
    assert world.queue().statistics().duplicates == 1
    world.restart()
    world.send("repeated", message_id="1")
    assert world.contents() == ["repeated"]


def test_a_refused_message_is_not_remembered() -> None:
    """It comes again when there is room, and is taken then."""
    world = World()
    taker = Taker(world.declare(deduplication_s=60, max_messages=1))
    world.send("a", message_id="1")
    with pytest.raises(Refused):
        world.publish("b", message_id="2")
    world.queue().deliver(*_plain("b", message_id="2"))  # by one who cannot be told
    world.send("a", message_id="1")  # is no reason to refuse: it is there
    taker.acknowledge("a")
    world.tick()
    world.send("b", message_id="2")
    assert taker.new() == ["a", "b"]


def test_deduplication_can_be_turned_off_and_on() -> None:
    """Turned off it remembers nothing any more."""
    world = World()
    world.declare(deduplication_s=60)
    world.send("a", message_id="1")
    world.declare(deduplication_s=0)
    world.send("a", message_id="1")
    assert world.disk.count(Kind.DEDUPLICATION) == 0
    world.declare(deduplication_s=60)
    world.send("a", message_id="1")
    world.send("a", message_id="1")
    assert world.contents() == ["a", "a", "a"]


@pytest.mark.slow
def test_the_window_is_bounded() -> None:
    """Past `IDENTIFIERS_MAX` the oldest are forgotten, however young they are."""
    world = World()
    window = Deduplication(world.shelf, 99)
    step = IDENTIFIERS_MAX // 4
    for part in range(5):
        assert not window.has("new", 60)
        for number in range(part * step, (part + 1) * step):
            window.add(f"{number}")
        world.tick()
    assert not window.has("0", 60)
    assert window.has(str(4 * step), 60)
    world.tick()
    assert world.disk.count(Kind.DEDUPLICATION) <= 4


def test_the_identifiers_of_one_commit_are_one_record() -> None:
    """And one that goes costs one range: no record and no operation for each message."""
    world = World()
    world.declare(deduplication_s=60)
    for round_s in range(3):
        for number in range(1000):
            world.publish("x", message_id=f"{round_s}.{number}")
        world.tick()
        world.advance(61)
    world.send("y", message_id="y")
    assert world.disk.count(Kind.DEDUPLICATION) == 1
    assert max(world.disk.operations) < 10


def _plain(payload: str, message_id: str) -> tuple[Message, Terms]:
    about = MessageProperties(message_id=message_id)
    return Message("$queue/q", payload.encode(), 1, False, about), PLAIN_TERMS[1]
