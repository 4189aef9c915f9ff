"""How fast one client may send: a token bucket for messages and one for bytes, and the disk."""

from collections.abc import Callable

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.node import Node
from ganglion.broker.net import Endpoint

__all__ = ["Bucket", "Intake"]

_BURST_S = 1.0  # what was not sent may be sent later, at most this much of it


class Bucket:
    """What a client may still send now, in messages and bytes; negative when it sent more."""

    __slots__ = ("_at", "_bytes", "_messages")

    def __init__(self) -> None:
        self._at = 0.0
        self._messages = 0.0
        self._bytes = 0.0

    def take(self, messages: int, size_bytes: int, limits: Limits, now: float) -> float:
        """Count what came at `now`; how long to read nothing, in seconds, or less than 0."""
        elapsed_s = min(_BURST_S, now - self._at)
        self._at = now
        pause_s = 0.0
        if rate := limits.receive_messages_per_s_max:
            self._messages = min(rate, self._messages + elapsed_s * rate) - messages
            pause_s = -self._messages / rate
        if rate := limits.receive_bytes_per_s_max:
            self._bytes = min(rate, self._bytes + elapsed_s * rate) - size_bytes
            pause_s = max(pause_s, -self._bytes / rate)
        return pause_s


class Intake:
    """Why one connection is not read for a while: it sends too fast, or the disk is too slow."""

    __slots__ = ("_bucket", "_endpoint", "_holds", "_node", "_read_on")

    def __init__(self, node: Node, endpoint: Endpoint, read_on: Callable[[], None]) -> None:
        """`read_on` is called when nothing is in the way any more."""
        self._node = node
        self._read_on = read_on
        self._endpoint = endpoint
        self._bucket: Bucket | None = None
        self._holds = 0

    @property
    def is_held(self) -> bool:
        """Whether nothing is read now: then it is not the client who is silent."""
        return self._holds > 0

    def keep_rate(self, messages: int, size_bytes: int, now: float) -> None:
        """Do not read on until the client is back within its rates."""
        if self._bucket is None:
            self._bucket = Bucket()
        pause_s = self._bucket.take(messages, size_bytes, self._node.limits, now)
        if pause_s > 0:
            self._hold()
            self._node.timers.at(now + pause_s, lambda _now: self._release())

    def wait_for_disk(self) -> None:
        """Do not read on until what was recorded is durable."""
        self._hold()
        self._node.journal.commits.after_commit(self._release)

    def _hold(self) -> None:
        self._holds += 1
        self._endpoint.pause_reading()

    def _release(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._read_on()
