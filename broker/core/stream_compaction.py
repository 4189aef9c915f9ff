"""Compaction of a stream: of each key only the last record is kept, in the end.

Compaction passes over the stream in the background, a bounded step at a time, when half of it is
new, when a tombstone may go, or once an hour. It keeps the last record of every key, and every
record without one. A last record with an empty payload is a *tombstone*: it goes, and the version
of its key with it, in a pass after ``tombstone_keep_s``. How far passes came is not stored: after a
restart they begin anew.

A step reads some batches and, if anything in them goes or they are many small ones, records in
their place batches that cover the same range of sequences. One step is under way at a time, and
meanwhile retention drops nothing, for it might drop what is being rewritten.
"""

from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from ganglion.broker.core.stream_batches import (
    Columns,
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
_STEP_RECORDS = 2000  # of one step: some ms, for each key is looked up
_STEP_BATCHES = 256  # the same where batches have few records
_STEP_BYTES = 4 * 1024 * 1024  # in memory for one step
_STEP_PAUSE_S = 0.02

_KEY = Struct(">QQ")


class Compaction:
    """How far the compaction of one stream came, and when it goes on."""

    def __init__(self, stream: "Stream") -> None:
        self.is_rewriting = False
        """Whether batches of a step are on their way to the disk."""
        self._stream = stream
        self._timer: Timer | None = None
        self._from = 0  # where the next step of a pass begins; 0: there is no pass
        self._until = 0  # what was the last sequence when the pass began
        self._began = stream.shelf.timers.now
        self._clean_to = 0  # what a whole pass has seen
        self._tombstone_due_s: float | None = None  # when the next one may go (Unix time)
        self._next_due_s: float | None = None  # the same, as far as the pass under way came

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
        """No timers any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, now: float) -> None:
        self._timer = None
        stream = self._stream
        if not stream.definition.compact:
            self._from = 0
        elif self._from:
            self._step()
        elif self._is_due(now):
            self._from, self._until = max(stream.first, 1), stream.last
            self._began, self._next_due_s = now, None
            self._step()
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

    def _step(self) -> None:
        """Look at the next batches of the pass, and record others in their place if need be."""
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
        if not found:
            self._from = 0
            self._clean_to, self._tombstone_due_s = self._until, self._next_due_s
            self.watch()
            return
        self._from = found[-1][0].last + 1
        kept, tombstones = self._sort_out([batch for batch, _ in found])
        if self._record(found, kept, records - len(kept.payloads)):
            stream.forget_versions(tombstones)
            self.is_rewriting = True
            stream.shelf.commits.after_commit(partial(self._rewritten, found[-1][0].last))
        else:
            self._timer = stream.shelf.timers.after(_STEP_PAUSE_S, self._look)

    def _sort_out(self, batches: list[RecordBatch]) -> tuple[Columns, list[str]]:
        """What stays of the batches, and the keys of tombstones that go."""
        stream = self._stream
        kept = Columns()
        tombstones: list[str] = []
        now_s = stream.shelf.timers.now + stream.shelf.wall_clock_offset_s
        keep_s = stream.definition.tombstone_keep_s
        for batch in batches:
            for record in batch.records():
                if record.key is not None:
                    if stream.version(record.key) != record.sequence:
                        continue
                    if not record.payload:
                        due_s = record.time_s + keep_s
                        if due_s <= now_s:
                            tombstones.append(record.key)
                            continue
                        if self._next_due_s is None or due_s < self._next_due_s:
                            self._next_due_s = due_s
                kept.append(record)
        return kept, tombstones

    def _record(self, found: list[tuple[RecordBatch, int]], kept: Columns, gone_count: int) -> bool:
        """Record what is kept in place of what was found; False: that would be no better."""
        stream = self._stream
        first, last = found[0][0].first, found[-1][0].last
        batches = list(kept.batches(first, last, found[-1][0].last_time_s))
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

    def _rewritten(self, last: int) -> None:
        self.is_rewriting = False
        stream = self._stream
        if not stream.is_deleted:
            stream.rewritten(last)
            self._timer = stream.shelf.timers.after(_STEP_PAUSE_S, self._look)
