"""Queues with canaries among their consumers: who gets what, and that nothing waits for ever."""

from itertools import pairwise

import msgpack
import pytest

from ganglion.broker.core import queue_sides
from ganglion.broker.core.canaries import is_for_canaries
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.store import Kind
from tests.broker.core.virtual_queues import Taker, World

SHARE = 0.25
KEYS = [f"k{number}" for number in range(40)]
FOR_CANARIES = [key for key in KEYS if is_for_canaries(SHARE, key, 0)]
FOR_OTHERS = [key for key in KEYS if key not in FOR_CANARIES]
KEY, *_ = FOR_CANARIES
"""One that is for canaries."""


def keyed(world: World, *keys: str, delay_s: float | None = None) -> None:
    """Send messages whose payloads are their keys."""
    for key in keys:
        world.send(key, key=key, delay_s=delay_s)


def pair(world: World, credit: int = 1000, canary_credit: int = 1000) -> tuple[Taker, Taker]:
    """A consumer and a canary of the queue, of which neither is the first to take something."""
    queue = world.queue()
    other, canary = Taker(queue, 0), Taker(queue, 0, is_canary=True)
    other.credit, canary.credit = credit, canary_credit
    other.consumer.pull()
    canary.consumer.pull()
    return other, canary


@pytest.fixture
def world() -> World:
    """With a queue that has a share for canaries."""
    world = World()
    world.declare(canary_share=SHARE, backoff_s=4, lease_s=60)
    return world


# -- who gets what -------------------------------------------------------------------------------


def test_keys_go_to_their_side(world: World) -> None:
    """Each key to the side where it belongs, whatever comes in between and however often."""
    other, canary = pair(world)
    for _ in range(3):
        keyed(world, *KEYS)
        assert canary.new() == FOR_CANARIES
        assert other.new() == FOR_OTHERS


def test_what_has_no_key_is_spread(world: World) -> None:
    """A quarter goes to the canary, of what is there and of what comes one by one."""
    world.send(*map(str, range(1000)))
    other, canary = pair(world, 10_000, 10_000)
    assert abs(len(canary.new()) - 250) <= 2
    assert abs(len(other.new()) - 750) <= 2
    for number in range(400):
        world.send(str(number))
    assert abs(len(canary.new()) - 100) <= 2
    assert abs(len(other.new()) - 300) <= 2


def test_canaries_share_what_is_for_them(world: World) -> None:
    """Several on either side take turns, and get about as many each."""
    queue = world.queue()
    others = [Taker(queue, 1000) for _ in range(3)]
    canaries = [Taker(queue, 1000, is_canary=True) for _ in range(2)]
    world.send(*map(str, range(1200)))
    assert [len(each.new()) for each in others] == pytest.approx([300] * 3, abs=25)
    assert [len(each.new()) for each in canaries] == pytest.approx([150] * 2, abs=25)


def test_a_share_can_be_changed(world: World) -> None:
    """It acts at once, also on what is set aside; keys move in one direction only."""
    other, canary = pair(world, canary_credit=0)
    keyed(world, *KEYS)
    assert (other.new(), canary.new()) == (FOR_OTHERS, [])
    world.declare(canary_share=0.0)
    assert sorted(other.new()) == sorted(FOR_CANARIES)
    canary.credit = 1000
    canary.consumer.pull()
    seen: set[str] = set()
    for share in (0.0, 0.2, 0.5, 1.0):
        world.declare(canary_share=share)
        keyed(world, *KEYS)
        found = set(canary.new())
        assert found == {key for key in KEYS if is_for_canaries(share, key, 0)}
        assert found >= seen
        seen = found
    assert seen == set(KEYS)


def test_a_key_is_on_the_same_side_after_a_restart(world: World) -> None:
    """The share is part of what the queue is, and what it chooses does not depend on the process.

    What was given out before and not settled comes again, to the same side.
    """
    other, canary = pair(world)
    keyed(world, *KEYS)
    world.send(*map(str, range(100)))
    before = canary.new(), other.new()
    world.restart()
    assert world.queue().definition.canary_share == SHARE
    other, canary = pair(world)
    assert (canary.new(), other.new()) == before


def test_without_canaries_all_is_for_the_others(world: World) -> None:
    """Before one comes, and when the last one has left."""
    other = Taker(world.queue(), 1000)
    keyed(world, *KEYS)
    assert other.new() == KEYS
    canary = Taker(world.queue(), 0, is_canary=True)
    keyed(world, *KEYS)
    assert other.new() == FOR_OTHERS
    canary.leave()
    assert other.new() == FOR_CANARIES
    keyed(world, *KEYS)
    assert other.new() == KEYS


