"""Asking an MQTT broker whether it answers: brokers, and peers that misbehave on purpose."""

import socket

import pytest

from ganglion.broker.daemon.probe import (
    ConnectionLost,
    ProbeError,
    Refused,
    Target,
    TimedOut,
    Unreachable,
    probe,
)
from ganglion.protocols.mqtt.packets import Connack, Disconnect
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.mqtt_client import scripted_broker


def test_a_refused_connection_tells_the_reason() -> None:
    """The broker's reason code and its words come out, and are told in one sentence."""
    properties = Properties(reason_string="come back tomorrow")
    with scripted_broker(Connack(False, Reason.BANNED, properties)) as target:
        with pytest.raises(Refused, match=r"refused: banned \(come back tomorrow\)") as caught:
            probe(target, 10)
        assert caught.value.reason == Reason.BANNED


def test_the_reason_of_a_disconnect_is_told() -> None:
    """When the broker says why it ends the connection, so does the error."""
    with (
        scripted_broker(Connack(False), Disconnect(Reason.SERVER_SHUTTING_DOWN)) as target,
        pytest.raises(ConnectionLost, match="server shutting down"),
    ):
        probe(target, 10)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00", b"\xc0\x00"])
def test_what_is_no_broker_is_told(answer: bytes) -> None:
    """A web server on the port, or garbage, is named at once, without waiting for more of it."""
    with scripted_broker(answer) as target, pytest.raises(ConnectionLost, match="no MQTT broker"):
        probe(target, 10)


def test_a_broken_packet_is_told() -> None:
    """What MQTT does not allow ends the connection, and the error says what it was."""
    with (
        scripted_broker(Connack(False), b"\xd0\x01\x00") as target,
        pytest.raises(ConnectionLost, match="does not speak MQTT"),
    ):
        probe(target, 10)


def test_a_broker_that_closes_is_told() -> None:
    """An end without a word is an error of its own."""
    with scripted_broker() as target, pytest.raises(ConnectionLost):
        probe(target, 10)


def test_silence_is_bounded() -> None:
    """A peer that never answers costs the timeout and no more."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(TimedOut, match=r"within 0\.05 s"),
    ):
        probe(Target(host="127.0.0.1", port=listening.getsockname()[1]), 0.05)


def test_nobody_there_is_told() -> None:
    """A port without a listener, an unknown socket: one sentence that names the target."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unreachable, match=f"mqtt://127.0.0.1:{port}: Connection refused"):
        probe(Target(host="127.0.0.1", port=port), 10)
    with pytest.raises(Unreachable, match="unix:/nonexistent: No such file"):
        probe(Target(path="/nonexistent"), 10)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("mqtt://example.org", Target(host="example.org", port=1883)),
        ("mqtts://example.org", Target(host="example.org", port=8883, tls=True)),
        ("example.org:1", Target(host="example.org", port=1)),
        ("mqtt://[::1]:1884/", Target(host="::1", port=1884)),
        ("unix:/run/g", Target(path="/run/g")),
        ("unix:///run/g", Target(path="/run/g")),
        ("mqtt://a%40b:p%3Aw@h", Target(host="h", port=1883, user="a@b", password=b"p:w")),
    ],
)
def test_urls_are_read(url: str, target: Target) -> None:
    """Every form of URL that the help names is understood."""
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    "url", ["http://h", "mqtt://", "mqtt://h:x", "mqtt://h/topic", "mqtt://h:99999"]
)
def test_other_urls_are_refused(url: str) -> None:
    """What is no such URL is refused with the URL in the message."""
    with pytest.raises(ProbeError, match=url.replace("/", "\\/")):
        Target.parse(url)


def test_a_target_never_shows_its_password() -> None:
    """The text of a target, which errors contain, has neither user nor password."""
    assert str(Target.parse("mqtt://ada:secret@[::1]:7")) == "mqtt://[::1]:7"


def test_another_answer_than_to_the_ping_is_told() -> None:
    """What comes in place of PINGRESP is no sign of health."""
    with (
        scripted_broker(Connack(False), Connack(False)) as target,
        pytest.raises(ConnectionLost, match="its answer is not PINGRESP"),
    ):
        probe(target, 10)
