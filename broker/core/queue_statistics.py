"""What a look at a queue shows."""

from dataclasses import dataclass

from ganglion.broker.core.message import Message

__all__ = ["Browsed", "QueueStatistics"]


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """How a queue stands, and what has happened since the start of the node."""

    messages: int
    """All that is in it: ready, leased and delayed."""
    bytes: int
    leased: int
    """With consumers, not settled."""
    delayed: int
    """Not due yet."""
    consumers: int
    is_paused: bool
    oldest_s: float | None
    """How long the oldest message has been there, in seconds; None: it is empty."""
    published: int
    delivered: int
    acknowledged: int
    returned: int
    buried: int
    """Rejected, expired, overflowing, or delivered in vain too often."""
    duplicates: int
    refused: int
    """Messages that it had no room for."""
    canaries: int
    """How many of the consumers are canaries."""
    waiting_for_canaries: int
    """Ready messages that are kept for a canary with room."""
    delivered_to_canaries: int
    """How many of those delivered."""


@dataclass(frozen=True, slots=True)
class Browsed:
    """One message of a queue, as a look at it shows."""

    number: int
    message: Message
    time_s: float
    """When it came, in Unix seconds."""
    attempts: int
    """How often it was delivered in vain."""
