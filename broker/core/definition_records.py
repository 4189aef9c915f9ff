"""Definitions of queues and streams as they are recorded: each one twice.

A definition leads to all that is in its queue or stream, and to be damaged takes one bit. So there
is a copy of it, under its name behind a NUL, which sorts the copies away from what they are copies
of. What is missing of the two is recorded anew at the next start.
"""

from collections.abc import Mapping

from ganglion.broker.core.commits import Commits
from ganglion.broker.store import Kind

__all__ = ["DefinitionRecords"]

_COPY = b"\0"  # no name begins so: names are printable


class DefinitionRecords:
    """The definitions of one kind, by name."""

    def __init__(self, commits: Commits, kind: Kind) -> None:
        self._commits = commits
        self._kind = kind

    def load(self, recorded: Mapping[bytes, bytes]) -> dict[str, bytes]:
        """The definitions among all good records of the kind.

        Keys with a NUL elsewhere than in front are not theirs, and left alone.
        """
        found: dict[str, bytes] = {}
        for key, value in recorded.items():
            key = key.removeprefix(_COPY)
            if _COPY in key:
                continue
            name = key.decode()
            if name not in found:
                found[name] = recorded.get(key, value)
                if key not in recorded or _COPY + key not in recorded:
                    self.put(name, found[name])
        return found

    def put(self, name: str, value: bytes) -> None:
        """Record a definition."""
        key = name.encode()
        self._commits.put(self._kind, key, value)
        self._commits.put(self._kind, _COPY + key, value)

    def delete(self, name: str) -> None:
        """Record that there is no such queue or stream."""
        key = name.encode()
        self._commits.delete(self._kind, key)
        self._commits.delete(self._kind, _COPY + key)
