"""The replication feed of a `RocksStore`: a column family of commits by number, and its bounds.

What is to be kept with a commit is written in the batch of that commit; what the core changes in
between (bounds, the end of the feed), in a batch of its own, which has no number. A feed that is
found damaged costs replicas a snapshot and nothing else.
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

__all__ = ["OwnOperations", "RocksFeed"]

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
        note: Callable[[str], object],
    ) -> None:
        """Go on with the feed of that `state`, or with none; `clock` gives the Unix time.

        `note` is told of damage. A feed that cannot be gone on with begins anew: with nothing.
        """
        self._family = family
        self._handle = handle
        self._clock = clock
        self._note = note
        self._feed = None if state is None else Feed.decode(state)
        if self._feed is None or (first := self._feed.open_first) is None:
            return
        try:
            for number, encoded in self._records(first):
                self._feed.add(number, len(encoded) + _OVERHEAD_BYTES, time_of(encoded))
        except FeedGone:
            self._feed = Feed(self._feed.bytes_max, self._feed.age_max_s)

    @property
    def is_attached(self) -> bool:
        """Whether commits are kept."""
        return self._feed is not None

    @property
    def first(self) -> int | None:
        """The number of the first commit that is kept; None when there is none."""
        return None if self._feed is None else self._feed.first

    @property
    def size_bytes(self) -> int:
        """What is kept takes up, in bytes."""
        return 0 if self._feed is None else self._feed.size_bytes

    def attach(self, bytes_max: int, age_max_s: float) -> None:
        """Keep commits from the next one on, or change the bounds; `encode` is to be stored."""
        if self._feed is None:
            self._feed = Feed(bytes_max, age_max_s)
        else:
            self._feed.bytes_max, self._feed.age_max_s = bytes_max, age_max_s

    def detach(self) -> OwnOperations:
        """Keep none: what has to be written for that, beside `encode`."""
        self._feed = None
        return [(self._handle, b"", [_BEYOND])]

    def keep(self, number: int, epoch: int, operations: list[Any]) -> tuple[OwnOperations, bool]:
        """What has to be written with this commit, and whether `encode` has to be as well."""
        feed = self._feed
        assert feed is not None
        time_s = self._clock()
        key, encoded = _NUMBER.pack(number), encode_commit(epoch, time_s, operations)
        own: OwnOperations = [(self._handle, key, frame(_SEED, key, encoded))]
        changed = feed.add(number, len(encoded) + _OVERHEAD_BYTES, time_s)
        if changed:
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

    def verify(self) -> int:
        """Read everything that is kept, and have damage noted: how many commits are good."""
        if self.first is None:
            return 0
        reading = Reading(self._family, _SEED, self._note_damage, _NUMBER.pack(self.first))
        return sum(1 for _ in reading.records())

    def _records(self, first: int) -> Iterator[tuple[int, bytes]]:
        reading = Reading(self._family, _SEED, self._refuse, _NUMBER.pack(first))
        return ((_NUMBER.unpack(key)[0], encoded) for key, encoded in reading.records())

    def _note_damage(self, key: bytes, what: str) -> str:
        number = cast("int", _NUMBER.unpack(key)[0]) if len(key) == _NUMBER.size else 0
        damage = f"the feed is damaged at or behind commit {number}: {what}"
        self._note(damage)
        return damage

    def _refuse(self, key: bytes, what: str) -> None:
        raise FeedGone(f"{self._note_damage(key, what)}; begin with a snapshot")
