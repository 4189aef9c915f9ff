"""In what order a queue gives out: priorities, and keys of which one message at a time is out."""

import pytest

from tests.broker.core.virtual_queues import Taker, World, text


def test_higher_priorities_come_first() -> None:
    """Among equals the order is that of arrival; a priority above the highest is the highest."""
    world = World()
    taker = Taker(world.declare(priorities=3), credit=0)
    for payload, priority in [("a", 0), ("b", 1), ("c", 2), ("d", 9), ("e", 1), ("f", None)]:
        world.publish(payload, priority=priority)
    world.tick()
    taker.credit = 10
    taker.consumer.pull()
    assert taker.new() == ["c", "d", "b", "e", "a", "f"]
    world.tick()
    world.restart()
    assert Taker(world.queue()).new() == ["c", "d", "b", "e", "a", "f"]


def test_what_came_back_is_first_of_its_priority_only() -> None:
    """A higher priority overtakes it; what is behind it in its own does not."""
    world = World()
    queue = world.declare(priorities=2)
    leaving = Taker(queue, credit=2)
    world.send("a", "b", "c")
    leaving.leave()
    world.send("high", priority=1)
    assert Taker(queue).new() == ["high", "a", "b", "c"]


def test_a_delayed_message_keeps_its_priority() -> None:
    """It comes before lower ones when it is due."""
    world = World()
    taker = Taker(world.declare(priorities=2), credit=1)
    world.send("a", "b")
    world.send("high", priority=1, delay_s=5)
    world.advance(6)
    taker.acknowledge("a")
    assert taker.new() == ["a", "high"]


def test_without_priorities_they_say_nothing() -> None:
    """A queue with one level takes messages as they come."""
    world = World()
    world.declare()
    world.publish("a", priority=0)
    world.publish("b", priority=9)
    world.tick()
    assert Taker(world.queue()).new() == ["a", "b"]


def keyed(world: World, *payloads: str, **options: object) -> None:
    """Publish messages whose key is their first character."""
    for payload in payloads:
        world.publish(payload, key=payload[0], **options)  # type: ignore[arg-type] # any of them
    world.tick()


def test_of_one_key_one_message_at_a_time_is_out() -> None:
    """The next one comes when it is acknowledged; other keys and messages without one go on."""
    world = World()
    queue = world.declare(ordered_by_key=True)
    one, two = Taker(queue), Taker(queue)
    keyed(world, "a1", "a2", "b1", "a3", "b2")
    world.send("free", "free")
    assert sorted(one.new() + two.new()) == ["a1", "b1", "free", "free"]
    holder = one if "a1" in map(text, one.unsettled.values()) else two
    holder.acknowledge("a1")
    assert one.new() + two.new() == ["a2"]


def test_a_leaving_consumer_frees_its_keys_in_order() -> None:
    """Another gets what it had, before what was set aside behind it."""
    world = World()
    queue = world.declare(ordered_by_key=True)
    leaving = Taker(queue, credit=3)
    keyed(world, "a1", "b1", "a2", "b2", "c1")
    assert leaving.new() == ["a1", "b1", "c1"]
    leaving.leave()
    staying = Taker(queue)
    assert staying.new() == ["a1", "b1", "c1"]
    staying.acknowledge("a1", "b1")
    assert staying.new() == ["a2", "b2"]


def test_a_nack_with_delay_keeps_the_place_of_its_key() -> None:
    """What is behind it with this key waits, over a restart too; others go on."""
    world = World()
    taker = Taker(world.declare(ordered_by_key=True))
    keyed(world, "a1", "a2", "b1")
    taker.nack("a1", 10)
    world.tick()
    assert taker.new() == ["a1", "b1"]
    assert world.queue().statistics().delayed == 1
    world.restart(5)
    taker = Taker(world.queue())
    assert taker.new() == ["b1"]
    world.advance(4.9)
    assert taker.new() == []
    world.advance(0.2)
    assert [(text(message), attempts) for _, message, attempts in taker.got[1:]] == [("a1", 1)]
    taker.acknowledge("a1")
    assert taker.new() == ["a1", "a2"]


def test_a_lease_that_runs_out_keeps_the_place_of_its_key() -> None:
    """The message comes again before those behind it, to another consumer."""
    world = World()
    queue = world.declare(ordered_by_key=True, lease_s=10, backoff_s=2)
    slow, quick = Taker(queue, credit=1), Taker(queue, credit=1)
    keyed(world, "a1", "a2")
    assert slow.new() == ["a1"]
    world.advance(13)
    assert quick.new() == ["a1"]
    quick.acknowledge("a1")
    assert quick.new() == ["a2"]


def test_a_buried_message_frees_its_key() -> None:
    """Rejected, or delivered too often: the next one with its key comes."""
    world = World()
    taker = Taker(world.declare(ordered_by_key=True, max_deliveries=1))
    keyed(world, "a1", "a2", "a3")
    taker.reject("a1")
    taker.nack("a2")
    assert taker.new() == ["a1", "a2", "a3"]


