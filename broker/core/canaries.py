"""Canaries: consumers that get a share of the messages, to try something new on it first.

What is for them is settled by the key of a message: the same key is always on the same side while
the share stays, on every node, after every restart, and in every queue or group with this share. A
share that grows only moves keys to the canaries, one that shrinks only takes them away. Messages
without a key are told apart by a number that each has, and spread evenly.

How a queue keeps both sides is in `queue_sides`, how a shared subscription does in `router`. A
queue has the share in its definition. A shared subscription is defined by its members alone: one
that says a share, as an option of its subscription, is a canary.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from ganglion.broker.core.definitions import check_number, parse_option

__all__ = ["CANARY_SHARE", "canary_share", "is_for_canaries", "sharing_options"]

CANARY_SHARE: Final = "canary_share"
"""The option of a queue, and of a member of a shared subscription."""

_SPAN: Final = 1 << 64
# The golden ratio of the span: multiples of it are spread as evenly as can be, however few they are
_STEP: Final = 0x9E37_79B9_7F4A_7C15


def is_for_canaries(share: float, key: str | None, number: int) -> bool:
    """Whether a message belongs to this share, 0 to 1, of all: by its key, or else its number."""
    if key is None:
        place = number * _STEP % _SPAN
    else:
        # Not a checksum: keys that differ by a digit would have places that depend on each other.
        place = int.from_bytes(blake2b(key.encode(), digest_size=8).digest())
    return place < share * _SPAN


def sharing_options(options: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those of the options that are about membership of a shared subscription.

    Raises `InvalidDefinition` where one says nothing sensible.
    """
    found = [text for name, text in options if name.replace("-", "_") == CANARY_SHARE]
    if not found:
        return ()
    check_number(CANARY_SHARE, parse_option(float, CANARY_SHARE, found[-1]), 0, 1)
    return ((CANARY_SHARE, found[-1]),)


def canary_share(options: Iterable[tuple[str, str]]) -> float | None:
    """The share that `sharing_options` say; None: the member is no canary."""
    for name, text in options:
        if name == CANARY_SHARE:
            return float(text)
    return None
