"""A queue's ordinary life: bindings, consumers with credit, the ends of a lease, care."""

import pytest

from ganglion.broker.core.queue import REDRIVEN_MAX
from ganglion.broker.store import Kind
from tests.broker.core.virtual_queues import Refused, Taker, World, text


def test_nothing_is_given_out_before_it_is_durable() -> None:
    """A message comes to its consumer after the commit that it is part of, not before."""
    world = World()
    taker = Taker(world.declare())
    world.disk.slow = True
    world.publish("a")
    world.tick()
    assert taker.new() == []
    world.disk.release()
    assert taker.new() == ["a"]


def test_what_is_published_to_a_binding_waits_in_every_queue_that_has_it() -> None:
    """Each bound queue gets a message once, however many of its bindings match, at any QoS."""
    world = World()
    world.declare("one", bindings=("orders/#", "orders/+", "orders/new"))
    world.declare("two", bindings=("+/new",))
    world.send("a", topic="orders/new", qos=0)
    world.send("b", topic="orders/old")
    assert world.contents("one") == ["a", "b"]
    assert world.contents("two") == ["a"]


def test_a_binding_that_is_taken_back_leads_nowhere() -> None:
    """What came by it stays, what is published there later does not come."""
    world = World()
    queue = world.declare(bindings=("a", "b"))
    world.send("1", topic="a")
    world.queues.unbind(queue, "a")
    world.queues.bind(queue, "c")
    for topic in "abc":
        world.send(topic, topic=topic)
    assert world.contents() == ["1", "b", "c"]
    world.restart()
    world.send("after", topic="a")
    world.send("after", topic="c")
    assert world.contents() == ["1", "b", "c", "after"]


def test_a_consumer_gets_no_more_than_its_credit() -> None:
    """What it has not settled counts; each that it settles makes room for one."""
    world = World()
    taker = Taker(world.declare(), credit=2)
    world.send("a", "b", "c", "d")
    assert taker.new() == ["a", "b"]
    taker.acknowledge("b")
    assert taker.new() == ["c"]
    taker.acknowledge("a", "c")
    assert taker.new() == ["d"]


def test_consumers_share_what_is_there_evenly() -> None:
    """Four consumers with room for all of it get a quarter each, in order."""
    world = World()
    queue = world.declare()
    takers = [Taker(queue, credit=100) for _ in range(4)]
    world.send(*map(str, range(40)))
    shares = [taker.new() for taker in takers]
    assert [len(share) for share in shares] == [10] * 4
    assert sorted(int(each) for share in shares for each in share) == list(range(40))
    assert all(share == sorted(share, key=int) for share in shares)


def test_consumers_take_turns() -> None:
    """Messages that come one by one go to one consumer after the other."""
    world = World()
    queue = world.declare()
    takers = [Taker(queue) for _ in range(3)]
    for number in range(6):
        world.send(str(number))
    assert [taker.new() for taker in takers] == [["0", "3"], ["1", "4"], ["2", "5"]]


def test_a_consumer_without_room_is_passed_over() -> None:
    """What it could not take goes to those that can; it is asked again when it says so."""
    world = World()
    queue = world.declare()
    full, free = Taker(queue, credit=0), Taker(queue)
    world.send("a", "b")
    assert (full.new(), free.new()) == ([], ["a", "b"])
    full.credit = 5
    world.send("c")
    assert (full.new(), free.new()) == ([], ["c"])
    full.consumer.pull()
    world.send("d", "e")
    assert (full.new(), free.new()) == (["e"], ["d"])


def test_what_is_acknowledged_is_gone() -> None:
    """It is not there after a restart, and what is left comes in order."""
    world = World()
    taker = Taker(world.declare())
    world.send("a", "b", "c")
    taker.acknowledge("b")
    world.tick()
    world.restart()
    assert world.contents() == ["a", "c"]
    assert Taker(world.queue()).new() == ["a", "c"]