def test_with_canaries_alone_they_get_everything(world: World) -> None:
    """The last other one may leave, and take with it who waits for what."""
    canary = Taker(world.queue(), 1000, is_canary=True)
    keyed(world, *KEYS)
    assert canary.new() == KEYS
    other = Taker(world.queue(), 0)
    keyed(world, *KEYS)
    assert canary.new() == FOR_CANARIES
    other.leave()
    assert canary.new() == FOR_OTHERS
    other = Taker(world.queue(), 1000)
    keyed(world, *KEYS)
    assert (canary.new(), other.new()) == (FOR_CANARIES, FOR_OTHERS)


def test_a_share_of_nothing_stops_a_canary() -> None:
    """It is the default: a canary is idle until somebody says how much it is to get."""
    world = World()
    world.declare()
    other, canary = pair(world)
    world.send(*KEYS)
    assert (other.new(), canary.new()) == (KEYS, [])


def test_with_all_for_canaries_the_others_stand_by(world: World) -> None:
    """They get what a canary could not do."""
    world.declare(canary_share=1.0)
    other, canary = pair(world)
    keyed(world, *KEYS)
    assert (other.new(), canary.new()) == ([], KEYS)
    canary.nack(KEYS[0], 0)
    assert (other.new(), canary.new()) == ([KEYS[0]], [])


def test_a_consumer_can_become_a_canary(world: World) -> None:
    """And be none again; what it has it keeps."""
    first, second = Taker(world.queue(), 1000), Taker(world.queue(), 1000)
    second.consumer.mark(is_canary=True)
    keyed(world, *KEYS)
    assert (first.new(), second.new()) == (FOR_OTHERS, FOR_CANARIES)
    assert world.queue().statistics().canaries == 1
    second.consumer.mark(is_canary=False)
    keyed(world, *KEYS)
    assert len(first.new()) == len(second.new()) == len(KEYS) // 2
    assert world.queue().statistics().canaries == 0
    second.acknowledge(KEY)


# -- what a canary does not do -------------------------------------------------------------------


def test_what_a_canary_gives_back_is_for_the_others(world: World) -> None:
    """At once or later: it fails there once at most. What comes next with the key is new."""
    other, canary = pair(world)
    keyed(world, KEY)
    canary.nack(KEY, 0)
    assert (other.new(), canary.new()) == ([KEY], [KEY])
    keyed(world, KEY)
    canary.nack(KEY)
    world.tick()
    world.advance(4)
    assert (other.new(), canary.new()) == ([KEY], [KEY])


def test_what_another_consumer_gives_back_does_not_go_to_a_canary(world: World) -> None:
    """Not even where it comes back late, under a number that would be the canary's."""
    other, canary = pair(world)
    world.send(*map(str, range(100)))
    canary.new()
    failed = other.new()
    for payload in failed:
        other.nack(payload)
    world.tick()
    world.advance(4)
    assert sorted(other.new()) == sorted(failed)
    assert canary.new() == []


def test_what_a_canary_leaves_behind_is_for_the_others(world: World) -> None:
    """It crashes, or lets the lease run out."""
    queue = world.queue()
    other, canary = pair(world)
    stays = Taker(queue, 0, is_canary=True)
    keyed(world, *FOR_CANARIES)
    canary.leave()
    assert other.new() == FOR_CANARIES
    stays.credit = 1
    stays.consumer.pull()
    keyed(world, KEY)
    assert stays.new() == [KEY]
    world.advance(60 + 4)
    assert KEY in other.new()
    assert stays.new() == []


def test_a_failure_at_a_canary_is_remembered_over_a_restart(world: World) -> None:
    """The message still is not given to canaries."""
    other, canary = pair(world, credit=0)
    keyed(world, KEY)
    canary.nack(KEY, 0)
    world.tick()
    assert other.new() == []
    world.restart()
    other, canary = pair(world)
    assert (other.new(), canary.new()) == ([KEY], [])


def test_failures_at_canaries_count(world: World) -> None:
    """With one delivery a message has no second chance elsewhere; a rejected one never has."""
    world.declare(max_deliveries=1, canary_share=SHARE, dead_letter="dead")
    _, canary = pair(world)
    keyed(world, *FOR_CANARIES[:2])
    canary.nack(FOR_CANARIES[0], 0)
    canary.reject(FOR_CANARIES[1])
    world.tick()
    assert world.contents("dead") == FOR_CANARIES[:2]


