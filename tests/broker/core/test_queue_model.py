"""A queue against a model in plain Python, whatever its publishers, consumers and the clock do.

The model knows what is in the queue, where each message is and when it may be given out. It holds
the queue to this: what was acknowledged does not come back, nothing is lost, what is given out is
what may come next (by priority, place and key), canaries get only what is for them, and the counts
are exact, also after a crash.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ganglion.broker.core import backlog as backlog_module
from ganglion.broker.core import queue_sides
from ganglion.broker.core.canaries import is_for_canaries
from ganglion.broker.store import Kind
from tests.broker.core.virtual_queues import Taker, World, text

WINDOW, CHUNK = 8, 3
ASIDE = 4
PRIORITIES = 2
MAX_DELIVERIES = 3
LEASE_S = 60


@dataclass
class Held:
    """One message of the model."""

    payload: str
    key: str | None
    priority: int
    place: int
    """Its turn among those of its priority."""
    attempts: int = 0
    due: float = 0.0
    """When it may be given out; it keeps its place until then if its key is ordered."""
    is_shared: bool = False
    """It waits in the other queue too."""
    is_delayed: bool = False
    """It gets a new place when it is due."""


SHARES = st.sampled_from([0.0, 0.4, 0.6, 1.0])


class QueueModel(RuleBasedStateMachine):
    """One queue, bound to a topic beside another queue that shares the payloads."""

    def __init__(self) -> None:
        super().__init__()
        patch = self.patch = pytest.MonkeyPatch()
        patch.setattr(backlog_module, "_WINDOW_MESSAGES", WINDOW)
        patch.setattr(backlog_module, "_CHUNK_MESSAGES_MAX", CHUNK)
        patch.setattr(queue_sides, "_ASIDE_MAX", ASIDE)
        self.world = World()
        self.takers: list[Taker] = []
        self.messages: dict[str, Held] = {}
        self.gone: set[str] = set()
        """Acknowledged, buried or purged."""
        self.dead: list[str] = []
        self.number = 0

    def teardown(self) -> None:
        """Take the small bounds back."""
        self.patch.undo()

    @initialize(ordered=st.booleans(), single=st.booleans(), share=SHARES)
    def declare(self, ordered: bool, single: bool, share: float) -> None:
        """The queue is made, of one of several kinds."""
        self.ordered = ordered
        self.world.declare(
            bindings=("t",),
            priorities=PRIORITIES,
            ordered_by_key=ordered,
            single_active_consumer=single,
            canary_share=0.0 if single else share,
            max_deliveries=MAX_DELIVERIES,
            dead_letter="dead",
            lease_s=LEASE_S,
            backoff_s=4,
        )
        self.world.declare("copy", bindings=("t",))
        self._look()

    # -- the model -------------------------------------------------------------------------------

    def _is_leased(self, payload: str) -> bool:
        return any(
            text(message) == payload
            for taker in self.takers
            for lease, message in taker.unsettled.items()
            if lease in taker.consumer.leases
        )

    def _look(self) -> None:
        """The tick ends; see what came to whom, and whether it might."""
        self.world.tick()
        for taker in self.takers:
            for payload in taker.new():
                held = self.messages.get(payload)
                assert held is not None, f"{payload} is gone, and came back"
                if self._is_split() and taker.consumer.is_canary:
                    assert self._is_for_canaries(held), f"{payload} is not for canaries"
                assert held.due <= self.world.now + 0.001, f"{payload} came before it was due"
            given = [text(each) for each in taker.unsettled.values()]
            assert len(given) == len(set(given))
        if self.ordered:
            keys = [
                self.messages[payload].key
                for payload in self.messages
                if self._is_leased(payload) and self.messages[payload].key
            ]
            assert len(keys) == len(set(keys)), "two messages of one key are out"
            self._check_keys()

    def _is_split(self) -> bool:
        marks = {taker.consumer.is_canary for taker in self.takers}
        return len(marks) == 2 and not self.world.queue().definition.single_active_consumer

    def _is_for_canaries(self, held: Held) -> bool:
        """Whether it can be: without a key it is by its number, which the model does not know."""
        share = self.world.queue().definition.canary_share
        if held.key is None:
            return share > 0 and not held.attempts
        return not held.attempts and is_for_canaries(share, held.key, 0)

    def _check_keys(self) -> None:
        """Of each key and priority the first one is out or waits before the others."""
        for payload, held in self.messages.items():
            if held.key and self._is_leased(payload):
                for other in self.messages.values():
                    if other.key == held.key and other.priority == held.priority:
                        assert other.is_delayed or other.place >= held.place, (
                            f"{payload} overtook {other.payload}"
                        )

    def _back(self, payload: str, delay_s: float | None) -> None:
        """It was given back, or its lease ran out."""
        held = self.messages[payload]
        held.attempts += 1
        if held.attempts >= MAX_DELIVERIES:
            self._bury(payload)
        elif delay_s != 0:
            # the backoff takes at least half of what it may
            wait_s = 2.0 * 2 ** (held.attempts - 1) if delay_s is None else delay_s
            held.due = self.world.now + wait_s
            held.is_delayed = not (self.ordered and held.key)

    def _bury(self, payload: str) -> None:
        self._forget(payload)
        self.dead.append(payload)

    def _forget(self, payload: str) -> None:
        del self.messages[payload]
        self.gone.add(payload)

    def _one_out(self, data: st.DataObject) -> tuple[Taker, str] | None:
        out = [
            (taker, text(message))
            for taker in self.takers
            for lease, message in taker.unsettled.items()
            if lease in taker.consumer.leases
        ]
        return data.draw(st.sampled_from(out)) if out else None

    # -- what may happen -------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 7),
        key=st.sampled_from([None, "a", "b"]),
        priority=st.integers(0, PRIORITIES - 1),
        delay_s=st.sampled_from([None, None, None, 3.0, 20.0]),
        topic=st.sampled_from(["t", "$queue/q"]),
    )
    def publish(
        self, count: int, key: str | None, priority: int, delay_s: float | None, topic: str
    ) -> None:
        """Messages come, alone or stored once with the copy in the other queue."""
        for _ in range(count):
            self.number += 1
            payload = f"m{self.number}"
            self.world.publish(payload, topic=topic, key=key, priority=priority, delay_s=delay_s)
            due = 0.0 if delay_s is None else self.world.now + delay_s
            self.messages[payload] = Held(
                payload,
                key,
                priority,
                self.number,
                due=due,
                is_shared=topic == "t",
                is_delayed=delay_s is not None,
            )
        self._look()

    @precondition(lambda self: len(self.takers) < 3)
    @rule(credit=st.integers(1, 5), is_canary=st.booleans())
    def join(self, credit: int, is_canary: bool) -> None:
        """A consumer comes."""
        self.takers.append(Taker(self.world.queue(), credit, is_canary=is_canary))
        self._look()

    @precondition(lambda self: self.takers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A consumer goes; what it had is ready again in its old place."""
        taker = self.takers.pop(data.draw(st.integers(0, len(self.takers) - 1)))
        had = [text(m) for lease, m in taker.unsettled.items() if lease in taker.consumer.leases]
        for payload in had:
            self._back(payload, 0)
        taker.leave()
        self._look()

    @precondition(lambda self: self.takers)
    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        """A consumer becomes a canary, or is none any more."""
        consumer = data.draw(st.sampled_from(self.takers)).consumer
        consumer.mark(is_canary=not consumer.is_canary)
        self._look()

    @rule(share=SHARES)
    def change_share(self, share: float) -> None:
        """The operator wants more or less for the canaries."""
        definition = self.world.queue().definition
        if not definition.single_active_consumer:
            self.world.queues.declare(replace(definition, canary_share=share))
            self._look()

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """A message is done."""
        if (out := self._one_out(data)) is not None:
            self._forget(out[1])
            out[0].acknowledge(out[1])
            self._look()

    @rule(data=st.data(), delay_s=st.sampled_from([0.0, 1.0, 15.0, None]))
    def nack(self, data: st.DataObject, delay_s: float | None) -> None:
        """A message could not be done now."""
        if (out := self._one_out(data)) is not None:
            self._back(out[1], delay_s)
            out[0].nack(out[1], delay_s)
            self._look()

    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        """A message can never be done."""
        if (out := self._one_out(data)) is not None:
            self._bury(out[1])
            out[0].reject(out[1])
            self._look()

    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        """A consumer needs more time, and has it."""
        if (out := self._one_out(data)) is not None:
            taker, payload = out
            assert taker.consumer.extend(taker.lease(payload), LEASE_S)

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0, 50.0]))
    def wait(self, seconds: float) -> None:
        """Time passes; messages become due, leases run out."""
        end = self.world.now + seconds
        while self.world.now < end:
            step = min(end - self.world.now, 0.5)
            before = {
                payload: (taker, lease)
                for payload in self.messages
                for taker in self.takers
                for lease, message in taker.unsettled.items()
                if text(message) == payload and lease in taker.consumer.leases
            }
            self.world.advance(step)
            for held in self.messages.values():
                if held.is_delayed and held.due + 0.001 < self.world.now - 20:
                    held.is_delayed = False
                    held.place = 2**31  # behind all that were there; nothing more is known
            for payload, (taker, lease) in before.items():
                if lease not in taker.consumer.leases:  # ran out
                    taker.unsettled.pop(lease)
                    self._back(payload, None)
                    self.messages_due_from_now(payload, step)
                    taker.consumer.pull()  # it has room that it did not know of
            self._look()

    def messages_due_from_now(self, payload: str, step: float) -> None:
        """A lease ran out within the step: the backoff may have begun at its start."""
        if payload in self.messages:
            self.messages[payload].due -= step

    @rule()
    def pause(self) -> None:
        """Nothing is given out until the queue goes on."""
        self.world.queues.set_paused("q", True)
        given = [len(taker.got) for taker in self.takers]
        for taker in self.takers:
            taker.consumer.pull()
        self.world.tick()
        assert [len(taker.got) for taker in self.takers] == given
        self.world.queues.set_paused("q", False)
        self._look()

    @rule()
    def purge(self) -> None:
        """Everything that no consumer has is gone."""
        self.world.tick()
        waiting = [payload for payload in self.messages if not self._is_leased(payload)]
        assert self.world.queue().purge() == len(waiting)
        for payload in waiting:
            self._forget(payload)
        self._look()

    @rule(publishes=st.booleans())
    def crash(self, publishes: bool) -> None:
        """The node ends at once; what was not durable never was. No consumer has anything."""
        self.world.tick()
        before = deepcopy(self.messages)
        if publishes:
            self.world.publish("never", topic="t")
        self.takers = []
        self.world.restart()
        self.messages = before
        self._look()

    @rule()
    def delete(self) -> None:
        """The queue goes with all that is in it, and comes anew."""
        definition = self.world.queue().definition
        self.world.queues.delete("q")
        assert all(taker.is_ended for taker in self.takers)
        self.takers = []
        for payload in list(self.messages):
            self._forget(payload)
        self.world.tick()
        self.world.queues.declare(definition)
        self._look()

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def counts_are_exact(self) -> None:
        """Messages and bytes in all, with consumers, and dead ones."""
        if not hasattr(self, "ordered"):
            return
        queue = self.world.queue()
        found = queue.statistics()
        assert found.messages == len(self.messages)
        assert found.leased == sum(map(self._is_leased, self.messages))
        assert self.world.queue("dead").count == len(self.dead)
        assert sorted(self.world.contents("dead")) == sorted(self.dead)
        for lane in queue._lanes:  # pyright: ignore[reportPrivateUsage] # memory has no other view
            assert lane.ready <= WINDOW + CHUNK

    @invariant()
    def what_is_due_is_given_to_who_has_room(self) -> None:
        """A message that may be given out and a consumer that may have it do not wait both."""
        if not hasattr(self, "ordered") or not self.takers:
            return
        queue = self.world.queue()
        active = self.takers[:1] if queue.definition.single_active_consumer else self.takers
        if not any(taker.room() > 0 for taker in active):
            return
        if self._is_split() and not all(
            any(taker.room() > 0 for taker in active if taker.consumer.is_canary == is_canary)
            for is_canary in (False, True)
        ):
            return  # it may wait for the other side
        held_keys = {
            held.key
            for payload, held in self.messages.items()
            if held.key and (self._is_leased(payload) or held.due > 0)
        }
        for payload, held in self.messages.items():
            if self._is_leased(payload) or held.due > 0:
                continue
            assert self.ordered, f"{payload} waits for nothing"
            assert held.key in held_keys, f"{payload} waits for a key that nobody has"

    @invariant()
    def shared_payloads_are_stored_as_long_as_they_wait(self) -> None:
        """Once each, with the number of places where they wait."""
        if not hasattr(self, "ordered"):
            return
        disk = self.world.disk
        assert disk.count(Kind.PAYLOAD) == disk.count(Kind.PAYLOAD_USES)
        uses = [int.from_bytes(value, "big") for _, value in disk.scan(Kind.PAYLOAD_USES)]
        in_copy = self.world.queue("copy").count  # which keeps all
        assert len(uses) == in_copy
        assert sum(uses) == in_copy + sum(each.is_shared for each in self.messages.values())


TestQueue = pytest.mark.slow(QueueModel.TestCase)
TestQueue.settings = settings(max_examples=60, stateful_step_count=30)
