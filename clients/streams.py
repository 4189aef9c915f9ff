"""Event streams: appending with an expected version, reading, following, consumer groups.

A `Follower` goes on where it was after a connection was lost: behind the last record that it has
received, so that none is missed and none comes twice. A member of a group settles each record, as
with queues.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

from anyio.lowlevel import current_token
from msgspec import Struct, field

from ganglion.clients.channels import Attached, Channel, Channels, check_credit
from ganglion.clients.codecs import Codec
from ganglion.clients.errors import BadOption
from ganglion.clients.link import Link
from ganglion.clients.messages import MEMBERS_MAX, MessageOptions, Record, column, is_large
from ganglion.clients.owed import Owed, OwedChannel
from ganglion.clients.queues import Settling
from ganglion.clients.session import Session
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import BATCH_MAX, Operation

__all__ = [
    "Appended",
    "Follower",
    "Following",
    "GroupFollower",
    "GroupRecord",
    "Stream",
    "StreamDescription",
    "StreamGroup",
    "StreamOptions",
    "records_of",
]

_NOTHING: Final[dict[str, Any]] = {}
_CREDIT_SHARE: Final = 4
"""A follower tells the node of room by quarters of its buffer."""


def records_of(columns: Sequence[Any], codec: Codec) -> Iterator[Record]:
    """The records of the columns of `docs/protocol.md` ('read · follow · records')."""
    for sequence, time_s, topic, payload, about in _rows(columns):
        yield Record(topic, payload, about, codec, sequence, time_s)


def _rows(columns: Sequence[Any]) -> Iterator[tuple[int, float, str, bytes, dict[str, Any]]]:
    sequences, times, topics, payloads, *more = columns
    keys = more[0] if more else None
    properties = more[1] if len(more) > 1 else None
    first = None if isinstance(sequences, tuple) else int(sequences)
    one_time = None if isinstance(times, tuple) else times
    one_topic = topics if isinstance(topics, str) else None
    for index, payload in enumerate(payloads):
        about = (properties[index] if properties else None) or _NOTHING
        if keys and keys[index] is not None:
            about = {**about, "key": keys[index]}
        yield (
            sequences[index] if first is None else first + index,
            times[index] if one_time is None else one_time,
            topics[index] if one_topic is None else one_topic,
            payload,
            about,
        )


class Following(Channel[Record]):
    """What the session keeps of a follower."""

    operation = Operation.FOLLOW

    def __init__(
        self,
        channels: Channels,
        codec: Codec,
        stream: str,
        *,
        after: int | None,
        from_s: float | None,
        buffer: int,
    ) -> None:
        super().__init__(channels)
        self._loop = current_token()
        self._stream = stream
        self._codec = codec
        self._received = after
        self._from_s = from_s
        self._size = buffer
        self._owed = 0

    def check(self) -> None:
        """It has room for something, and begins in one place."""
        check_credit("buffer", self._size)
        if self._received is not None and self._from_s is not None:
            raise BadOption("after and from_time exclude each other: give one of them")

    def opening(self) -> tuple[object, ...]:
        """Where to begin: behind what was received already."""
        options: dict[str, Any] = {"credit": max(self._size - len(self._buffer), 0)}
        self._owed = 0
        if self._received is not None:
            options["after"] = self._received
        elif self._from_s is not None:
            options["from_s"] = self._from_s
        return (self._stream, options)

    def on_opened(self, result: Any) -> None:
        """From now on it is known behind which record it begins."""
        if self._received is None:
            self._received = int(result["position"])

    def on_frame(self, frame: Frame, at: Attached) -> None:
        """Records came."""
        for record in records_of(frame[2:], self._codec):
            self._received = record.sequence
            self.give(record)

    def close_soon(self) -> None:
        """Close it from any thread, also from one that collects garbage."""
        loop: Any = self._loop.native_token
        try:
            (loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe)(
                self.close
            )
        except RuntimeError:
            pass  # the loop has ended, and so has the connection

    def on_taken(self) -> None:
        """Room for more."""
        self._owed += 1
        if self._owed * _CREDIT_SHARE >= self._size and self.at is not None:
            self.at.link.notify(Operation.CREDIT, self.at.number, self._owed)
            self._owed = 0


class Follower:
    """Records of a stream, those that are there and then those that are appended.

    ``async for`` opens it by itself. ``async with`` says when it is closed; without that it is when
    nobody has it any more.
    """

    def __init__(self, following: Following, after: int | None) -> None:
        self._following = following
        self.position: int | None = after
        """The sequence of the last record that was taken; None: of none yet."""

    async def __aenter__(self) -> Self:
        """Open it. Raises what the node refused it with."""
        await self._following.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self._following.aclose()

    async def aclose(self) -> None:
        """Close it, and wait until the node has dealt with it."""
        await self._following.aclose()

    def __aiter__(self) -> AsyncIterator[Record]:
        """Give itself."""
        return self

    async def __anext__(self) -> Record:
        """The next record; the first call opens the follower where `async with` did not."""
        record = await self._begun().__anext__()
        self.position = record.sequence
        return record

    async def get(self, *, timeout_s: float | None = None) -> Record:
        """The next record. Raises `TimedOut`, and what ended the follower."""
        record = await self._begun().get(timeout_s=timeout_s)
        self.position = record.sequence
        return record

    async def take(self, count_max: int, *, timeout_s: float | None = None) -> list[Record]:
        """The next record and those behind it that are here, as `Channel.take`."""
        records = await self._begun().take(count_max, timeout_s=timeout_s)
        if records:
            self.position = records[-1].sequence
        return records

    def _begun(self) -> Following:
        if not self._following.is_begun:
            self._following.begin()  # cancelled in the wait for the first record, it stays open
        return self._following

    def __del__(self) -> None:
        """Nobody can take a record any more."""
        if self._following.is_open:
            self._following.close_soon()


class GroupRecord(Owed, Record, frozen=True, eq=False, kw_only=True):
    """A record that came to a member of a consumer group, which has to settle it."""

    at: Settling = field()

    @property
    def handle(self) -> int:
        """The sequence."""
        return self.sequence

    async def ack(self, *, confirmed: bool = False) -> None:
        """It is dealt with; the position of the group moves when all before it are, too."""
        await self.at.settle(Operation.ACK, self.sequence, confirmed=confirmed)

    async def nack(self, delay_s: float | None = None, *, confirmed: bool = False) -> None:
        """It is not: another member, or this one, gets it again."""
        await self.at.settle(Operation.NACK, self.sequence, delay_s, confirmed=confirmed)


class GroupFollower(OwedChannel[GroupRecord]):
    """A member of a consumer group of a stream."""

    operation = Operation.FOLLOW

    def __init__(
        self, channels: Channels, codec: Codec, stream: str, group: str, *, prefetch: int
    ) -> None:
        super().__init__(channels)
        self.stream = stream
        self.group = group
        self._codec = codec
        self._prefetch = prefetch

    def check(self) -> None:
        """It has room for at least one."""
        check_credit("prefetch", self._prefetch)

    def opening(self) -> tuple[object, ...]:
        """Stream, group, and how many records it may have unsettled."""
        return (self.stream, {"group": self.group, "credit": self._prefetch})

    def attachment(self, link: Link, number: int) -> Attached:
        """What it has is of one connection."""
        return Settling(self, link, number)

    def on_frame(self, frame: Frame, at: Attached) -> None:
        """Records came."""
        assert isinstance(at, Settling)
        for sequence, time_s, topic, payload, about in _rows(frame[2:]):
            at.owed[sequence] = None
            self.give(
                GroupRecord(
                    topic, payload, about, self._codec, sequence=sequence, time_s=time_s, at=at
                )
            )


class Appended(Struct, frozen=True):
    """Where records that were appended are."""

    first: int
    last: int


class StreamOptions(TypedDict, total=False):
    """What a stream can be; each is explained in `docs/streams.md`."""

    bindings: list[str]
    """Topic filters whose messages are appended."""
    max_age_s: float
    max_bytes: int
    max_records: int
    keyed: bool
    compact: bool
    tombstone_keep_s: float
    max_record_bytes: int


class StreamDescription(Struct, frozen=True):
    """What a stream is and how it does."""

    definition: Mapping[str, Any]
    """Its options, as in `StreamOptions`."""
    statistics: Mapping[str, Any]
    """``first``, ``last``, ``records``, ``bytes``, ``followers`` and ``groups``."""


class StreamGroup:
    """A consumer group of a stream: each record goes to one of its members."""

    def __init__(self, session: Session, stream: str, name: str) -> None:
        self.stream = stream
        self.name = name
        self._session = session

    def follow(self, *, prefetch: int = 100) -> GroupFollower:
        """Records as a member, of which ``prefetch`` may be unsettled at a time."""
        codec = self._session.settings.codec
        return GroupFollower(self._session, codec, self.stream, self.name, prefetch=prefetch)

    async def declare(self, *, after: int | None = None) -> int:
        """Make it if it is not there, behind ``after`` or at the end; its position."""
        options = None if after is None else {"after": after}
        result = await self._session.ask_again(
            Operation.GROUP_DECLARE, self.stream, self.name, options
        )
        return int(result["position"])

    async def delete(self) -> None:
        """Forget it and its position. Raises `NotFound`."""
        await self._session.ask(Operation.GROUP_DELETE, self.stream, self.name)


class Stream:
    """An event stream of the node, by name. Making this object asks nothing of the node."""

    def __init__(self, session: Session, name: str) -> None:
        self.name = name
        self._session = session

    async def append(
        self,
        value: object = b"",
        *,
        expected: int | None = None,
        topic: str | None = None,
        declare: bool = False,
        timeout_s: float | None = None,
        **about: Unpack[MessageOptions],
    ) -> int:
        """Append one record; its sequence. Returns when it is on disk.

        ``expected`` is the sequence of the last record with the same ``key``, 0 where there must be
        none; if it is not, that is `WrongVersion`, and nothing was appended. ``declare`` makes the
        stream if it is not there. Raises `ConnectionLost` when nobody knows whether it was done:
        with ``expected`` it can be tried again without harm.
        """
        options: dict[str, Any] = {}
        if expected is not None:
            key = about.get("key")
            if not key:
                raise BadOption("expected needs a key: it is the last record with that key")
            options["expected"] = {key: expected}
        if topic is not None:
            options["topic"] = topic
        if declare:
            options["declare"] = True
        _, payload, properties = self._session.publication("", value, about)
        result = await self._session.ask(
            Operation.APPEND, self.name, payload, properties, options or None, timeout_s=timeout_s
        )
        return int(result["last"])

    async def append_batch(
        self,
        values: Sequence[object],
        *,
        keys: Sequence[str | None] | None = None,
        expected: Mapping[str, int] | None = None,
        topic: str | None = None,
        declare: bool = False,
        timeout_s: float | None = None,
        **about: Unpack[MessageOptions],
    ) -> Appended:
        """Append all of them or none, up to the node's ``batch_max`` (1,024).

        ``keys`` has one for each; ``expected`` is by key, as with `append`. ``about`` holds for
        all.
        """
        if not values:
            raise BadOption("append_batch needs at least one value")
        if len(values) > BATCH_MAX:
            raise BadOption(f"append_batch takes up to {BATCH_MAX:,} values, not {len(values):,}")
        if expected is not None and len(expected) > MEMBERS_MAX:
            raise BadOption(f"expected may name up to {MEMBERS_MAX} keys, not {len(expected):,}")
        if keys is not None and len(keys) != len(values):
            raise BadOption(f"there are {len(values)} values and {len(keys)} keys")
        made = [self._session.publication("", value, about) for value in values]
        properties = column([each[2] for each in made])
        if isinstance(properties, list) and is_large(len(values), about):
            raise BadOption("so many values with so many headers must be of one type")
        given = {"keys": keys, "expected": expected, "topic": topic, "declare": declare or None}
        options = {name: value for name, value in given.items() if value is not None}
        result = await self._session.ask(
            Operation.APPEND_BATCH,
            self.name,
            [each[1] for each in made],
            properties,
            options or None,
            timeout_s=timeout_s,
        )
        return Appended(int(result["first"]), int(result["last"]))

    async def read(
        self,
        *,
        after: int | None = None,
        from_time: datetime | float | None = None,
        key: str | None = None,
        count: int = 1000,
        bytes_max: int | None = None,
    ) -> list[Record]:
        """Records that are there: behind ``after``, or from a time on, or with a key.

        At most ``count``, and so many that their payloads have ``bytes_max`` bytes (1 MiB).
        """
        given = {
            "after": after,
            "from_s": _unix_s(from_time),
            "key": key,
            "count": count,
            "bytes": bytes_max,
        }
        options = {name: value for name, value in given.items() if value is not None}
        result = await self._session.ask_again(Operation.READ, self.name, options)
        return list(records_of(result["records"], self._session.settings.codec))

    def follow(
        self,
        *,
        after: int | None = None,
        from_time: datetime | float | None = None,
        buffer: int = 1000,
    ) -> Follower:
        """Records behind ``after`` (0: all), or from a time on, or those to come; without end.

        ``buffer`` is how many may be on the way or wait here; the node waits with the rest.
        """
        codec, from_s = self._session.settings.codec, _unix_s(from_time)
        following = Following(
            self._session, codec, self.name, after=after, from_s=from_s, buffer=buffer
        )
        return Follower(following, after)

    def group(self, name: str) -> StreamGroup:
        """A consumer group of it."""
        return StreamGroup(self._session, self.name, name)

    async def version(self, key: str) -> int:
        """The sequence of the last record with this key; 0: there is none."""
        result = await self._session.ask_again(Operation.STREAM_VERSION, self.name, key)
        return int(result["version"])

    async def declare(self, **options: Unpack[StreamOptions]) -> StreamDescription:
        """Make it, or change those of its options that are given."""
        result = await self._session.ask_again(Operation.STREAM_DECLARE, self.name, options or None)
        return StreamDescription(result["definition"], {})

    async def describe(self) -> StreamDescription:
        """What it is and how it does. Raises `NotFound`."""
        result = await self._session.ask_again(Operation.STREAM_DESCRIBE, self.name)
        return StreamDescription(result["definition"], result["statistics"])

    async def delete(self) -> None:
        """Delete it with all that is in it. Raises `NotFound`."""
        await self._session.ask(Operation.STREAM_DELETE, self.name)


def _unix_s(time: datetime | float | None) -> float | None:
    """Unix time in seconds; a time without a zone is taken for local time, as Python does."""
    return time.timestamp() if isinstance(time, datetime) else time