def test_a_dead_letter_that_goes_back_is_new(world: World) -> None:
    """It may be a canary's again: whoever sends it back believes that it can be done."""
    world.declare(canary_share=SHARE, dead_letter="dead")
    other, canary = pair(world)
    keyed(world, KEY)
    canary.reject(KEY)
    world.tick()
    assert world.queue("dead").redrive(10) == 1
    world.tick()
    assert (other.new(), canary.new()) == ([], [KEY, KEY])


# -- canaries without room -----------------------------------------------------------------------


def test_a_message_waits_for_its_canary(world: World) -> None:
    """The others go on meanwhile; when the canary has room it gets what is its own, in order."""
    other, canary = pair(world, canary_credit=1)
    keyed(world, *KEYS)
    assert other.new() == FOR_OTHERS
    assert canary.new() == FOR_CANARIES[:1]
    assert world.queue().statistics().waiting_for_canaries == len(FOR_CANARIES) - 1
    world.advance(59)
    assert other.new() == []
    for key, following in pairwise(FOR_CANARIES):
        canary.acknowledge(key)
        assert canary.new() == [following]
    assert other.new() == []


def test_nothing_waits_for_a_canary_longer_than_a_lease(world: World) -> None:
    """Then all goes to the others, and what comes next at once, until a canary has room again."""
    other, canary = pair(world, canary_credit=0)
    keyed(world, *FOR_CANARIES[:2])
    world.advance(30)
    keyed(world, FOR_CANARIES[2])
    world.advance(29.9)
    assert other.new() == []
    world.advance(0.2)
    assert other.new() == FOR_CANARIES[:3]
    keyed(world, *KEYS)
    assert other.new() == KEYS
    canary.credit = 1000
    canary.consumer.pull()
    keyed(world, *KEYS)
    assert (other.new(), canary.new()) == (FOR_OTHERS, FOR_CANARIES)


def test_a_canary_that_is_slow_keeps_what_it_can_do(world: World) -> None:
    """It is not stalled as long as nothing has waited for it too long."""
    other, canary = pair(world, canary_credit=1)
    for key in FOR_CANARIES[:6]:
        keyed(world, key)
        world.advance(40)
        assert canary.new() == [key]
        canary.acknowledge(key)
    assert other.new() == []


def test_a_shorter_lease_is_a_shorter_wait(world: World) -> None:
    """For what waits already, too."""
    other, _ = pair(world, canary_credit=0)
    keyed(world, KEY)
    world.declare(canary_share=SHARE, lease_s=5)
    world.advance(5)
    assert other.new() == [KEY]


def test_a_paused_queue_blames_no_canary(world: World) -> None:
    """What waited meanwhile is for the canary still."""
    other, canary = pair(world, canary_credit=0)
    keyed(world, KEY)
    world.queues.set_paused("q", True)
    world.advance(500)
    canary.credit = 10
    canary.consumer.pull()
    world.queues.set_paused("q", False)
    assert (other.new(), canary.new()) == ([], [KEY])


def test_too_much_that_waits_for_canaries_makes_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes to the others, and they are never held up."""
    monkeypatch.setattr(queue_sides, "_ASIDE_MAX", 3)
    other, canary = pair(world, canary_credit=0)
    keyed(world, *FOR_CANARIES)
    assert other.new() == FOR_CANARIES[:-2]
    keyed(world, *FOR_OTHERS)
    assert other.new() == FOR_OTHERS
    canary.credit = 10
    canary.consumer.pull()
    assert canary.new() == FOR_CANARIES[-2:]


def test_large_messages_that_wait_for_canaries_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their bytes."""
    monkeypatch.setattr(queue_sides, "_ASIDE_BYTES_MAX", 2000)
    other, canary = pair(world, canary_credit=0)
    for number in range(5):
        world.send(f"{number}{'x' * 900}", key=KEY)
    assert [each[0] for each in other.new()] == ["0", "1", "2"]
    canary.credit = 10
    canary.consumer.pull()
    assert [each[0] for each in canary.new()] == ["3", "4"]


def test_a_canary_with_room_gets_all_that_is_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much the others could take, and however little may be set aside."""
    monkeypatch.setattr(queue_sides, "_ASIDE_MAX", 2)
    world.queues.set_paused("q", True)
    other, canary = pair(world)
    keyed(world, *KEYS * 3)
    world.queues.set_paused("q", False)
    assert canary.new() == FOR_CANARIES * 3
    assert other.new() == FOR_OTHERS * 3


def test_a_canary_reads_past_what_others_have_no_room_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a bound; it goes on when they do."""
    other, canary = pair(world, credit=0)
    keyed(world, *KEYS)
    assert canary.new() == FOR_CANARIES
    other.credit = 1000
    other.consumer.pull()
    assert other.new() == FOR_OTHERS
    other.credit = 0
    other.unsettled.clear()
    monkeypatch.setattr(queue_sides, "_ASIDE_MAX", 2)
    keyed(world, *FOR_OTHERS[:3], KEY)
    assert canary.new() == []
    other.credit = 2
    other.consumer.pull()
    assert (other.new(), canary.new()) == (FOR_OTHERS[:2], [KEY])


