"""How messages are shown, and how input is cut into lines."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.clients.command_line.payloads import split_lines
from ganglion.clients.command_line.rendering import Received, as_object, harmless


def test_bytes_that_are_no_text_are_base64() -> None:
    """They come under a name that says so; the rest is JSON as it is."""
    shown = as_object(Received("t", b"\xff\0", {"correlation": b"\x80", "key": "k"}, {"lease": 1}))
    expected = {"lease": 1, "topic": "t", "payload_base64": "/wA=", "correlation_base64": "gA=="}
    assert shown == {**expected, "key": "k"}
    json.dumps(shown)


@given(st.binary())
def test_a_terminal_gets_no_control_characters(line: bytes) -> None:
    """Whatever is published, a person's terminal gets nothing but text, tabs and line ends."""
    assert all(each in "\t\n" or each.isprintable() for each in harmless(line).decode())


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\nb", [b"a", b"b"]),
        (b"\n\nx\n", [b"", b"", b"x"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"x" * 200_000 + b"\ny", [b"x" * 200_000, b"y"]),
    ],
)
def test_lines_come_without_their_ends(data: bytes, lines: list[bytes]) -> None:
    """Each line is one message; an empty line is an empty message."""
    groups = split_lines(io.BytesIO(data), lambda _until: None)
    assert [line for group in groups for line in group] == lines