def test_an_acknowledgement_that_was_not_committed_is_forgotten_by_a_crash() -> None:
    """The message comes again: it was never said to be settled."""
    world = World()
    taker = Taker(world.declare())
    world.send("a")
    taker.acknowledge("a")
    world.restart()
    assert Taker(world.queue()).new() == ["a"]


def test_a_lease_is_settled_once() -> None:
    """The second settlement of a lease says that there is none, and changes nothing."""
    world = World()
    queue = world.declare()
    taker = Taker(queue)
    world.send("a")
    lease = taker.lease("a")
    taker.acknowledge("a")
    consumer = taker.consumer
    assert not consumer.acknowledge(lease)
    assert not consumer.nack(lease)
    assert not consumer.reject(lease)
    assert not consumer.extend(lease, 10)
    assert queue.statistics().acknowledged == 1
    assert queue.statistics().returned == queue.statistics().buried == 0


def test_what_a_leaving_consumer_had_comes_first_and_in_order() -> None:
    """It is ready at once, with its old place, and says how often it was delivered."""
    world = World()
    queue = world.declare()
    leaving = Taker(queue, credit=3)
    world.send("a", "b", "c", "d")
    leaving.acknowledge("b")
    assert leaving.new() == ["a", "b", "c", "d"]
    leaving.leave()
    staying = Taker(queue)
    assert [(text(message), attempts) for _, message, attempts in staying.got] == [
        ("a", 1),
        ("c", 1),
        ("d", 1),
    ]


def test_a_nack_without_delay_returns_to_the_same_place() -> None:
    """With delay 0 it is before everything that was behind it, also after a restart."""
    world = World()
    queue = world.declare()
    taker = Taker(queue, credit=1)
    world.send("a", "b")
    taker.nack("a", 0)
    assert taker.new() == ["a", "a"]
    taker.leave()
    world.tick()
    world.restart()
    taker = Taker(world.queue())
    assert [(text(message), attempts) for _, message, attempts in taker.got] == [("a", 2), ("b", 0)]


def test_a_nack_with_delay_comes_at_the_end_when_it_is_due() -> None:
    """Not before its time, then behind what came meanwhile, with the number of attempts."""
    world = World()
    taker = Taker(world.declare(), credit=1)
    world.send("a", "b")
    taker.nack("a", 5)
    taker.consumer.pull()
    world.tick()
    world.send("c")
    assert taker.new() == ["a", "b"]
    world.advance(4.9)
    taker.acknowledge("b")
    assert taker.new() == ["c"]
    world.advance(0.2)
    taker.acknowledge("c")
    assert [(text(message), attempts) for _, message, attempts in taker.got[-1:]] == [("a", 1)]


def test_a_delay_goes_on_over_a_restart() -> None:
    """It counts by the wall clock while the node is away; what is due then comes at once."""
    world = World()
    taker = Taker(world.declare())
    world.send("a", "b")
    taker.nack("a", 60)
    taker.nack("b", 20)
    world.tick()
    world.restart(30)
    taker = Taker(world.queue())
    world.advance(1)
    assert taker.new() == ["b"]
    world.advance(28)
    assert taker.new() == []
    world.advance(2)
    assert [(text(message), attempts) for _, message, attempts in taker.got[-1:]] == [("a", 1)]


def test_failures_come_back_later_and_later() -> None:
    """The delay doubles with each attempt up to its maximum, and is spread by up to a half."""
    world = World()
    queue = world.declare(backoff_s=1.0, backoff_max_s=5.0)
    taker = Taker(queue)
    world.send("a")
    taker.new()
    delays: list[float] = []
    for most in (1, 2, 4, 5, 5):
        taker.nack("a")
        began = world.now
        world.tick()
        while taker.new() != ["a"]:
            world.advance(0.01)
        delays.append(world.now - began)
        assert most / 2 <= delays[-1] <= most + 0.02
    assert len({round(each, 3) for each in delays}) == 5


