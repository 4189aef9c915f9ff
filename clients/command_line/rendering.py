"""How commands show what came from a node: messages by a template or as JSON, tables, progress.

What a publisher chose goes to a terminal only with its control characters made harmless: it could
otherwise move the cursor, change colours or retitle the window of whoever looks. Into a pipe or a
file every byte of a payload goes as it is.
"""

import base64
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import click

__all__ = [
    "FIELDS",
    "Output",
    "Progress",
    "Received",
    "as_object",
    "echo_columns",
    "echo_json",
    "echo_map",
    "harmless",
    "parse_template",
]

FIELDS = (
    "topic",
    "payload",
    "hex",
    "base64",
    "json",
    "size",
    "key",
    "headers",
    "header.NAME",
    "content_type",
    "priority",
    "message_id",
    "expires_s",
    "retained",
    "sequence",
    "time",
    "lease",
    "attempts",
    "number",
)
"""What a template may name in braces; what a message does not have is empty."""

_PLACE = re.compile(r"\{([a-z_0-9]+(?:\.[^{}]+)?)\}")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\"}
_PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Received:
    """A message, job, record or reply as it came."""

    topic: str
    payload: bytes
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])
    about: Mapping[str, object] = field(default_factory=dict[str, object])
    """What the way that it came by says of it: its sequence, its lease, …"""


def as_object(message: Received) -> dict[str, object]:
    """A message as JSON has it; bytes that are not UTF-8 are base64 under a name that says so."""
    shown: dict[str, object] = dict(message.about)
    if message.topic:
        shown["topic"] = message.topic
    for name, value in (("payload", message.payload), *message.properties.items()):
        if not isinstance(value, bytes):
            shown[name] = value
            continue
        try:
            shown[name] = value.decode()
        except UnicodeDecodeError:
            shown[f"{name}_base64"] = base64.b64encode(value).decode()
    return shown


def parse_template(text: str) -> list[str]:
    """A template as text and names of fields by turns. Raises `click.UsageError`."""
    text = re.sub(r"\\[nt0\\]", lambda found: _ESCAPES[found.group()], text)
    parts = _PLACE.split(text)
    for name in parts[1::2]:
        known = "header.NAME" if name.startswith("header.") else name
        if known not in FIELDS:
            raise click.UsageError(
                f"--format: there is no field {name}; there are {', '.join(FIELDS)}"
            )
    return parts


class Output:
    """Standard output for messages, by a template or as JSON lines."""

    def __init__(self, template: list[str], *, as_json: bool) -> None:
        self._template = template
        self._as_json = as_json
        self._stream: BinaryIO = sys.stdout.buffer
        self._is_terminal = sys.stdout.isatty()

    def write(self, message: Received) -> None:
        """Print a message and the end of its line; `flush` makes sure that it is out."""
        if self._as_json:
            line = json.dumps(as_object(message), ensure_ascii=self._is_terminal).encode()
        else:
            line = b"".join(
                _field(message, part) if index % 2 else part.encode(errors="surrogateescape")
                for index, part in enumerate(self._template)
            )
            if self._is_terminal:
                line = harmless(line)
        self._stream.write(line + b"\n")

    def flush(self) -> None:
        """Let whoever reads have all of it."""
        self._stream.flush()


def _field(message: Received, name: str) -> bytes:
    match name:
        case "topic":
            return message.topic.encode()
        case "payload":
            return message.payload
        case "hex":
            return message.payload.hex().encode()
        case "base64":
            return base64.b64encode(message.payload)
        case "json":
            return json.dumps(as_object(message)).encode()
        case "size":
            return b"%d" % len(message.payload)
        case _:
            pass
    if name.startswith("header."):
        wanted = name.removeprefix("header.")
        headers = message.properties.get("headers", {})
        pairs: Iterable[tuple[str, str]] = headers
        if isinstance(headers, dict):
            pairs = cast("dict[str, str]", headers).items()
        return next((value.encode() for key, value in pairs if key == wanted), b"")
    value = message.about.get(name, message.properties.get(name))
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def harmless(line: bytes) -> bytes:
    r"""A line in which control characters are written ``\xNN``."""
    text = line.decode(errors="backslashreplace")
    return "".join(
        each if each in "\t\n" or each.isprintable() else f"\\x{ord(each):02x}" for each in text
    ).encode()


def echo_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value, ensure_ascii=sys.stdout.isatty()))


def echo_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows with all columns but the last padded to the same width."""
    if not rows:
        return
    if sys.stdout.isatty():
        rows = [tuple(harmless(each.encode()).decode() for each in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]).rstrip())


def echo_map(value: Mapping[str, Any]) -> None:
    """Print names and values, those of maps inside under their path."""
    rows: list[tuple[str, str]] = []
    for name, each in value.items():
        if isinstance(each, dict):
            inside = cast("dict[str, object]", each)
            rows += [(f"{name}.{inner}", _plain(what)) for inner, what in inside.items()]
        else:
            rows.append((name, _plain(each)))
    echo_columns(rows)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Progress:
    """How far a long command is, on standard error when that is a terminal."""

    def __init__(self, verb: str, total: int | None = None) -> None:
        self._verb = verb
        self._total = total
        self._begun_s = self._shown_s = time.monotonic()
        self._is_shown = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if self._is_shown and now - self._shown_s >= _PROGRESS_INTERVAL_S:
            self._shown_s = now
            of = "" if self._total is None else f" of {self._total}"
            rate = count / (now - self._begun_s)
            sys.stderr.write(f"\r\x1b[K{self._verb} {count}{of}, {rate:,.0f}/s")
            sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._is_shown and self._shown_s > self._begun_s:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
