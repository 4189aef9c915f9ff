"""The answers to confirmed publishes: in the order of the publishes, and many as one.

What is durable is confirmed after the commit, and what is not does not overtake it. Publishes with
the same outcome that are confirmed together become one frame with the first and the last of their
identifiers, so that a thousand messages of one commit cost one answer.
"""

from functools import partial
from typing import TYPE_CHECKING

from ganglion.broker.core.commits import Commits
from ganglion.protocols.native.operations import Operation

if TYPE_CHECKING:
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["TAKEN_BEFORE", "Confirmations", "Counts"]

Counts = tuple[int | None, int | None, int | None]
"""Subscribers, queues and streams."""

TAKEN_BEFORE: Counts = (None, None, None)
"""For a publish that was sent again: how many targets it had is not known any more."""

_Runs = list[tuple[int, int, Counts]]

_CONFIRMED = int(Operation.CONFIRMED)


class Confirmations:
    """What one connection has to confirm."""

    __slots__ = ("_at_once", "_commit", "_commits", "_connection", "_of_commit", "_waiting")

    def __init__(self, connection: "NativeConnection", commits: Commits) -> None:
        self._connection = connection
        self._commits = commits
        self._waiting = 0  # effects of commits to come that will send some
        self._commit = 0  # which `_of_commit` waits for
        self._of_commit: _Runs = []
        self._at_once: _Runs = []

    def add(self, number: int, counts: Counts, *, durable: bool, last: int | None = None) -> None:
        """Confirm the publish, after what was recorded so far if it is `durable`.

        With `last` all up to that are confirmed.
        """
        last = number if last is None else last
        if not self._waiting and (not durable or self._commits.is_idle):
            _add(self._at_once, number, last, counts)
            return
        if self._at_once:
            self.flush()
        commit = self._commits.number
        if not durable or self._commit == commit:
            _add(self._of_commit, number, last, counts)
            return
        # Nothing is recorded when it came before: then it waits for the commit under way.
        self._commit = commit if self._commits.is_open else 0
        self._of_commit = [(number, last, counts)]
        self._waiting += 1
        self._commits.after_commit(partial(self._send, self._of_commit))

    def flush(self) -> None:
        """Send what waits for nothing."""
        if self._at_once:
            runs, self._at_once = self._at_once, []
            self._write(runs)

    def _send(self, runs: _Runs) -> None:
        self._waiting -= 1
        if runs is self._of_commit:
            self._commit = 0
            self._of_commit = []
        self._write(runs)

    def _write(self, runs: _Runs) -> None:
        encode = self._connection.encode
        data = b"".join(
            [encode((_CONFIRMED, first, last, *counts)) for first, last, counts in runs]
        )
        self._connection.endpoint.write(data)
        self._connection.server.node.statistics.other_packets_sent += len(runs)


def _add(runs: _Runs, number: int, last: int, counts: Counts) -> None:
    if runs:
        first, end, before = runs[-1]
        if before == counts and number > end:
            runs[-1] = (first, last, counts)
            return
    runs.append((number, last, counts))