def test_failures_that_come_together_are_spread() -> None:
    """A hundred messages that fail at once do not come back at once."""
    world = World()
    taker = Taker(world.declare(backoff_s=100), credit=100)
    world.send(*map(str, range(100)))
    for lease in list(taker.unsettled):
        taker.nack(lease)
    world.tick()
    taker.new()
    world.advance(75)
    assert 30 < len(taker.new()) < 70
    world.advance(26)
    assert len(taker.got) == 200


def test_a_lease_that_runs_out_returns_the_message() -> None:
    """Another consumer gets it after the backoff; the first one's acknowledgement is too late."""
    world = World()
    queue = world.declare(lease_s=30, backoff_s=1)
    slow, quick = Taker(queue, credit=1), Taker(queue, credit=1)
    world.send("a")
    lease = slow.lease("a")
    world.advance(29)
    assert quick.new() == []
    world.advance(3)
    assert [(text(message), attempts) for _, message, attempts in quick.got] == [("a", 1)]
    assert not slow.consumer.acknowledge(lease)
    assert world.contents() == ["a"]


def test_a_lease_can_be_extended_again_and_again() -> None:
    """It runs out so many seconds after it was extended last, be that earlier or later."""
    world = World()
    queue = world.declare(lease_s=10, backoff_s=0)
    taker = Taker(queue)
    world.send("a", "b", "c")
    a, b, c = (taker.lease(each) for each in "abc")
    world.advance(9)
    assert taker.consumer.extend(a, 10)
    assert taker.consumer.extend(b, 0.5)
    world.advance(0.6)
    assert queue.statistics().returned == 1  # b, whose lease was made shorter
    world.advance(0.5)
    assert queue.statistics().returned == 2  # c
    assert not taker.consumer.extend(c, 10)
    world.advance(7)
    assert taker.consumer.extend(a, 10)
    world.advance(9)
    assert a in taker.consumer.leases
    world.advance(1.1)
    assert a not in taker.consumer.leases


@pytest.mark.parametrize("nonsense", [float("nan"), float("-inf"), -5.0])
def test_an_extension_that_is_no_time_ends_the_lease(nonsense: float) -> None:
    """It runs out at once; nothing breaks."""
    world = World()
    taker = Taker(world.declare(backoff_s=0))
    world.send("a")
    assert taker.consumer.extend(taker.lease("a"), nonsense)
    world.advance(0)
    assert taker.new() == ["a", "a"]


def test_an_endless_extension_or_delay_is_cut_to_what_can_be_kept() -> None:
    """Infinity is a year of lease, or of delay; a message is not lost by it."""
    world = World()
    taker = Taker(world.declare())
    world.send("a")
    assert taker.consumer.extend(taker.lease("a"), float("inf"))
    taker.nack("a", float("inf"))
    world.publish("b", delay_s=float("inf"))
    world.tick()
    assert world.queue().count == 2
    world.restart(367 * 86_400)
    taker = Taker(world.queue())
    world.advance(1)
    assert taker.new() == ["a"]


def test_a_message_that_fails_too_often_is_buried() -> None:
    """After `max_deliveries` attempts, whatever ended them, it is in the dead letter queue.

    There it has its topic and payload, and says from which queue it comes, why, and how often it
    was delivered.
    """
    world = World()
    queue = world.declare(
        bindings=("orders/new",), max_deliveries=3, dead_letter="dead", backoff_s=0, lease_s=5
    )
    taker = Taker(queue)
    world.send("a", topic="orders/new", user_properties=(("shop", "1"),))
    taker.nack("a")
    world.advance(6)
    taker.leave()
    world.tick()
    assert queue.count == 0
    (dead,) = world.queue("dead").browse()
    assert (dead.message.topic, text(dead.message)) == ("orders/new", "a")
    assert dead.message.properties is not None
    assert dict(dead.message.properties.user_properties) == {
        "shop": "1",
        "x-dead-letter-queue": "q",
        "x-dead-letter-reason": "delivered too often",
        "x-dead-letter-count": "3",
    }
    world.restart()
    assert world.contents() == []
    assert world.contents("dead") == ["a"]


