"""The streams of a node: which there are, and what is bound to them.

A definition is recorded (`definition_records`) with the identifier under which the store has what
is in the stream. What a stream does with that is in `stream`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from struct import Struct

import msgpack

from ganglion.broker.core.backlog import Shelf
from ganglion.broker.core.definition_records import DefinitionRecords
from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.router import Bound
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.stream import (
    STREAM_PREFIX,
    Stream,
    StreamMissing,
    StreamState,
    state_key,
)
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.stream_groups import Group
from ganglion.broker.store import Kind

__all__ = ["Streams"]

_STREAMS_MAX = 100_000  # each costs some KB of memory and a place in the router
_ID = Struct(">Q")
_EMPTY: StreamState = (1, 1, 0, 0, 0.0)


class Streams:
    """All streams of a node, by name."""

    def __init__(
        self,
        shelf: Shelf,
        statistics: Statistics,
        bind: Callable[[Bound, str], None],
        unbind: Callable[[Bound, str], None],
    ) -> None:
        """Make the streams that are recorded. `bind` has the router lead a filter to a receiver."""
        self._shelf = shelf
        self._statistics = statistics
        self._bind = bind
        self._unbind = unbind
        self._streams: dict[str, Stream] = {}
        self._next_id = 1
        self._records = DefinitionRecords(shelf.commits, Kind.STREAM)
        self._load()

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)

    def find(self, name: str) -> Stream | None:
        """The stream of this name, if there is one."""
        return self._streams.get(name)

    def get(self, name: str) -> Stream:
        """The stream of this name. Raises `StreamMissing`."""
        stream = self._streams.get(name)
        if stream is None:
            raise StreamMissing(name)
        return stream

    def declare(self, definition: StreamDefinition) -> Stream:
        """The stream, made if it is not there, and as the definition says from now on.

        Raises `InvalidDefinition`, also where an existing stream cannot become like this.
        """
        stream = self._streams.get(definition.name)
        if stream is None:
            if len(self._streams) >= _STREAMS_MAX:
                raise InvalidDefinition(f"there are {_STREAMS_MAX} streams already")
            stream = self._open(definition, self._next_id, _EMPTY)
            self._next_id += 1
            stream.note_state()
            self._record(stream)
        elif stream.definition != definition:
            was = stream.definition
            if definition.is_keyed and not was.is_keyed and not stream.is_untouched:
                raise InvalidDefinition(
                    f"stream {stream.name} has records and no versions of their keys: it can only "
                    "become keyed by deleting it"
                )
            for topic_filter in was.bindings:
                if topic_filter not in definition.bindings:
                    self._unbind(stream, topic_filter)
            stream.configure(definition)
            self._bind_all(stream)  # routes say whether to ask the stream for room
            self._record(stream)
        return stream

    def bind(self, stream: Stream, topic_filter: str) -> None:
        """Let what is published there be appended to the stream; harmless if it is."""
        if topic_filter not in stream.definition.bindings:
            bindings = (*stream.definition.bindings, topic_filter)
            self.declare(replace(stream.definition, bindings=bindings))

    def unbind(self, stream: Stream, topic_filter: str) -> None:
        """Take a binding back; harmless if there is none."""
        bindings = tuple(each for each in stream.definition.bindings if each != topic_filter)
        self.declare(replace(stream.definition, bindings=bindings))

    def delete(self, name: str) -> None:
        """Delete the stream and everything in it. Raises `StreamMissing`."""
        stream = self.get(name)
        del self._streams[name]
        for topic_filter in (*stream.definition.bindings, STREAM_PREFIX + name):
            self._unbind(stream, topic_filter)
        stream.discard()
        self._records.delete(name)

    def _open(self, definition: StreamDefinition, identifier: int, state: StreamState) -> Stream:
        stream = Stream(definition, identifier, self._shelf, self._statistics, state)
        self._streams[definition.name] = stream
        self._bind_all(stream)
        return stream

    def _bind_all(self, stream: Stream) -> None:
        for topic_filter in (*stream.definition.bindings, STREAM_PREFIX + stream.name):
            self._bind(stream, topic_filter)

    def _record(self, stream: Stream) -> None:
        value = msgpack.packb([stream.identifier, stream.definition.to_record()])
        self._records.put(stream.name, value)

    # -- start -----------------------------------------------------------------------------------

    def _load(self) -> None:
        store = self._shelf.store
        recorded = dict(store.scan(Kind.STREAM))
        for name, value in self._records.load(recorded).items():
            identifier, definition = msgpack.unpackb(value)
            state = recorded.get(state_key(name))
            stream = self._open(
                StreamDefinition.from_record(definition),
                identifier,
                _EMPTY if state is None else msgpack.unpackb(state, use_list=False),
            )
            if state is None:
                stream.recover()
            self._next_id = max(self._next_id, identifier + 1)
        # A stream whose definition is damaged has its identifier in use all the same.
        for kind in (Kind.STREAM_BATCH, Kind.STREAM_KEY, Kind.STREAM_GROUP):
            for key, _ in store.scan(kind, backwards=True):
                self._next_id = max(self._next_id, _ID.unpack_from(key)[0] + 1)
                break
        self._load_groups()

    def discard_others(self) -> None:
        """Forget what the store has of streams that nobody can find: their definitions were lost.

        Only for a store without damage, where those do not come back.
        """
        commits, store = self._shelf.commits, self._shelf.store
        for key, _ in store.scan(Kind.STREAM):
            if key[-1:] == b"\0" and key[:-1].decode() not in self._streams:
                commits.delete(Kind.STREAM, key)
        known = sorted(stream.identifier for stream in self._streams.values())
        for kind in (Kind.STREAM_BATCH, Kind.STREAM_KEY, Kind.STREAM_GROUP):
            first = 0
            for stop in (*known, self._next_id):
                between = _ID.pack(first), _ID.pack(stop)
                if first < stop and next(store.scan(kind, *between), None) is not None:
                    commits.delete_range(kind, *between)
                first = stop + 1

    def _load_groups(self) -> None:
        by_identifier = {stream.identifier: stream for stream in self._streams.values()}
        for key, value in self._shelf.store.scan(Kind.STREAM_GROUP):
            stream = by_identifier.get(_ID.unpack_from(key)[0])
            if stream is not None:
                name = key[_ID.size :].decode()
                stream.groups[name] = Group(stream, name, msgpack.unpackb(value))