# -- with other options --------------------------------------------------------------------------


def test_priorities_hold_on_either_side() -> None:
    """What is set aside comes in their order."""
    world = World()
    world.declare(canary_share=SHARE, priorities=3)
    other, canary = pair(world, credit=0, canary_credit=0)
    for priority in (0, 2, 1):
        world.send(f"c{priority}", key=KEY, priority=priority)
        world.send(f"o{priority}", key=FOR_OTHERS[0], priority=priority)
    for taker in (other, canary):
        taker.credit = 10
        taker.consumer.pull()
    assert other.new() == ["o2", "o1", "o0"]
    assert canary.new() == ["c2", "c1", "c0"]


class TestOrderedByKey:
    """One message of a key at a time, in order, whoever gets it."""

    @pytest.fixture
    def world(self) -> World:
        """With an ordered queue."""
        world = World()
        world.declare(canary_share=SHARE, ordered_by_key=True, backoff_s=4)
        return world

    def test_what_failed_at_a_canary_holds_its_key(self, world: World) -> None:
        """The next one waits until another consumer has done it, and is the canary's again."""
        other, canary = pair(world)
        world.send("1", "2", key=KEY)
        canary.nack("1")
        assert canary.new() == ["1"]
        world.advance(4)
        assert other.new() == ["1"]
        assert canary.new() == []
        other.acknowledge("1")
        assert canary.new() == ["2"]

    def test_what_failed_at_a_canary_waits_for_the_others(self, world: World) -> None:
        """At once: the canary does not get what is behind it, though it has room."""
        other, canary = pair(world, credit=0)
        world.send("1", "2", key=KEY)
        canary.nack("1", 0)
        world.send("3", key=KEY)
        assert canary.new() == ["1"]
        other.credit = 1
        other.consumer.pull()
        assert other.new() == ["1"]
        other.acknowledge("1")
        assert (canary.new(), other.new()) == (["2"], [])

    def test_what_is_set_aside_is_not_overtaken(self, world: World) -> None:
        """Not by what goes to the others because the canary takes nothing."""
        other, canary = pair(world, credit=1, canary_credit=0)
        world.send("1", "2", key=KEY)
        world.advance(60)
        assert other.new() == ["1"]
        canary.credit = 10
        canary.consumer.pull()
        world.send("3", key=KEY)
        assert canary.new() == []
        other.acknowledge("1")
        assert canary.new() == ["2"]
        canary.acknowledge("2")
        assert canary.new() == ["3"]

    def test_order_is_kept_when_a_canary_comes(self, world: World) -> None:
        """What came back before, and waits for a consumer with room, is still the first."""
        other = Taker(world.queue())
        world.send("1", "2", key=KEY)
        other.credit = 0
        other.nack("1", 0)
        other.new()
        canary = Taker(world.queue(), is_canary=True)
        assert canary.new() == []
        other.credit = 1
        other.consumer.pull()
        assert other.new() == ["1"]

    def test_it_can_be_turned_on_while_something_is_set_aside(self, world: World) -> None:
        """From then on one message of a key is out at a time."""
        world.declare(canary_share=SHARE, ordered_by_key=False)
        _, canary = pair(world, canary_credit=0)
        world.send("1", "2", key=KEY)
        world.declare(canary_share=SHARE, ordered_by_key=True)
        canary.credit = 10
        canary.consumer.pull()
        assert canary.new() == ["1"]
        canary.acknowledge("1")
        assert canary.new() == ["2"]

    def test_what_is_dropped_from_aside_frees_its_key(self, world: World) -> None:
        """Another message with the key does not wait for one that is gone."""
        world.declare(
            canary_share=SHARE, ordered_by_key=True, max_messages=2, overflow="drop-oldest"
        )
        _, canary = pair(world, canary_credit=0)
        world.send("1", "2", key=KEY)
        world.send("3", key=KEY)
        canary.credit = 10
        canary.consumer.pull()
        assert canary.new() == ["2"]
        canary.acknowledge("2")
        assert canary.new() == ["3"]


