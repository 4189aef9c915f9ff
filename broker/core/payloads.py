"""Messages that wait in several backlogs: stored once, and gone when the last is done with them.

A message that is routed to more than one durable place is stored under a number of its own, with
the count of the places where it still waits; the backlogs store only the number. The count is kept
in memory with the message and recorded once per commit.
"""

from functools import partial
from struct import Struct
from weakref import WeakValueDictionary

from ganglion.broker.core.commits import Commits
from ganglion.broker.core.message import Message, SharedPayload
from ganglion.broker.core.records import decode_message, encode_message
from ganglion.broker.store import Kind, RecordDamaged, Store

__all__ = ["Payloads"]

_NUMBER = Struct(">Q")
_USES = Struct(">Q")
_MANY = 2**62


class Payloads:
    """All messages that are stored once for several backlogs."""

    def __init__(self, store: Store, commits: Commits, wall_clock_offset_s: float) -> None:
        self._store = store
        self._commits = commits
        self._offset_s = wall_clock_offset_s
        self._next_number = 1
        # Both, since backlogs may still refer to a message whose record is damaged.
        for kind in (Kind.PAYLOAD, Kind.PAYLOAD_USES):
            for key, _ in store.scan(kind, backwards=True):
                self._next_number = max(self._next_number, _NUMBER.unpack(key)[0] + 1)
                break
        # Whoever loads one that another backlog has in memory has to see the same count.
        self._loaded: WeakValueDictionary[int, Message] = WeakValueDictionary()
        self._changed: list[Message] = []

    def share(self, message: Message) -> None:
        """From here on the message is stored by itself, wherever it waits."""
        message.shared = SharedPayload(self._next_number)
        self._loaded[self._next_number] = message
        self._next_number += 1

    def use(self, message: Message) -> None:
        """It waits in one more place; harmless for a message that is not shared."""
        shared = message.shared
        if shared is not None:
            shared.uses += 1
            self._note(message, shared)

    def release(self, message: Message) -> None:
        """It waits in one place less; harmless for a message that is not shared."""
        shared = message.shared
        if shared is not None:
            shared.uses -= 1
            self._note(message, shared)

    def load(self, number: int) -> Message | None:
        """The message of this number; None when it is missing or damaged (the store reports)."""
        message = self._loaded.get(number)
        if message is not None:
            return message
        key = _NUMBER.pack(number)
        try:
            record = self._store.get(Kind.PAYLOAD, key)
        except RecordDamaged:
            return None
        if record is None:
            return None
        message = decode_message(record, self._offset_s)
        message.shared = SharedPayload(number)
        message.shared.uses = self._recorded_uses(key)
        message.shared.is_recorded = True
        self._loaded[number] = message
        return message

    def _recorded_uses(self, key: bytes) -> int:
        """In how many places it waits; without a readable record in so many that it stays."""
        try:
            uses = self._store.get(Kind.PAYLOAD_USES, key)
        except RecordDamaged:
            uses = None
        return _MANY if uses is None else _USES.unpack(uses)[0]

    def _note(self, message: Message, shared: SharedPayload) -> None:
        if not shared.is_changed:
            shared.is_changed = True
            if not self._changed:
                self._commits.before_flush(self._write)
            self._changed.append(message)

    def _write(self) -> None:
        changed, self._changed = self._changed, []
        put, delete = self._commits.put, self._commits.delete
        for message in changed:
            shared = message.shared
            assert shared is not None
            shared.is_changed = False
            key = _NUMBER.pack(shared.number)
            if shared.uses:
                if not shared.is_recorded:
                    put(Kind.PAYLOAD, key, encode_message(message, self._offset_s))
                    shared.is_recorded = True
                put(Kind.PAYLOAD_USES, key, _USES.pack(shared.uses))
            elif shared.is_recorded:
                shared.is_recorded = False
                delete(Kind.PAYLOAD, key)
                delete(Kind.PAYLOAD_USES, key)
        # The store has the new count only then: till then nobody may load the old one.
        self._commits.after_commit(partial(_let_go, changed))


def _let_go(messages: list[Message]) -> None:
    """The end of a list that kept its messages alive."""
    messages.clear()