def test_attempts_are_counted_over_a_restart() -> None:
    """Those before it count towards `max_deliveries`, with and without a delay."""
    world = World()
    taker = Taker(world.declare(max_deliveries=2, dead_letter="dead"))
    world.send("a", "b")
    taker.nack("a", 1)
    taker.nack("b", 0)
    world.tick()
    world.restart(2)
    taker = Taker(world.queue())
    world.advance(1)
    assert {(text(message), attempts) for _, message, attempts in taker.got} == {("a", 1), ("b", 1)}
    taker.nack("a", 0)
    taker.nack("b", 0)
    world.tick()
    assert sorted(world.contents("dead")) == ["a", "b"]
    assert world.disk.count(Kind.RETURNED) == 0


def test_a_rejected_message_goes_to_the_dead_letter_queue_with_its_reason() -> None:
    """At once, with the consumer's words, and how often it was delivered."""
    world = World()
    taker = Taker(world.declare(dead_letter="dead"))
    world.send("a")
    taker.reject("a", "no such customer")
    world.tick()
    (dead,) = world.queue("dead").browse()
    assert dead.message.properties is not None
    assert dict(dead.message.properties.user_properties) == {
        "x-dead-letter-queue": "q",
        "x-dead-letter-reason": "no such customer",
        "x-dead-letter-count": "1",
    }


def test_without_a_dead_letter_queue_the_buried_are_counted() -> None:
    """A rejected message is gone and counted under its reason."""
    world = World()
    taker = Taker(world.declare())
    world.send("a")
    taker.reject("a", "no such customer")
    world.tick()
    assert world.queue().count == 0
    assert world.statistics.dropped == {"queue: rejected": 1}
    assert world.queue().statistics().buried == 1


def test_a_dead_letter_queue_that_was_deleted_is_made_again() -> None:
    """What is buried is not lost because somebody tidied up."""
    world = World()
    taker = Taker(world.declare(dead_letter="dead"))
    world.queues.delete("dead")
    world.send("a")
    taker.reject("a")
    world.tick()
    assert world.contents("dead") == ["a"]


def test_what_is_given_back_while_it_is_given_does_not_come_back_at_once() -> None:
    """A consumer that cannot take a message at all does not keep the node busy."""
    world = World()
    queue = world.declare(backoff_s=0)
    taker = Taker(queue)
    taker.refuses = True
    world.send("a")
    assert taker.new() == ["a"]
    taker.refuses = False
    world.advance(1.1)
    assert taker.new() == ["a"]


def test_the_single_active_consumer_is_the_oldest() -> None:
    """Only it gets messages; when it leaves the next one goes on, in order, with what it had."""
    world = World()
    queue = world.declare(single_active_consumer=True)
    first, second, third = (Taker(queue, credit=2) for _ in range(3))
    world.send("a", "b", "c", "d")
    first.acknowledge("a")
    assert (first.new(), second.new(), third.new()) == (["a", "b", "c"], [], [])
    second.leave()
    first.leave()
    assert third.new() == ["b", "c"]
    third.acknowledge("b", "c")
    assert third.new() == ["d"]


def test_a_paused_queue_takes_and_keeps() -> None:
    """Nothing is given out until it goes on, also over a restart; leases go on."""
    world = World()
    queue = world.declare()
    taker = Taker(queue, credit=2)
    world.send("a")
    world.queues.set_paused("q", True)
    world.send("b")
    taker.acknowledge("a")
    taker.consumer.pull()
    assert taker.new() == ["a"]
    world.tick()
    world.restart()
    taker = Taker(world.queue())
    assert taker.new() == []
    assert world.queue().statistics().is_paused
    world.queues.set_paused("q", False)
    assert taker.new() == ["b"]
    world.tick()
    world.restart()
    assert not world.queue().is_paused


