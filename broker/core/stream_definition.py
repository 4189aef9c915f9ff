"""What a stream is to be: the options of a stream and what they may be."""

from dataclasses import asdict, dataclass
from typing import Any

from ganglion.broker.core.definitions import check_bindings, check_name, check_number

__all__ = ["StreamDefinition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDefinition:
    """What a stream is to be. Raises `InvalidDefinition` for an option out of range."""

    name: str
    bindings: tuple[str, ...] = ()
    """Topic filters: what is published there is appended, whatever its QoS."""
    max_age_s: float = 0.0
    """How long records are kept; 0: for good."""
    max_bytes: int = 0
    """How much is kept, as it is stored; 0: any number."""
    max_records: int = 0
    keyed: bool = False
    """Whether the version of each key is kept, for appends that expect one."""
    compact: bool = False
    """Whether only the last record of each key is kept in the end; such a stream is keyed."""
    tombstone_keep_s: float = 86_400.0
    """How long a last record with an empty payload is kept."""
    max_record_bytes: int = 0
    """How large the payload of a record may be; 0: any size."""

    def __post_init__(self) -> None:
        """Check every option."""
        check_name(self.name, "stream")
        check_bindings(self.bindings, "stream")
        century_s = 100 * 366 * 86_400.0
        check_number("max_age_s", self.max_age_s, 0, century_s)
        check_number("max_bytes", self.max_bytes, 0, 2**53)
        check_number("max_records", self.max_records, 0, 2**53)
        check_number("tombstone_keep_s", self.tombstone_keep_s, 0, century_s)
        check_number("max_record_bytes", self.max_record_bytes, 0, 2**31)

    @property
    def is_keyed(self) -> bool:
        """Whether the version of each key is kept."""
        return self.keyed or self.compact

    def to_record(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> "StreamDefinition":
        """Back from `to_record`."""
        options: dict[str, Any] = {**record, "bindings": tuple(record["bindings"])}
        return StreamDefinition(**options)