def test_a_single_active_consumer_has_no_canaries() -> None:
    """A queue has one or the other; the mark of a consumer means nothing there."""
    world = World()
    with pytest.raises(InvalidDefinition, match=r"canary_share.*single_active_consumer"):
        world.declare(canary_share=0.1, single_active_consumer=True)
    world.declare(single_active_consumer=True)
    canary = Taker(world.queue(), is_canary=True)
    other = Taker(world.queue())
    world.send("1")
    assert (canary.new(), other.new()) == (["1"], [])


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_is_a_part(share: float) -> None:
    """Nothing else can be meant."""
    with pytest.raises(InvalidDefinition, match=r"option canary_share is .*; it must be 0 to 1"):
        World().declare(canary_share=share)


def test_a_delayed_message_is_for_its_side_when_it_is_due(world: World) -> None:
    """It was never delivered."""
    other, canary = pair(world)
    keyed(world, *KEYS, delay_s=5.0)
    world.advance(5)
    assert (other.new(), canary.new()) == (FOR_OTHERS, FOR_CANARIES)


def test_what_is_set_aside_expires(world: World) -> None:
    """As if it was not: nobody has to ask for it."""
    world.declare(canary_share=SHARE, ttl_s=10, dead_letter="dead")
    pair(world, credit=0, canary_credit=0)
    keyed(world, *FOR_CANARIES[:3], *FOR_OTHERS[:3])
    world.advance(10)
    assert world.queue().count == 0
    assert sorted(world.contents("dead")) == sorted(FOR_CANARIES[:3] + FOR_OTHERS[:3])


def test_the_oldest_is_dropped_wherever_it_waits(world: World) -> None:
    """What is set aside is not younger than what is not."""
    world.declare(canary_share=SHARE, max_messages=4, overflow="drop-oldest")
    pair(world, credit=0, canary_credit=1)
    keyed(world, *FOR_CANARIES[:2], *FOR_OTHERS[:2], *FOR_CANARIES[2:4])
    assert world.contents() == [FOR_CANARIES[0], FOR_OTHERS[1], *FOR_CANARIES[2:4]]


def test_a_purge_forgets_what_is_set_aside(world: World) -> None:
    """What the consumers have stays."""
    other, canary = pair(world, credit=1, canary_credit=1)
    keyed(world, *KEYS)
    assert world.queue().purge() == len(KEYS) - 2
    other.acknowledge(FOR_OTHERS[0])
    canary.acknowledge(FOR_CANARIES[0])
    assert (other.new(), canary.new()) == (FOR_OTHERS[:1], FOR_CANARIES[:1])
    assert world.queue().count == 0


def test_a_deleted_queue_ends_both_sides(world: World) -> None:
    """And leaves nothing behind that could wake up."""
    takers = pair(world, credit=0, canary_credit=0)
    keyed(world, *KEYS)
    world.queues.delete("q")
    world.tick()
    assert all(taker.is_ended for taker in takers)
    world.advance(1000)
    assert [taker.new() for taker in takers] == [[], []]


def test_statistics_tell_of_canaries(world: World) -> None:
    """How many there are, what waits for them, and what they were given."""
    _, canary = pair(world, canary_credit=2)
    keyed(world, *KEYS)
    found = world.queue().statistics()
    assert (found.consumers, found.canaries) == (2, 1)
    assert found.waiting_for_canaries == len(FOR_CANARIES) - 2
    assert (found.delivered, found.delivered_to_canaries) == (len(FOR_OTHERS) + 2, 2)
    canary.leave()
    found = world.queue().statistics()
    assert (found.consumers, found.canaries, found.waiting_for_canaries) == (1, 0, 0)
    assert found.delivered_to_canaries == 2


def test_a_definition_from_before_there_were_canaries() -> None:
    """A node reads what an earlier version has recorded."""
    world = World()
    world.declare(lease_s=7)
    for key, value in world.disk.scan(Kind.QUEUE):
        record, *others = msgpack.unpackb(value)
        del record["canary_share"]
        world.commits.put(Kind.QUEUE, key, msgpack.packb([record, *others]))
    world.tick()
    world.restart()
    definition = world.queue().definition
    assert (definition.lease_s, definition.canary_share) == (7, 0)


def test_a_thousand_consumers_and_a_canary_that_comes_and_goes(world: World) -> None:
    """All have their sides at any time."""
    queue = world.queue()
    others = [Taker(queue) for _ in range(1000)]
    for _ in range(3):
        canary = Taker(queue, is_canary=True)
        keyed(world, *KEYS)
        assert canary.new() == FOR_CANARIES
        canary.acknowledge(*FOR_CANARIES)
        canary.leave()
    assert sum(len(other.new()) for other in others) == 3 * len(FOR_OTHERS)
