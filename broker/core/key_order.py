"""Order by key: of the messages of a queue that have one key, one at a time is given out.

The message that is given out *holds* its key until it is settled, or while it rests after a failure
and is to come before all others with this key. Those with a held key that are found meanwhile are
set aside, and come one by one: those of the highest priority first, among equals in the order in
which they came to the queue.
"""

from heapq import heappop, heappush

from ganglion.broker.core.message import Delivery

__all__ = ["KeyOrder", "key_of"]


class KeyOrder:
    """Which keys are held, and what waits for them, set aside."""

    __slots__ = ("_aside", "_holders", "count", "size_bytes")

    def __init__(self) -> None:
        self._holders: dict[str, Delivery] = {}
        self._aside: dict[str, list[tuple[int, int, Delivery]]] = {}
        self.count = 0
        """How many are set aside."""
        self.size_bytes = 0
        """What they count in bytes."""

    def claim(self, delivery: Delivery, priority: int) -> bool:
        """Whether it may be given out, and holds its key from now on; else it is set aside.

        What holds it already may.
        """
        key = key_of(delivery)
        if key is None:
            return True
        holder = self._holders.setdefault(key, delivery)
        if holder is delivery:
            return True
        heappush(self._aside.setdefault(key, []), (-priority, delivery[2], delivery))
        self.count += 1
        self.size_bytes += delivery[0].size_bytes()
        return False

    def release(self, delivery: Delivery) -> tuple[int, Delivery] | None:
        """It is out of the way: the next one with its key, and its priority, unless that is held.

        It need not have held its key: what was never given out may go as well.
        """
        key = key_of(delivery)
        if key is None:
            return None
        holder = self._holders.get(key)
        if holder is delivery:
            del self._holders[key]
        elif holder is not None:
            return None
        aside = self._aside.get(key)
        if aside is None:
            return None
        priority, _, following = heappop(aside)
        if not aside:
            del self._aside[key]
        self.count -= 1
        self.size_bytes -= following[0].size_bytes()
        return -priority, following

    def take_aside(self) -> list[tuple[int, Delivery]]:
        """Everything that is set aside, with its priority; it is so no more."""
        found = [(-each[0], each[2]) for aside in self._aside.values() for each in aside]
        self._aside = {}
        self.count = self.size_bytes = 0
        return found

    def forget_holders(self) -> None:
        """No key is held any more."""
        self._holders = {}


def key_of(delivery: Delivery) -> str | None:
    """The key of a message; None: it has none, and no order."""
    about = delivery[0].properties
    return None if about is None else about.key
