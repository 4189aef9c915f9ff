"""How ganglion sub shows messages, and how ganglion pub cuts its input."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.daemon.messages import FORMATS, render, split_lines
from ganglion.protocols.mqtt.packets import Publish
from ganglion.protocols.mqtt.properties import Properties


def test_text_is_the_payload_as_it_is() -> None:
    """Into a pipe or a file every byte of the payload goes unchanged."""
    message = Publish("a/b", b"\xff\x1b[31mred\0")
    assert render(message, "text", with_topic=False, terminal=False) == b"\xff\x1b[31mred\0"
    assert render(message, "text", with_topic=True, terminal=False) == b"a/b \xff\x1b[31mred\0"


def test_hex_is_readable_and_exact() -> None:
    """Every byte is shown as two hexadecimal digits."""
    message = Publish("t", bytes(range(256)))
    shown = render(message, "hex", with_topic=True, terminal=True)
    assert bytes.fromhex(shown.decode().removeprefix("t ")) == message.payload


def test_json_has_everything_that_came() -> None:
    """One object tells topic, QoS, retain, the payload and the properties that are set."""
    properties = Properties(
        content_type="text/plain",
        correlation_data=b"\x01\x02",
        user_properties=(("a", "1"), ("a", "2")),
        message_expiry_interval=0,
    )
    message = Publish("a/ü", "héllo\n".encode(), qos=2, retain=True, properties=properties)
    line = render(message, "json", with_topic=False, terminal=False)
    assert b"\n" not in line
    assert json.loads(line) == {
        "topic": "a/ü",
        "qos": 2,
        "retain": True,
        "payload": "héllo\n",
        "properties": {
            "message_expiry_interval": 0,
            "content_type": "text/plain",
            "correlation_data_base64": "AQI=",
            "user_properties": [["a", "1"], ["a", "2"]],
        },
    }


def test_json_says_when_a_payload_is_no_text() -> None:
    """Bytes that are not UTF-8 come as base64 under a name of their own."""
    shown = json.loads(render(Publish("t", b"\xff\0"), "json", with_topic=False, terminal=False))
    assert shown["payload_base64"] == "/wA="
    assert "payload" not in shown


@given(
    st.binary(),
    st.sampled_from(FORMATS),
    st.text(min_size=1).filter(lambda text: text.isprintable()),
)
def test_a_terminal_gets_no_control_characters(payload: bytes, form: str, topic: str) -> None:
    """Whatever is published, a person's terminal gets nothing but text, tabs and line ends."""
    shown = render(Publish(topic, payload), form, with_topic=True, terminal=True).decode()
    assert all(each in "\t\n" or each.isprintable() for each in shown)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\nb", [b"a", b"b"]),
        (b"\n\nx\n", [b"", b"", b"x"]),
        (b"a\rb\n", [b"a\rb"]),
    ],
)
def test_lines_come_without_their_ends(data: bytes, lines: list[bytes]) -> None:
    """Each line is one message; an empty line is an empty message."""
    assert list(split_lines(io.BytesIO(data))) == lines
