"""Refusals are counted always and logged at a bounded rate: a hostile client cannot fill a disk."""

from collections import defaultdict
from typing import Any, Protocol

from ganglion.broker.core.access import Client
from ganglion.broker.core.timers import Timers

__all__ = ["Log", "Refusals"]

_LOGGED_PER_S_MAX = 20  # lines per second over all clients; the rest is counted and summed up


class Log(Protocol):
    """The part of a structlog logger that the core uses."""

    def debug(self, event: str, /, **details: Any) -> Any:
        """For whoever looks for a fault."""
        ...

    def info(self, event: str, /, **details: Any) -> Any:
        """Worth knowing, nothing is wrong."""
        ...

    def warning(self, event: str, /, **details: Any) -> Any:
        """Somebody did not get what they asked for."""
        ...


class Refusals:
    """Counts what was refused, by action, and tells the log who, what and by which rule."""

    def __init__(self, log: Log, timers: Timers) -> None:
        self.counts: defaultdict[str, int] = defaultdict(int)
        """Refusals since the start, by action."""
        self._log = log
        self._timers = timers
        self._second = 0
        self._logged = 0
        self._suppressed = 0

    def refuse(self, action: str, client: Client | None, rule: str, **details: Any) -> None:
        """Count a refusal and log it, with the client, the user and the rule that decided."""
        self.counts[action] += 1
        second = int(self._timers.now)
        if second != self._second:
            self._second, self._logged = second, 0
            if self._suppressed:
                self._log.warning("refusals not logged", count=self._suppressed)
                self._suppressed = 0
        if self._logged >= _LOGGED_PER_S_MAX:
            self._suppressed += 1
            return
        self._logged += 1
        if client is not None:
            details.update(client=client.client_id, user=client.user, address=client.address)
        self._log.warning("refused", action=action, rule=rule, **details)