def test_a_purge_leaves_what_consumers_have() -> None:
    """Everything else that is on disk goes: ready, returned, delayed; and is counted."""
    world = World()
    queue = world.declare(priorities=2, lease_s=1000)
    taker = Taker(queue, credit=2)
    world.send("a", "b", "c")
    world.send("high", priority=1)
    world.send("late", delay_s=60)
    taker.nack("a", 30)
    world.tick()
    assert queue.count == 5
    taker.new()
    taker.nack("b", 0)  # and is leased again at once
    before = {text(message) for message in taker.unsettled.values()}
    assert queue.purge() == 5 - len(before)
    world.tick()
    assert queue.count == len(before)
    assert queue.size_bytes == sum(len("$queue/q") + len(each) for each in before)
    world.advance(100)
    assert world.statistics.dropped["queue: purged"] == 5 - len(before)
    taker.acknowledge(*before)
    world.tick()
    assert (queue.count, queue.size_bytes) == (0, 0)
    for kind in (Kind.BACKLOG, Kind.SETTLED, Kind.DELAYED, Kind.RETURNED):
        assert world.disk.count(kind) == 0
    world.restart(1000)
    world.advance(1)
    assert world.queue().count == 0


def test_a_deleted_queue_takes_everything_with_it() -> None:
    """Its messages, its bindings, its records; consumers are told and cannot settle any more."""
    world = World()
    queue = world.declare(bindings=("a",), deduplication_s=60)
    taker = Taker(queue, credit=2)
    world.send("1", "2", "3", message_id=None)
    world.send("4", message_id="x")
    world.send("5", delay_s=5)
    taker.nack("1", 0)
    lease = next(iter(taker.unsettled))
    world.disk.slow = True
    world.publish("under way")
    world.tick()
    world.publish("open", topic="a")
    world.queues.delete("q")
    world.disk.release()
    world.tick()
    assert taker.is_ended
    assert not taker.consumer.acknowledge(lease)
    taker.consumer.pull()
    taker.consumer.close()
    assert world.router.route("a").targets == []
    world.advance(100)
    assert {kind: world.disk.count(kind) for kind in Kind if world.disk.count(kind)} == {}
    world.restart()
    assert len(world.queues) == 0


def test_a_queue_that_is_made_again_is_empty() -> None:
    """It has nothing of the one that had its name."""
    world = World()
    world.declare(priorities=3)
    world.send("a")
    world.queues.delete("q")
    world.declare(priorities=1)
    assert world.contents() == []
    world.send("b")
    world.restart()
    assert world.contents() == ["b"]


def test_browsing_takes_nothing() -> None:
    """It shows what is committed in order, leased, ready or on disk; not what is delayed."""
    world = World()
    queue = world.declare()
    taker = Taker(queue, credit=2)
    for first in range(0, 3000, 500):
        world.send(*map(str, range(first, first + 500)))
    taker.acknowledge("1")
    world.publish("not committed")
    found = [text(each.message) for each in queue.browse()]
    assert found == [str(each) for each in range(3000) if each != 1]
    numbers = [each.number for each in queue.browse(after=700)]
    assert numbers == list(range(701, 3001))
    assert [each.number for each in queue.browse(after=2990)] == list(range(2991, 3001))
    assert queue.statistics().delivered == 3


def test_redriven_dead_letters_go_back_to_where_they_were() -> None:
    """Without the marks of the dead letter, to their own queue each; the others stay in order."""
    world = World()
    one = Taker(world.declare("one", dead_letter="dead"))
    two = Taker(world.declare("two", dead_letter="dead"))
    world.send("a", topic="$queue/one", user_properties=(("k", "v"),))
    world.send("b", topic="$queue/two")
    world.send("c", topic="$queue/one")
    one.reject("a")
    two.reject("b")
    one.reject("c")
    world.send("stray", topic="$queue/dead")
    dead = world.queue("dead")
    world.queues.delete("two")
    world.tick()
    assert dead.redrive(1) == 1
    world.tick()
    assert dead.redrive(10) == 1
    world.tick()
    assert one.new() == ["a", "c", "a", "c"]
    about = one.got[2][1].properties
    assert about is not None
    assert about.user_properties == (("k", "v"),)
    assert world.contents("dead") == ["b", "stray"]
    assert Taker(dead).new() == ["b", "stray"]


