"""What a queue is to be: the options of a queue and what they may be."""

from dataclasses import asdict, dataclass
from typing import Any

from ganglion.broker.core.definitions import (
    InvalidDefinition,
    check_bindings,
    check_name,
    check_number,
)

__all__ = ["QueueDefinition"]

_OVERFLOWS = ("reject", "drop-oldest", "dead-letter")
_PRIORITIES_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDefinition:
    """What a queue is to be. Raises `InvalidDefinition` for an option out of range."""

    name: str
    bindings: tuple[str, ...] = ()
    """Topic filters: what is published there waits in the queue, whatever its QoS."""
    lease_s: float = 60.0
    """How long a consumer may take for a message before another one gets it."""
    max_deliveries: int = 0
    """After so many deliveries in vain a message is buried; 0: never."""
    backoff_s: float = 1.0
    """How long a message rests after its first failure; doubled by each further one."""
    backoff_max_s: float = 300.0
    dead_letter: str = ""
    """The queue that gets what is buried; made with defaults if there is none of this name."""
    ttl_s: float = 0.0
    """How old a message may get before it is dead-lettered or dropped; 0: any age."""
    priorities: int = 1
    """How many levels of priority there are."""
    ordered_by_key: bool = False
    """Whether of the messages with one key only one at a time is given out, in order."""
    single_active_consumer: bool = False
    """Whether only the consumer that has been there longest gets messages."""
    max_messages: int = 0
    """How many messages it takes, 0: any number; those that consumers have are among them."""
    max_bytes: int = 0
    overflow: str = "reject"
    """At such a limit: ``reject`` what comes, ``drop-oldest``, or ``dead-letter`` the oldest."""
    deduplication_s: float = 0.0
    """How long a message identifier is remembered: what comes with it again is not taken."""
    canary_share: float = 0.0
    """Which part of the messages, 0 to 1, is for canaries while other consumers are there too."""

    def __post_init__(self) -> None:
        """Check every option."""
        check_name(self.name, "queue")
        check_bindings(self.bindings, "queue")
        year_s = 366 * 86_400.0
        check_number("lease_s", self.lease_s, 0.001, year_s)
        check_number("max_deliveries", self.max_deliveries, 0, 2**31)
        check_number("backoff_s", self.backoff_s, 0, year_s)
        check_number("backoff_max_s", self.backoff_max_s, 0, year_s)
        check_number("ttl_s", self.ttl_s, 0, 100 * year_s)
        check_number("priorities", self.priorities, 1, _PRIORITIES_MAX)
        check_number("max_messages", self.max_messages, 0, 2**53)
        check_number("max_bytes", self.max_bytes, 0, 2**53)
        check_number("deduplication_s", self.deduplication_s, 0, year_s)
        check_number("canary_share", self.canary_share, 0, 1)
        if self.canary_share and self.single_active_consumer:
            raise InvalidDefinition(
                "option canary_share shares messages out, and single_active_consumer gives all to "
                "one consumer: a queue has one of them"
            )
        if self.overflow not in _OVERFLOWS:
            raise InvalidDefinition(
                f"option overflow is {self.overflow!r}; it must be {', '.join(_OVERFLOWS)}"
            )
        if self.overflow == "dead-letter" and not self.dead_letter:
            raise InvalidDefinition("option overflow is 'dead-letter', and dead_letter is not set")
        if self.dead_letter:
            check_name(self.dead_letter, "queue")
        if self.dead_letter == self.name:
            raise InvalidDefinition("option dead_letter names the queue itself")

    def to_record(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> "QueueDefinition":
        """Back from `to_record`."""
        options: dict[str, Any] = {**record, "bindings": tuple(record["bindings"])}
        return QueueDefinition(**options)
