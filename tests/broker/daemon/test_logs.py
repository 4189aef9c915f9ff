"""The node's log: its two forms, its level, and what happens when nobody takes it."""

import io
import json
from typing import Any

import pytest

from ganglion.broker.daemon.logs import Logs


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Claim to be one."""
        return True


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, text: str, /) -> int:
        """Fail as a write to a full disk does."""
        raise OSError(28, "No space left on device")


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines of a stream, each a JSON object."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_without_a_terminal() -> None:
    """Each message is one JSON object on one line, with time, level, event and its details."""
    stream = io.StringIO()
    logs = Logs(stream)
    logs.logger.info("listening", listener="mqtt", address="[::1]:1883")
    logs.logger.warning("refused", user="a\nb", payload=b"\xff")
    first, second = objects(stream)
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert first["event"] == "listening"
    assert first["level"] == "info"
    assert first["listener"] == "mqtt"
    assert second["user"] == "a\nb"
    assert second["payload"] == "b'\\xff'"
    assert not logs.human


def test_human_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person gets words, without colours when NO_COLOR asks for none."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    logs = Logs(stream)
    logs.logger.error("reload refused", advice="mend it")
    assert logs.human
    assert "reload refused" in stream.getvalue()
    assert "advice='mend it'" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_form_can_be_chosen() -> None:
    """log.format overrides what the stream suggests."""
    assert Logs(io.StringIO(), form="human").human
    assert not Logs(Terminal(), form="json").human


def test_the_level_can_change_for_loggers_that_are_there() -> None:
    """A reload's level acts on loggers that were handed out before it."""
    stream = io.StringIO()
    logs = Logs(stream, level="warning")
    logger = logs.logger
    logger.info("unheard")
    logger.warning("heard")
    logs.set_level("debug")
    logger.debug("heard as well")
    logs.set_level("error")
    logger.warning("unheard again")
    assert [each["event"] for each in objects(stream)] == ["heard", "heard as well"]


def test_an_exception_is_part_of_its_line() -> None:
    """A traceback stays inside its JSON object."""
    stream = io.StringIO()
    logs = Logs(stream)
    logs.logger.error("failed", exc_info=ValueError("because"))
    (line,) = objects(stream)
    assert "ValueError: because" in line["exception"]


@pytest.mark.parametrize("stream", [Full(), io.StringIO()])
def test_a_log_that_nobody_takes_stops_nothing(stream: io.StringIO) -> None:
    """A full disk or a closed stream loses lines, counts them, and raises nothing."""
    logs = Logs(stream)
    if not isinstance(stream, Full):
        stream.close()
    logs.logger.info("lost")
    logs.logger.info("lost too")
    assert logs.lost == 2
