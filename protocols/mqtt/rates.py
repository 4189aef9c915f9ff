"""How fast one client may send: a token bucket for messages and one for bytes."""

from ganglion.broker.core.limits import Limits

__all__ = ["Bucket"]

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
