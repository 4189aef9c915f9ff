"""The open batch: what has changed since the last commit, and what may happen once it is durable.

The core changes its memory at once, records the change here, and registers what the outside may see
of it (an acknowledgement, a delivery) with `after_commit`. `flush`, called at the end of every
tick, hands the batch to the store; effects run in the order in which they were registered when the
store reports it durable (DESIGN rule: nothing leaves before it is durable).
"""

from collections import deque
from collections.abc import Callable

from ganglion.broker.store import Batch, Kind, Store

__all__ = ["Commits"]


class Commits:
    """Records changes, commits them in batches and runs effects in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batch: Batch | None = None
        self._effects: list[Callable[[], None]] = []
        self._under_way: deque[list[Callable[[], None]]] = deque()

    def put(self, kind: Kind, key: bytes, value: bytes) -> None:
        """Record that this is the value of `key` from now on."""
        if self._batch is None:
            self._batch = self._store.batch()
        self._batch.put(kind, key, value)

    def delete(self, kind: Kind, key: bytes) -> None:
        """Record that `key` is gone."""
        if self._batch is None:
            self._batch = self._store.batch()
        self._batch.delete(kind, key)

    def after_commit(self, effect: Callable[[], None]) -> None:
        """Run `effect` once everything recorded so far is durable: at once if it is already."""
        if self._batch is not None:
            self._effects.append(effect)
        elif self._under_way:
            self._under_way[-1].append(effect)
        else:
            effect()

    def flush(self) -> None:
        """Commit what has been recorded since the last time."""
        while self._batch is not None:  # effects may record more
            batch, self._batch = self._batch, None
            effects, self._effects = self._effects, []
            self._under_way.append(effects)
            self._store.commit(batch, self._committed)

    def _committed(self) -> None:
        effects = self._under_way[0]
        for effect in effects:  # grows when an effect registers another
            effect()
        self._under_way.popleft()
