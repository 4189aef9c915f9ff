"""The open batch: what has changed since the last commit, and what may happen once it is durable.

The core changes its memory at once, records the change here, and registers what the outside may see
of it (an acknowledgement, a delivery) with `after_commit`. `flush`, called at the end of every
tick, hands the batch to the store; effects run in the order in which they were registered when the
store reports it durable (DESIGN rule: nothing leaves before it is durable).

What changes many times within one commit (a backlog that takes a thousand messages, a position that
moves) is recorded once: it registers a writer with `before_flush` when it changes first, and the
writer records how it stands when the batch is closed.
"""

from collections.abc import Callable

from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Batch, Kind, Store

__all__ = ["Commits"]


class Commits:
    """Records changes, commits them in batches and runs effects in order.

    One batch is under way at a time and the next one fills meanwhile: the slower the store, the
    more a commit carries (group commit without a timer).
    """

    def __init__(self, store: Store, timers: Timers, statistics: Statistics) -> None:
        self.number = 1
        """Counts the open batch: what is recorded while it is the same is committed together."""
        self.waiting_bytes = 0
        """What messages were recorded that are not durable yet, about, in bytes."""
        self._under_way_bytes = 0
        self._store = store
        self._timers = timers
        self._statistics = statistics
        self._opened_at: float | None = None  # when the first of the open batch was recorded
        self._under_way_since = (0.0, 0.0)  # the same of that under way, and when it was flushed
        self._batch: Batch | None = None
        self._writers: list[Callable[[], None]] = []
        self._effects: list[Callable[[], None]] = []
        self._under_way: list[Callable[[], None]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether anything was recorded since the last flush."""
        return self._batch is not None or bool(self._writers)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was recorded is durable."""
        return self._under_way is None and not self.is_open

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        """Record that this is the value of `key` from now on."""
        if self._batch is None:
            self._batch = self._open()
        self._batch.put(kind, key, value)

    def delete(self, kind: Kind, key: bytes) -> None:
        """Record that `key` is gone."""
        if self._batch is None:
            self._batch = self._open()
        self._batch.delete(kind, key)

    def delete_range(self, kind: Kind, start: bytes, stop: bytes) -> None:
        """Record that every key from `start` up to but without `stop` is gone."""
        if self._batch is None:
            self._batch = self._open()
        self._batch.delete_range(kind, start, stop)

    def _open(self) -> Batch:
        if self._opened_at is None:
            self._opened_at = self._timers.now
        return self._store.batch()

    def before_flush(self, writer: Callable[[], None]) -> None:
        """Have `writer` record its state when the open batch is closed. Once per call of this.

        A writer registers no further writers.
        """
        if self._opened_at is None:
            self._opened_at = self._timers.now
        self._writers.append(writer)

    def after_commit(self, effect: Callable[[], None]) -> None:
        """Run `effect` once everything recorded so far is durable: at once if it is already."""
        if self.is_open:
            self._effects.append(effect)
        elif self._under_way is not None:
            self._under_way.append(effect)
        else:
            effect()

    def flush(self) -> None:
        """Commit what has been recorded, unless a commit is under way: then it follows that one."""
        while self._under_way is None and (self._batch is not None or self._writers):
            writers, self._writers = self._writers, []
            for write in writers:
                write()
            batch, self._batch = self._batch, None
            now = self._timers.now
            self._under_way_since = (now if self._opened_at is None else self._opened_at, now)
            self._opened_at = None
            self._under_way, self._effects = self._effects, []
            self.number += 1
            self._under_way_bytes = self.waiting_bytes
            if batch is None:  # the writers found that nothing had changed in the end
                self._run_effects()
            else:
                self._store.commit(batch, self._committed)  # may complete before it returns

    def _committed(self) -> None:
        opened_at, flushed_at = self._under_way_since
        now = self._timers.now
        self._statistics.commit_s.observe(now - flushed_at)
        self._statistics.durable_delivery_s.observe(now - opened_at)
        self._run_effects()

    def _run_effects(self) -> None:
        effects = self._under_way
        assert effects is not None
        fault: Exception | None = None
        for effect in effects:  # grows when an effect registers another
            try:
                effect()
            except Exception as error:  # noqa: BLE001 - the others are owed to other clients
                fault = fault or error
        self._under_way = None
        self.waiting_bytes -= self._under_way_bytes
        self._under_way_bytes = 0
        if fault is not None:
            raise fault
