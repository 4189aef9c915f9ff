"""How often messages of a queue were delivered in vain, of those that keep their place meanwhile.

A message that gets a new place after a failure carries the number with it (`Terms.attempts`). These
here are few whatever waits in the queue: what came back comes before all others.
"""

from struct import Struct

import msgpack

from ganglion.broker.core.backlog import Shelf
from ganglion.broker.store import Kind

__all__ = ["Attempts", "Place"]

Place = tuple[int, int]
"""Where a message is: the backlog, and its number there."""

_KEY = Struct(">QQ")


class Attempts:
    """How often each came back, and until when it rests."""

    __slots__ = ("_found", "_shelf")

    def __init__(self, shelf: Shelf, backlogs: list[int]) -> None:
        """Read what is recorded of these backlogs."""
        self._shelf = shelf
        self._found: dict[Place, tuple[int, float]] = {}
        for backlog in backlogs:
            start, stop = _KEY.pack(backlog, 0), _KEY.pack(backlog + 1, 0)
            for key, value in shelf.store.scan(Kind.RETURNED, start, stop):
                identifier, number = _KEY.unpack(key)
                attempts, rests_until = msgpack.unpackb(value)
                due = rests_until - shelf.wall_clock_offset_s if rests_until else 0.0
                self._found[identifier, number] = (attempts, due)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, place: Place) -> int:
        """How often the message there came back since it has this place."""
        found = self._found.get(place)
        return 0 if found is None else found[0]

    def rests_until(self, place: Place) -> float:
        """When the message there is to be given out again (monotonic); 0: at once."""
        found = self._found.get(place)
        return 0.0 if found is None else found[1]

    def note(self, place: Place, attempts: int, due: float) -> None:
        """It came back for this time, and rests until it is `due` (monotonic); 0: not at all."""
        self._found[place] = (attempts, due)
        rests_until = due + self._shelf.wall_clock_offset_s if due else 0.0
        value = msgpack.packb([attempts, rests_until])
        self._shelf.commits.put(Kind.RETURNED, _KEY.pack(*place), value)

    def forget(self, place: Place) -> None:
        """The message there is gone. Harmless when it never came back."""
        if self._found.pop(place, None) is not None:
            self._shelf.commits.delete(Kind.RETURNED, _KEY.pack(*place))

    def forget_others(self, kept: set[Place]) -> None:
        """All messages but these are gone."""
        for place in self._found.keys() - kept:
            self.forget(place)
