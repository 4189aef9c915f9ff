"""Reading streams: once, on and on, or as a member of a consumer group.

Records go out as columns. A follower's batches are passed on as the stream has them, without an
object per record.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ganglion.broker.core.message import MessageProperties
from ganglion.broker.core.stream import STREAM_PREFIX, Stream
from ganglion.broker.core.stream_batches import Record, RecordBatch
from ganglion.broker.core.stream_groups import TAKE_BYTES, Group
from ganglion.protocols.native.arguments import Options, options_at, text_at, whole_at
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import CREDIT_MAX, Code, Operation
from ganglion.protocols.native.properties import to_map
from ganglion.protocols.native.queue_operations import check_read

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["FollowChannel", "GroupChannel", "follow", "read"]

_RECORDS = int(Operation.RECORDS)
_COUNT_MAX = 10_000  # records of one answer
_COUNT_DEFAULT = 1000
_BYTES_MAX = 4 * TAKE_BYTES
_AT_ONCE = 1000  # records of one frame: as many as a stream stores together
_NONE: Sequence[object] = (1, 0.0, "", ())  # columns without a record


def read(connection: "NativeConnection", frame: Frame) -> None:
    """`read`: some records, now."""
    number = whole_at(frame, 1, "id")
    name, options = text_at(frame, 2, "stream"), options_at(frame, 3)
    check_read(connection, STREAM_PREFIX + name)
    stream = connection.server.node.streams.get(name)
    start = _start(stream, options)
    after = 0 if start is None else start
    count = options.whole("count", _COUNT_MAX) or _COUNT_DEFAULT
    bytes_max = options.whole("bytes", _BYTES_MAX) or TAKE_BYTES
    key = options.text("key")
    if key is None:
        records = stream.read(after, count, bytes_max)
    else:
        records = _within(islice(stream.read_key(key, after), count), bytes_max)
    result = {"records": _columns_of(records), "first": stream.first, "last": stream.last}
    connection.answer(number, result)


def _within(records: Iterable[Record], bytes_max: int) -> list[Record]:
    """As many of the first as have so many bytes together, but at least one."""
    found: list[Record] = []
    for record in records:
        bytes_max -= len(record.payload)
        if found and bytes_max < 0:
            break
        found.append(record)
    return found


def follow(connection: "NativeConnection", frame: Frame) -> None:
    """`follow`: read on and on, alone or as a member of a group."""
    number = whole_at(frame, 1, "id")
    name, options = text_at(frame, 2, "stream"), options_at(frame, 3)
    credit = options.whole("credit", CREDIT_MAX)
    group_name = options.text("group")
    connection.check_channel(number)
    check_read(connection, STREAM_PREFIX + name)
    node = connection.server.node
    stream = node.streams.get(name)
    start = _start(stream, options)
    after = stream.last if start is None else start
    channel: FollowChannel | GroupChannel
    if group_name is None:
        channel = FollowChannel(connection, number, stream, after, credit)
        position = after
    else:
        group = stream.group(group_name, after)
        position = group.position
        channel = GroupChannel(
            connection, number, group, _COUNT_DEFAULT if credit is None else credit
        )
    connection.channels[number] = channel
    result = {"position": position, "first": stream.first, "last": stream.last}
    connection.answer_durably(number, result)
    node.journal.commits.after_commit(channel.open)  # the answer comes first


def _start(stream: Stream, options: Options) -> int | None:
    """After which sequence to begin; None: not said."""
    after = options.whole("after")
    if after is not None:
        return after
    from_s = options.seconds("from_s")
    return None if from_s is None else stream.position_at(from_s)


class FollowChannel:
    """Reads a stream on and on, at the pace of its client."""

    __slots__ = ("_connection", "_credit", "_follower", "_is_open", "_number")

    def __init__(
        self,
        connection: "NativeConnection",
        number: int,
        stream: Stream,
        after: int,
        credit: int | None,
    ) -> None:
        self._connection = connection
        self._number = number
        self._credit = credit  # None: as fast as the connection takes them
        self._is_open = False
        self._follower = stream.follow(after, self.pump)

    def open(self) -> None:
        """The client knows that it follows: begin."""
        self._is_open = True
        self.pump()

    def add_credit(self, count: int) -> None:
        """The client takes so many records more."""
        if self._credit is not None:
            self._credit = min(self._credit + count, CREDIT_MAX)
        self.pump()

    def pump(self) -> None:
        """Send what there is, as far as credit and the connection allow."""
        if not self._is_open:
            return
        follower, connection = self._follower, self._connection
        while not follower.is_ended and not connection.endpoint.congested:
            count = _AT_ONCE if self._credit is None else min(self._credit, _AT_ONCE)
            batch = follower.take_batch(count)
            if batch is None:
                break
            if self._credit is not None:
                self._credit -= len(batch.payloads)
            _send(connection, self._number, len(batch.payloads), _columns(batch))
        if follower.is_ended:
            self._is_open = False
            _deleted(connection, self._number, follower.stream)

    def recheck(self) -> None:
        """The rules have changed."""
        _recheck(self._connection, self._number, self._follower.stream, self)

    def close(self) -> None:
        """The client has left."""
        self._is_open = False
        self._follower.close()


class GroupChannel:
    """A member of a consumer group."""

    __slots__ = ("_connection", "_credit", "_group", "_held", "_is_open", "_member", "_number")

    def __init__(
        self, connection: "NativeConnection", number: int, group: Group, credit: int
    ) -> None:
        self._connection = connection
        self._number = number
        self._group = group
        self._credit = credit
        self._is_open = False
        self._held: dict[int, None] = {}  # sequences that it has not settled, in order of delivery
        self._member = group.join(self.pump)

    def open(self) -> None:
        """The client knows that it follows: begin."""
        self._is_open = True
        self.pump()

    def add_credit(self, count: int) -> None:
        """The client takes so many unsettled records from now on."""
        self._credit = count
        self.pump()

    def pump(self) -> None:
        """Send what no other member has, as far as there is room."""
        if not self._is_open:
            return
        connection = self._connection
        while not connection.endpoint.congested:
            room = min(self._credit - len(self._held), _AT_ONCE)
            records = self._member.take(room)
            if not records:
                break
            self._held.update(dict.fromkeys([each.sequence for each in records]))
            _send(connection, self._number, len(records), _columns_of(records))
        if self._group.is_deleted or self._group.stream.is_deleted:
            self._is_open = False
            _deleted(connection, self._number, self._group.stream)

    def recheck(self) -> None:
        """The rules have changed."""
        _recheck(self._connection, self._number, self._group.stream, self)

    def close(self) -> None:
        """The client has left: others get what it has not settled."""
        self._is_open = False
        self._member.close()

    def acknowledge(self, leases: tuple[int, ...], *, is_one: bool) -> int:
        """They are done; a single one stands for all before it too."""
        if is_one:
            leases = tuple(each for each in self._held if each <= leases[0])
        settled = 0
        for sequence in leases:
            if sequence in self._held:
                del self._held[sequence]
                settled += self._member.acknowledge(sequence)
        return settled

    def nack(self, lease: int, delay_s: float | None) -> bool:
        """Let any member have the record again, at once: a group keeps order, not delays."""
        if lease not in self._held:
            return False
        del self._held[lease]
        return self._member.give_back(lease)


def _send(
    connection: "NativeConnection", number: int, count: int, columns: Sequence[object]
) -> None:
    data = connection.encode((_RECORDS, number, *columns))
    connection.endpoint.write(data)
    connection.traffic.sent += count
    connection.traffic.sent_bytes += len(data)


def _deleted(connection: "NativeConnection", number: int, stream: Stream) -> None:
    what = f"stream {stream.name!r}" if stream.is_deleted else "the group"
    connection.ended(number, Code.NOT_FOUND, f"{what} was deleted")


def _recheck(
    connection: "NativeConnection",
    number: int,
    stream: Stream,
    channel: FollowChannel | GroupChannel,
) -> None:
    session = connection.session
    if session is not None:
        topic = STREAM_PREFIX + stream.name
        decision = connection.server.node.access.subscribe(session.client, topic, 1)
        if not decision.allowed:
            channel.close()
            connection.ended(number, Code.NOT_ALLOWED, decision.rule)


def _columns(batch: RecordBatch) -> list[object]:
    sequences = batch.sequences
    columns: list[Any] = [
        sequences[0] if isinstance(sequences, range) else sequences,
        batch.times,
        batch.topics,
        batch.payloads,
    ]
    return _with_optional(columns, batch.keys, batch.properties)


def _columns_of(records: list[Record]) -> Sequence[object]:
    if not records:
        return _NONE
    sequences, times, topics, keys, payloads, properties = map(list, zip(*records, strict=True))
    first, count = records[0].sequence, len(records)
    columns: list[Any] = [
        first if sequences == list(range(first, first + count)) else sequences,
        times[0] if times.count(times[0]) == count else times,
        topics[0] if topics.count(topics[0]) == count else topics,
        payloads,
    ]
    return _with_optional(
        columns,
        None if keys.count(None) == count else keys,
        None if properties.count(None) == count else properties,
    )


def _with_optional(
    columns: list[Any],
    keys: Sequence[str | None] | None,
    properties: Sequence[MessageProperties | None] | None,
) -> list[object]:
    maps: list[dict[str, Any] | None] = []
    if properties is not None:
        maps = [to_map(each, without_key=True) or None for each in properties]
    has_maps = any(maps)
    if keys is not None or has_maps:
        columns.append(keys)
    if has_maps:
        columns.append(maps)
    return columns