def test_what_goes_without_being_given_out_frees_no_key() -> None:
    """A message that expires or is dropped leaves the key with the consumer that has it."""
    world = World()
    queue = world.declare(ordered_by_key=True, max_messages=3, overflow="drop-oldest")
    taker = Taker(queue, credit=1)
    keyed(world, "a1")
    keyed(world, "a2", expires_s=1)
    keyed(world, "a3", "a4", "a5")  # a2 and more of them go
    world.advance(2)
    other = Taker(queue)
    assert taker.new() == ["a1"]
    assert other.new() == []
    taker.credit = 0
    taker.acknowledge("a1")
    assert other.new() == ["a4"]
    other.acknowledge("a4")
    assert other.new() == ["a5"]


def test_what_is_dropped_while_it_waits_for_its_key_lets_the_next_one_pass() -> None:
    """A returned message that expires does not leave the ones behind it waiting for good."""
    world = World()
    queue = world.declare(ordered_by_key=True)
    taker = Taker(queue, credit=5)
    keyed(world, "a1", expires_s=5)
    keyed(world, "a2", "a3")
    assert taker.new() == ["a1"]
    queue.pause()
    taker.nack("a1", 0)
    world.tick()
    world.advance(6)
    queue.resume()
    assert taker.new() == ["a2"]
    taker.acknowledge("a2")
    assert taker.new() == ["a3"]


def test_within_a_key_a_higher_priority_comes_first() -> None:
    """Among those that wait, whatever the order in which they were found; one at a time."""
    world = World()
    taker = Taker(world.declare(ordered_by_key=True, priorities=3))
    keyed(world, "a1")
    keyed(world, "a2")
    keyed(world, "a3", priority=1)
    keyed(world, "a4", priority=2)
    keyed(world, "a5", priority=1)
    order = ["a1", "a4", "a3", "a5", "a2"]
    for payload in order:
        assert taker.new() == [payload]
        taker.acknowledge(payload)
    assert taker.new() == []


def test_a_redelivered_message_stays_before_those_behind_it_whatever_comes() -> None:
    """A returned one that a higher priority overtakes still comes before the later ones."""
    world = World()
    queue = world.declare(ordered_by_key=True, priorities=2)
    taker = Taker(queue, credit=1)
    keyed(world, "a1", "a2", "a3")
    taker.nack("a1", 3)
    world.tick()
    keyed(world, "a4", priority=1)
    world.advance(4)
    got = taker.new()[1:]
    while taker.unsettled:
        taker.acknowledge(got[-1])
        got += taker.new()
    assert got == ["a4", "a1", "a2", "a3"]


@pytest.mark.slow
def test_so_much_that_waits_for_keys_holds_up_the_rest() -> None:
    """Memory is bounded: beyond it other keys wait too, and go on when the first one is done."""
    world = World()
    queue = world.declare(ordered_by_key=True)
    taker = Taker(queue, credit=10)
    for first in range(0, 5000, 500):
        keyed(world, *(f"a{each}" for each in range(first, first + 500)))
    keyed(world, "b1")
    assert taker.new() == ["a0"]
    done = 0
    while queue.count > 1:
        payload = next(text(each) for each in taker.unsettled.values() if text(each) != "b1")
        assert payload == f"a{done}"
        taker.acknowledge(payload)
        done += 1
        if done % 100 == 0:
            world.tick()
    assert "b1" in taker.new()


def test_keys_can_be_turned_off_and_on() -> None:
    """Turned off all that waits for a key may go; turned on the order holds for what comes."""
    world = World()
    queue = world.declare(ordered_by_key=True)
    taker = Taker(queue)
    keyed(world, "a1", "a2", "a3")
    assert taker.new() == ["a1"]
    world.declare(ordered_by_key=False)
    assert taker.new() == ["a2", "a3"]
    world.declare(ordered_by_key=True)
    keyed(world, "a4", "a5")
    assert taker.new() == ["a4"]
    taker.acknowledge("a1", "a2", "a3")
    assert taker.new() == []
    taker.acknowledge("a4")
    assert taker.new() == ["a5"]


def test_a_purge_forgets_what_waits_for_a_key() -> None:
    """Held, resting and set aside; the key stays with the consumer that has its message."""
    world = World()
    queue = world.declare(ordered_by_key=True)
    taker = Taker(queue)
    keyed(world, "a1", "a2", "b1", "b2")
    taker.nack("b1", 5)
    world.tick()
    assert queue.purge() == 3
    keyed(world, "a3", "b3")
    assert taker.new() == ["a1", "b1", "b3"]
    taker.acknowledge("a1")
    assert taker.new() == ["a3"]
    world.advance(10)
    assert taker.new() == []


def test_a_redrive_takes_what_waits_for_a_key() -> None:
    """What cannot go back stays in order, and holds up no other one."""
    world = World()
    sources = {name: Taker(world.declare(name, dead_letter="dead")) for name in ("x", "y")}
    dead = world.declare("dead", ordered_by_key=True)
    for name, payload in (("x", "k1"), ("y", "k2"), ("x", "k3"), ("y", "k4")):
        keyed(world, payload, topic=f"$queue/{name}")
        sources[name].reject(payload)
        world.tick()
    world.queues.delete("x")
    looking = Taker(dead, credit=1)
    assert looking.new() == ["k1"]
    assert dead.redrive(10) == 2
    world.tick()
    assert sources["y"].new()[-2:] == ["k2", "k4"]
    looking.acknowledge("k1")
    assert looking.new() == ["k3"]
