"""Compaction of a stream: of each key only the last record is kept, in the end.

Compaction passes over the stream in the background, a bounded step at a time, when half of it is
new, when a tombstone may go, or once an hour. It keeps the last record of every key, and every
record without one. A last record with an empty payload is a *tombstone*: it goes, and the version
of its key with it, in a pass after ``tombstone_keep_s``. How far passes came is not stored: after a
restart they begin anew.

A step reads some batches and looks up their keys, a bounded slice at a time with a pause behind it:
whoever else uses the node waits a millisecond or two for compaction, not longer. If anything in the
batches goes, or they are many small ones, batches that cover the same range of sequences are then
recorded in their place. One step is under way at a time, and meanwhile retention drops nothing, for
it might drop what is being rewritten.
"""

from collections.abc import Iterator
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from ganglion.broker.core.stream_batches import (
    Columns,
    Record,
    RecordBatch,
    decode_batch,
    encode_batch,
)
from ganglion.broker.core.timers import Timer
from ganglion.broker.store import Kind

if TYPE_CHECKING:
    from ganglion.broker.core.stream import Stream

__all__ = ["Compaction"]

_LOOK_S = 10.0  # after an append, and between two looks whether a pass is due
_AT_LEAST_S = 3600.0  # a pass is due then, however little is new
# A step keeps the reactor when it reads and when it records: 2 ms at most, with so much.
_STEP_RECORDS = 1000  # as many as are stored together
_STEP_BATCHES = 128  # where batches have few records
_STEP_BYTES = 1024 * 1024
_SLICE_RECORDS = 200  # 1 to 2 ms, for each key is looked up: measured 5 to 9 us
_PAUSE_S = 0.005  # behind a slice: the others have most of the time

_KEY = Struct(">QQ")


class _Step:
    """Some batches of a pass that are being judged, and what was found of them up to now."""

    def __init__(self, found: list[tuple[RecordBatch, int]]) -> None:
        """`found` are the batches with their sizes as stored."""
        self.found = found
        self.slices = _slices([batch for batch, _ in found])
        self.kept = Columns()
        self.tombstones: dict[str, int] = {}
        """Those that go: the sequence by key."""

    @property
    def last(self) -> int:
        """The last sequence of its range."""
        return self.found[-1][0].last


def _slices(batches: list[RecordBatch]) -> Iterator[list[Record]]:
    for batch in batches:
        for start in range(0, len(batch.payloads), _SLICE_RECORDS):
            yield batch.records(start, start + _SLICE_RECORDS)


