"""The replication feed of a `RocksStore`: a column family of commits by number, and its bounds.

What is to be kept with a commit is written in the batch of that commit. What the core changes in
between (bounds, the end of the feed) is written with the next one.
"""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, cast

from rocksdict import ColumnFamily, Rdict

from ganglion.broker.store import Commit, FeedGone
from ganglion.broker.store.feed import (
    Feed,
    check_kept,
    decode_commit,
    encode_commit,
    in_order,
    time_of,
)
from ganglion.broker.store.rocks_reading import CRC, Reading, frame

__all__ = ["RocksFeed"]

_SEED = 0xFEED  # of the checksums, and no kind's number
_NUMBER = Struct(">Q")
_BEYOND = b"\xff" * (_NUMBER.size + 1)
_OVERHEAD_BYTES = 64
"""What a small record takes up besides itself, about."""

OwnOperations = list[tuple[ColumnFamily, bytes, bytes | list[bytes] | None]]
"""Column family, key, and framed value; of a deletion None, of a range what is beyond it."""


class RocksFeed:
    """Which commits are kept, and reading them."""

    def __init__(
        self,
        family: Rdict,
        handle: ColumnFamily,
        state: bytes | None,
        clock: Callable[[], float],
    ) -> None:
        """Go on with the feed of that `state`, or with none; `clock` gives the Unix time."""
        self._family = family
        self._handle = handle
        self._clock = clock
        self._unsaved = False
        self._feed = None if state is None else Feed.decode(state)
        if self._feed is not None and (first := self._feed.open_first) is not None:
            for number, encoded in self._records(first):
                self._feed.add(number, len(encoded) + _OVERHEAD_BYTES, time_of(encoded))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do for a commit."""
        return self._feed is None and not self._unsaved

    def attach(self, bytes_max: int, age_max_s: float) -> None:
        """Keep commits from the next one on, or change the bounds."""
        if self._feed is None:
            self._feed = Feed(bytes_max, age_max_s)
        else:
            self._feed.bytes_max, self._feed.age_max_s = bytes_max, age_max_s
        self._unsaved = True

    def detach(self) -> None:
        """Keep none."""
        self._unsaved = self._unsaved or self._feed is not None
        self._feed = None

    def keep(self, number: int, epoch: int, operations: list[Any]) -> tuple[OwnOperations, bool]:
        """What has to be written with this commit, and whether `encode` has to be as well."""
        feed, changed, self._unsaved = self._feed, self._unsaved, False
        if feed is None:
            return [(self._handle, b"", [_BEYOND])], True
        own: OwnOperations = []
        if feed.first is None:  # of an earlier feed
            own.append((self._handle, b"", [_BEYOND]))
        time_s = self._clock()
        key, encoded = _NUMBER.pack(number), encode_commit(epoch, time_s, operations)
        own.append((self._handle, key, frame(_SEED, key, encoded)))
        if feed.add(number, len(encoded) + _OVERHEAD_BYTES, time_s):
            changed = True
            own.append((self._handle, b"", [_NUMBER.pack(feed.first or number + 1)]))
        return own, changed

    def encode(self) -> bytes | None:
        """The state to go on with after a restart; None: there is no feed."""
        return None if self._feed is None else self._feed.encode()

    def after(self, number: int, last: int) -> Iterator[Commit]:
        """The commits behind that one; `last` was the last. Raises `FeedGone`."""
        check_kept(self._feed, number, last)
        records = self._records(number + 1)
        return in_order((decode_commit(n, encoded, CRC.size) for n, encoded in records), number)

    def _records(self, first: int) -> Iterator[tuple[int, bytes]]:
        reading = Reading(self._family, _SEED, _refuse, _NUMBER.pack(first))
        return ((_NUMBER.unpack(key)[0], encoded) for key, encoded in reading.records())


def _refuse(key: bytes, what: str) -> None:
    number = cast("int", _NUMBER.unpack(key)[0]) if key else 0
    raise FeedGone(f"the feed is damaged at commit {number} ({what}): begin with a snapshot")
