"""Logging: one structlog logger for the node, human on a terminal and JSON lines otherwise.

The level can change while the node runs (`Logs.set_level`), also for loggers that were bound
before, because it is looked up when a message is logged. A log that nobody can take (standard
error is closed, or its disk is full) never stops the node: such lines are counted in
`Logs.lost`.
"""

import json
import os
from collections.abc import MutableMapping
from typing import Any, Protocol, TextIO, cast

import structlog
from structlog.typing import Processor

from ganglion.broker.core.refusals import Log

__all__ = ["Logger", "Logs"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "exception": 40}


class Logger(Log, Protocol):
    """The part of a structlog logger that the daemon uses: the core's, and errors."""

    def error(self, event: str, /, **details: Any) -> Any:
        """Something does not work that should."""
        ...


class Logs:
    """Where a node's log goes, in which form and from which level on."""

    def __init__(self, stream: TextIO, *, level: str = "info", form: str = "auto") -> None:
        """Log to ``stream``; ``form`` is ``human``, ``json`` or ``auto`` (by the stream)."""
        self.human = form == "human" or (form == "auto" and stream.isatty())
        self.lost = 0
        self._stream = stream
        self._least = _LEVELS[level]
        renderer: Processor
        if self.human:
            colours = stream.isatty() and not os.environ.get("NO_COLOR")
            renderer = structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=24)
            stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        else:
            renderer = structlog.processors.JSONRenderer(_to_json)
            stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self.logger = cast(
            "Logger",
            structlog.wrap_logger(
                _Lines(self),
                processors=[
                    self._drop_below_level,
                    structlog.processors.add_log_level,
                    stamp,
                    structlog.processors.format_exc_info if not self.human else _leave,
                    renderer,
                ],
                wrapper_class=structlog.make_filtering_bound_logger(0),
                context_class=dict,
                cache_logger_on_first_use=True,
            ),
        )

    def set_level(self, level: str) -> None:
        """Log from ``level`` (``debug``, ``info``, ``warning``, ``error``) on, from now on."""
        self._least = _LEVELS[level]

    def write(self, line: str) -> None:
        """Write one line as it is, or count it as lost."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            self.lost += 1

    def _drop_below_level(
        self, _logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if _LEVELS.get(method, 0) < self._least:
            raise structlog.DropEvent
        return event


class _Lines:
    """What structlog calls with a rendered line, under the name of the level."""

    def __init__(self, logs: Logs) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = logs.write
        self.exception = self.msg = logs.write


def _leave(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return event


def _to_json(event: dict[str, object], **_options: object) -> str:
    # What every line has comes first, so that the lines can be read without a tool as well.
    head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return json.dumps({**head, **event}, default=repr, ensure_ascii=False)