class Compaction:
    """How far the compaction of one stream came, and when it goes on."""

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream
        self._timer: Timer | None = None
        self._from = 0  # where the next step of a pass begins; 0: there is no pass
        self._until = 0  # what was the last sequence when the pass began
        self._began = stream.shelf.timers.now
        self._step: _Step | None = None
        self._is_recorded = False  # what a step put in place of its batches is on its way
        self._clean_to = 0  # what a whole pass has seen
        self._tombstone_due_s: float | None = None  # when the next one may go (Unix time)
        self._next_due_s: float | None = None  # the same, as far as the pass under way came

    @property
    def is_rewriting(self) -> bool:
        """Whether batches are being judged, or others in their place are on their way to disk."""
        return self._is_recorded or self._step is not None

    def watch(self) -> None:
        """Set the timer if there is anything to look after."""
        stream = self._stream
        if (
            stream.definition.compact
            and self._timer is None
            and not self.is_rewriting
            and (self._clean_to < stream.last or self._tombstone_due_s is not None)
        ):
            self._timer = stream.shelf.timers.after(_LOOK_S, self._look)

    def begin_anew(self) -> None:
        """What was clean by the definition so far may not be any more."""
        self._from = self._clean_to = 0
        self._tombstone_due_s = None

    def stop(self) -> None:
        """No timers any more; a step that was not recorded is given up."""
        self._step = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, now: float) -> None:
        self._timer = None
        stream = self._stream
        if not stream.definition.compact:
            self._from = 0
        elif self._step is not None:
            self._go_on(self._step)
        elif self._from:
            self._begin_step()
        elif self._is_due(now):
            self._from, self._until = max(stream.first, 1), stream.last
            self._began, self._next_due_s = now, None
            self._begin_step()
        else:
            self.watch()

    def _is_due(self, now: float) -> bool:
        stream = self._stream
        new = stream.last - max(self._clean_to, stream.first - 1)
        due_s = self._tombstone_due_s
        return (
            new * 2 >= stream.count > 0
            or (new > 0 and now - self._began >= _AT_LEAST_S)
            or (due_s is not None and due_s <= now + stream.shelf.wall_clock_offset_s)
        )

    def _begin_step(self) -> None:
        """Read the next batches of the pass."""
        stream = self._stream
        found: list[tuple[RecordBatch, int]] = []
        records = size_bytes = 0
        for first, value in stream.stored(max(self._from, stream.first), self._until):
            batch = decode_batch(first, value)
            if found and batch.first != found[-1][0].last + 1:
                break  # damage lies between them, and must stay visible as a gap
            found.append((batch, len(value)))
            records += len(batch.payloads)
            size_bytes += len(value)
            if records >= _STEP_RECORDS or len(found) >= _STEP_BATCHES or size_bytes >= _STEP_BYTES:
                break
        if found:
            self._step = _Step(found)
            self._pause()
        else:
            self._from = 0
            self._clean_to, self._tombstone_due_s = self._until, self._next_due_s
            self.watch()

    def _pause(self) -> None:
        self._timer = self._stream.shelf.timers.after(_PAUSE_S, self._look)

    def _go_on(self, step: _Step) -> None:
        """Judge some records; when none is left, record what stays of them if need be."""
        records = next(step.slices, None)
        if records is not None:
            self._sort_out(step, records)
            self._pause()
            return
        self._step = None
        self._from = step.last + 1
        stream = self._stream
        if self._record(step):
            # Somebody may have appended with the key of a tombstone meanwhile.
            tombstones = step.tombstones.items()
            stream.forget_versions(key for key, each in tombstones if stream.version(key) == each)
            self._is_recorded = True
            stream.shelf.commits.after_commit(partial(self._recorded, step.last))
        else:
            stream.look_at_limits()
            self._pause()

    def _sort_out(self, step: _Step, records: list[Record]) -> None:
        """Add to the step what stays of these records, and tombstones that go."""
        stream = self._stream
        now_s = stream.shelf.timers.now + stream.shelf.wall_clock_offset_s
        keep_s = stream.definition.tombstone_keep_s
        for record in records:
            if record.key is not None:
                if stream.version(record.key) != record.sequence:
                    continue
                if not record.payload:
                    due_s = record.time_s + keep_s
                    if due_s <= now_s:
                        step.tombstones[record.key] = record.sequence
                        continue
                    if self._next_due_s is None or due_s < self._next_due_s:
                        self._next_due_s = due_s
            step.kept.append(record)

    def _record(self, step: _Step) -> bool:
        """Record what is kept in place of what was found; False: that would be no better."""
        stream, found = self._stream, step.found
        gone_count = sum(len(batch.payloads) for batch, _ in found) - len(step.kept.payloads)
        batches = list(step.kept.batches(found[0][0].first, step.last, found[-1][0].last_time_s))
        if not gone_count and 2 * len(batches) > len(found):
            return False
        commits = stream.shelf.commits
        for batch, _ in found:
            commits.delete(Kind.STREAM_BATCH, _KEY.pack(stream.identifier, batch.first))
        size_bytes = sum(size for _, size in found)
        for batch in batches:
            value = encode_batch(batch)
            size_bytes -= len(value)
            commits.put(Kind.STREAM_BATCH, _KEY.pack(stream.identifier, batch.first), value)
        stream.replaced(gone_count, size_bytes)
        return True

    def _recorded(self, last: int) -> None:
        self._is_recorded = False
        stream = self._stream
        if not stream.is_deleted:
            stream.rewritten(last)
            self._pause()
