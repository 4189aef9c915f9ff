"""A stream against a model of plain Python: whatever happens, in whatever order.

Records are appended in every way, commits complete late, the node crashes and starts again,
followers and groups read at their own paces, time passes (retention and compaction with it), the
stream is changed, deleted and made again. The model is a list of what was committed; the rules of
retention and compaction are applied to it by what they promise, not by how the stream does it.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ganglion.broker.core.message import PLAIN_TERMS, Message, MessageProperties
from ganglion.broker.core.stream import WrongExpectedVersion
from ganglion.broker.core.stream_batches import Record
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.stream_groups import Follower, Member
from ganglion.broker.store import Kind
from tests.broker.core.stream_surroundings import House

KEYS = st.sampled_from([None, "a", "b", "c", "d"])
TOMBSTONE_KEEP_S = 50.0
MAX_AGE_S = 300.0


class Reading:
    """A follower, and what it may and must have read."""

    def __init__(self, after: int, follower: Follower) -> None:
        self.follower = follower
        self.after = after
        self.read: list[int] = []


class Held:
    """A member of a group, and what it has."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.has: list[int] = []


class StreamMachine(RuleBasedStateMachine):
    """One stream and its readers."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House()
        self.definition = StreamDefinition(name="s", keyed=True, tombstone_keep_s=TOMBSTONE_KEEP_S)
        self.make()

    def make(self) -> None:
        """The stream is new."""
        self.stream = self.house.streams.declare(self.definition)
        self.house.flush()
        self.payloads: dict[int, tuple[str | None, bytes]] = {}  # appended, by sequence
        self.durable = 0  # the last that was committed
        self.position = 0  # of the group: acknowledged durably up to there
        self.done: set[int] = set()  # by the group, in this life of the node
        self.forget_readers()

    def forget_readers(self) -> None:
        """They are gone with the node or the stream."""
        self.readings: list[Reading] = []
        self.members: list[Held] = []

    # -- what the model says ---------------------------------------------------------------------

    @property
    def appended(self) -> int:
        """The last sequence, committed or not."""
        return max(self.payloads, default=0)

    def last_with(self, key: str, *, to: int | None = None) -> int:
        """The last sequence with a key; 0: none."""
        found = [
            sequence
            for sequence, (each, _) in self.payloads.items()
            if each == key and (to is None or sequence <= to)
        ]
        return max(found, default=0)

    def must_be_kept(self, sequence: int) -> bool:
        """Whether compaction may not have taken the record."""
        key, payload = self.payloads[sequence]
        return key is None or (sequence == self.last_with(key) and payload != b"")

    def append(self, records: list[tuple[str | None, bytes]]) -> None:
        """The stream has taken these."""
        first = self.appended + 1
        for sequence, record in enumerate(records, first):
            self.payloads[sequence] = record

    # -- appends ---------------------------------------------------------------------------------

    @rule(records=st.lists(st.tuples(KEYS, st.sampled_from([b"", b"x", b"yyyy"])), max_size=5))
    def appends(self, records: list[tuple[str | None, bytes]]) -> None:
        """Several at once, with and without keys."""
        first, last = self.stream.append(
            [payload for _, payload in records], keys=[key for key, _ in records]
        )
        assert (first, last) == (self.appended + 1, self.appended + len(records))
        self.append(records)

    @rule(count=st.integers(1, 1500))
    def appends_many(self, count: int) -> None:
        """More than fit into one batch."""
        self.stream.append([b"z"] * count)
        self.append([(None, b"z")] * count)

    @rule(key=KEYS, payload=st.sampled_from([b"", b"r"]))
    def routes(self, key: str | None, payload: bytes) -> None:
        """A message comes by way of a binding."""
        about = MessageProperties(key=key)
        self.stream.deliver(Message("t", payload, properties=about), PLAIN_TERMS[0])
        self.append([(key, payload)])

    @rule(count=st.integers(1, 4))
    def routes_a_run(self, count: int) -> None:
        """Many at once."""
        self.stream.deliver_run("t", [b"run"] * count, 0)
        self.append([(None, b"run")] * count)

    @rule(key=st.sampled_from("abcd"), wrong=st.booleans())
    def appends_as_expected(self, key: str, wrong: bool) -> None:
        """With the version that the stream says, or with another one."""
        version = self.stream.version(key)
        if wrong:
            with pytest.raises(WrongExpectedVersion):
                self.stream.append([b"no"], keys=[key], expected={key: version + 1})
            return
        self.stream.append([b"v"], keys=[key], expected={key: version})
        self.append([(key, b"v")])

    # -- commits ---------------------------------------------------------------------------------

    @rule()
    def commits(self) -> None:
        """All that is recorded becomes durable."""
        self.house.faulty.release()
        self.house.flush()
        self.durable = self.appended
        if self.stream.groups:
            self.position = self.stream.groups["g"].position

    @rule()
    def begins_a_commit(self) -> None:
        """It is under way, and completes with the next rule that commits."""
        if not self.house.faulty.held:
            self.house.faulty.is_holding = True
            self.house.flush()

    @rule()
    def crashes(self) -> None:
        """What is not durable is lost, and the node starts again."""
        self.house.restart()
        self.stream = self.house.stream()
        for sequence in range(self.durable + 1, self.appended + 1):
            del self.payloads[sequence]
        self.forget_readers()
        self.done.clear()
        if self.stream.groups:
            assert self.stream.groups["g"].position >= self.position
        assert self.stream.last == self.durable
        self.definition = self.stream.definition

    @rule(seconds=st.sampled_from([0.5, 11.0, 60.0, 400.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        """With ticks where timers are due: retention and compaction."""
        self.commits()
        self.house.pass_time(seconds)

    # -- definitions -----------------------------------------------------------------------------

    @rule(
        compact=st.booleans(),
        max_records=st.sampled_from([0, 0, 3, 1000]),
        max_bytes=st.sampled_from([0, 0, 400]),
        max_age_s=st.sampled_from([0.0, 0.0, MAX_AGE_S]),
    )
    def changes(self, compact: bool, max_records: int, max_bytes: int, max_age_s: float) -> None:
        """It has other options."""
        self.definition = StreamDefinition(
            name="s",
            keyed=True,
            compact=compact,
            max_records=max_records,
            max_bytes=max_bytes,
            max_age_s=max_age_s,
            tombstone_keep_s=TOMBSTONE_KEEP_S,
        )
        self.house.streams.declare(self.definition)
        self.commits()

    @rule()
    def is_deleted_and_made_again(self) -> None:
        """Nothing of the old one is left."""
        self.house.streams.delete("s")
        for reading in self.readings:
            assert reading.follower.take(1) == []
            assert reading.follower.is_ended
        assert all(held.member.is_ended for held in self.members)
        self.house.faulty.release()
        self.make()
        for kind in (Kind.STREAM_BATCH, Kind.STREAM_KEY, Kind.STREAM_GROUP):
            assert self.house.stored(kind) == 0

    # -- readers ---------------------------------------------------------------------------------

    @precondition(lambda self: len(self.readings) < 4)
    @rule(behind=st.integers(0, 30))
    def follows(self, behind: int) -> None:
        """Somebody begins to read near the end, or before."""
        after = max(0, self.durable - behind)
        self.readings.append(Reading(after, self.stream.follow(after, lambda: None)))

    @precondition(lambda self: self.readings)
    @rule(data=st.data(), count=st.sampled_from([1, 3, 700, 5000]))
    def reads_on(self, data: st.DataObject, count: int) -> None:
        """A follower takes some."""
        reading = data.draw(st.sampled_from(self.readings))
        self.take(reading, count)

    def take(self, reading: Reading, count: int) -> list[Record]:
        """What comes is new, in order, durable, and as it was appended."""
        records = reading.follower.take(count)
        for record in records:
            assert record.sequence > (reading.read[-1] if reading.read else reading.after)
            assert record.sequence <= self.stream.last
            assert (record.key, record.payload) == self.payloads[record.sequence]
            reading.read.append(record.sequence)
        return records

    @precondition(lambda self: len(self.members) < 3)
    @rule()
    def joins(self) -> None:
        """A member more."""
        self.members.append(Held(self.stream.group("g").join(lambda: None)))

    @precondition(lambda self: self.members)
    @rule(data=st.data(), count=st.sampled_from([1, 4, 3000]))
    def member_takes(self, data: st.DataObject, count: int) -> None:
        """It gets what nobody else has, and nothing that is done."""
        held = data.draw(st.sampled_from(self.members))
        taken = [record.sequence for record in held.member.take(count)]
        assert taken == sorted(set(taken))
        others = {sequence for each in self.members for sequence in each.has}
        assert not others & set(taken)
        assert not self.done & set(taken)
        assert all(sequence <= self.stream.last for sequence in taken)
        held.has += taken

    @precondition(lambda self: any(held.has for held in self.members))
    @rule(data=st.data(), give_back=st.booleans(), many=st.booleans())
    def member_settles(self, data: st.DataObject, give_back: bool, many: bool) -> None:
        """It acknowledges or gives back, in any order."""
        held = data.draw(st.sampled_from([each for each in self.members if each.has]))
        chosen = list(held.has) if many else [data.draw(st.sampled_from(held.has))]
        for sequence in chosen:
            held.has.remove(sequence)
            if give_back:
                assert held.member.give_back(sequence)
            else:
                assert held.member.acknowledge(sequence)
                self.done.add(sequence)
            assert not held.member.acknowledge(sequence)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def member_leaves(self, data: st.DataObject) -> None:
        """What it has goes to others."""
        held = data.draw(st.sampled_from(self.members))
        self.members.remove(held)
        held.member.close()

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def numbers_have_no_gap(self) -> None:
        """The next sequence is one more than the last one, whatever was dropped."""
        assert self.stream._next == self.appended + 1

    @invariant()
    def only_durable_records_are_seen(self) -> None:
        """And all of those that retention and compaction may not have taken."""
        seen: list[int] = []
        for batch in self.stream.read_batches():
            for record in batch.records():
                assert (record.key, record.payload) == self.payloads[record.sequence]
                seen.append(record.sequence)
        assert seen == sorted(set(seen))
        assert all(sequence <= self.durable for sequence in seen)
        there = set(seen)
        for sequence in range(self.stream.first, self.durable + 1):
            assert sequence in there or not self.must_be_kept(sequence)

    @invariant()
    def versions_are_right(self) -> None:
        """Each is that of the last record with the key, or none where that was a tombstone."""
        for key in "abcd":
            last = self.last_with(key)
            version = self.stream.version(key)
            assert version == last or (version == 0 and self.payloads[last][1] == b"")

    @invariant()
    def group_loses_nothing(self) -> None:
        """Its position is never beyond a record that some member has."""
        group = self.stream.groups.get("g")
        if group is not None:
            assert all(sequence > group.position for each in self.members for sequence in each.has)

    def teardown(self) -> None:
        """At rest: counts are exact, readers have all, and after a pass only what must stay is."""
        house, stream = self.house, self.stream
        self.commits()
        house.check(stream)
        for reading in self.readings:
            while self.take(reading, 1000):
                pass
            assert reading.follower.position == max(stream.last, reading.after)
            begin = max(reading.after + 1, stream.first)
            expected = [
                sequence
                for sequence in range(begin, self.durable + 1)
                if self.must_be_kept(sequence)
            ]
            assert set(expected) <= set(reading.read)
            assert reading.follower.damaged == 0
            reading.follower.close()
        house.streams.declare(
            StreamDefinition(name="s", keyed=True, compact=True, tombstone_keep_s=TOMBSTONE_KEEP_S)
        )
        house.pass_time(5)
        stream.append([b"the young one", b""], keys=["new", "e"])
        self.append([("new", b"the young one"), ("e", b"")])
        self.commits()
        house.pass_time(40)
        house.pass_time(7300)
        stream.append([b""], keys=["young"])
        self.append([("young", b"")])
        self.commits()
        house.check(stream)
        kept = [each for batch in stream.read_batches() for each in batch.sequences]
        assert kept == [
            sequence
            for sequence in range(stream.first, self.durable + 1)
            if self.must_be_kept(sequence) or sequence == self.durable
        ]
        house.restart()
        house.check(house.stream())


def run(examples: int, steps: int) -> None:
    """Try so many stories of so many steps."""
    run_state_machine_as_test(
        StreamMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_stream_does_what_the_model_says() -> None:
    """A few short stories."""
    run(8, 20)


@pytest.mark.slow
def test_a_stream_does_what_the_model_says_for_long() -> None:
    """Many long ones."""
    run(200, 50)