@pytest.mark.slow
def test_a_redrive_is_bounded() -> None:
    """One call sends so many, the next call the next ones, in order."""
    world = World()
    taker = Taker(world.declare(dead_letter="dead"), credit=10**6)
    count = REDRIVEN_MAX + 10
    world.send(*map(str, range(count)))
    for lease in list(taker.unsettled):
        del taker.unsettled[lease]
        taker.consumer.reject(lease)
    world.tick()
    taker.new()
    assert world.queue("dead").redrive(10**9) == REDRIVEN_MAX
    world.tick()
    assert world.queue("dead").redrive(10**9) == 10
    world.tick()
    assert taker.new() == [str(each) for each in range(count)]
    assert world.queue("dead").redrive(10**9) == 0


def test_a_redrive_leaves_what_its_queue_has_no_room_for() -> None:
    """It waits in the dead letter queue for the next call."""
    world = World()
    taker = Taker(world.declare(dead_letter="dead", max_messages=1))
    world.send("a")
    taker.reject("a")
    world.send("b")
    assert world.queue("dead").redrive(10) == 0
    taker.acknowledge("b")
    world.tick()
    assert world.queue("dead").redrive(10) == 1


def test_statistics_say_how_a_queue_stands() -> None:
    """Every number is that of what happened."""
    world = World()
    queue = world.declare(dead_letter="dead", max_messages=6, deduplication_s=60)
    taker = Taker(queue, credit=4)
    world.send("a", "b", "c", "d", "e")
    world.advance(10)
    world.send("late", delay_s=100, message_id="m")
    world.send("late", delay_s=100, message_id="m")
    with pytest.raises(Refused):
        world.send("too many")
    taker.acknowledge("a")
    taker.reject("b")
    taker.nack("c", 50)
    world.tick()
    found = queue.statistics()
    assert found.messages == 4
    assert found.bytes == sum(len("$queue/q") + len(each) for each in ("c", "d", "e", "late")) + 1
    assert (found.leased, found.delayed, found.consumers) == (2, 2, 1)
    assert found.oldest_s == 10
    assert (found.published, found.delivered, found.acknowledged) == (6, 5, 1)
    assert (found.returned, found.buried, found.duplicates) == (1, 1, 1)


def test_a_thousand_consumers_leave_without_delay() -> None:
    """Whoever comes and goes does not slow down the others; nothing is kept of them."""
    world = World()
    queue = world.declare()
    takers = [Taker(queue, credit=1) for _ in range(1000)]
    world.send(*map(str, range(1000)))
    assert all(len(taker.got) == 1 for taker in takers)
    for taker in takers:
        taker.leave()
    assert not queue.consumers
    last = Taker(queue, credit=1000)
    assert last.new() == [str(each) for each in range(1000)]


@pytest.mark.parametrize("key", [b"q", b"\0q"], ids=["the first", "the second"])
def test_a_definition_is_recorded_twice(key: bytes) -> None:
    """One of the two is damaged: the queue is as it was, and both are good again."""
    world = World()
    before = world.declare(max_messages=10, bindings=("t",)).definition
    world.send("a", "b", topic="t")
    world.disk.lose_record(Kind.QUEUE, key)
    for _ in range(2):
        world.restart()
        world.tick()
        assert world.queue().definition == before
        assert world.contents() == ["a", "b"]
        assert world.disk.count(Kind.QUEUE) == 2
        key = b"q" if key != b"q" else b"\0q"
        world.disk.lose_record(Kind.QUEUE, key)
    world.restart()
    world.queues.delete("q")
    world.tick()
    assert world.disk.count(Kind.QUEUE) == 0
