"""What the tests of behaviour stand on: exchanges of packets that many of them need.

The vectors show single exchanges; `test_sessions`, `test_subscriptions`, `test_delivery`,
`test_wills`, `test_users` and `test_sys` tell what a broker promises over time, clause by clause,
seen from outside, with bare sockets and the independent decoder. They run against Mosquitto with
``TESTED_BROKER=mosquitto``, which proves them; what it is known to do in another permitted way is
marked.
"""

import os
import time
from itertools import count

import pytest

from tests.conformance.decoder import Meaning, decode
from tests.support import RawClient, publish_packet

WITH_MOSQUITTO = os.environ.get("TESTED_BROKER") == "mosquitto"
only_here = pytest.mark.skipif(WITH_MOSQUITTO, reason="Mosquitto 2.0.11 does otherwise")

_numbers = count(1)
SESSION = b"\x11\x00\x00\x02\x58"  # Session Expiry Interval: 600 seconds

PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE = 0x01, 0x02, 0x03
RESPONSE_TOPIC, CORRELATION, SUBSCRIPTION_ID = 0x08, 0x09, 0x0B
ASSIGNED_ID, SERVER_KEEP_ALIVE, AUTH_METHOD, AUTH_DATA = 0x12, 0x13, 0x15, 0x16
RESPONSE_INFORMATION, REASON_STRING, TOPIC_ALIAS, USER = 0x1A, 0x1F, 0x23, 0x26


def new_name(kind: str = "t") -> str:
    """A topic or client identifier that no other test uses."""
    return f"{kind}{next(_numbers)}"


def read(client: RawClient, version: int = 5) -> Meaning:
    """The next packet."""
    return decode(client.read_packet().raw, version)


def take_message(client: RawClient, version: int = 5) -> tuple[str, bytes, int, bool]:
    """The next message: topic, payload, QoS, retain. Whatever asks for an answer gets it."""
    while True:
        packet = client.read_packet()
        if packet.kind == 6:
            client.send(b"\x70\x02" + packet.body[:2])
            continue
        meaning = decode(packet.raw, version)
        assert meaning.name == "PUBLISH", meaning
        topic, payload = meaning.fields["topic"], meaning.fields["payload"]
        qos, retain = meaning.fields["qos"], meaning.fields["retain"]
        assert isinstance(topic, str)
        assert isinstance(payload, bytes)
        assert isinstance(qos, int)
        if qos:
            identifier = meaning.fields["identifier"]
            assert isinstance(identifier, int)
            client.send(bytes([0x40 if qos == 1 else 0x50, 2]) + identifier.to_bytes(2, "big"))
        return topic, payload, qos, bool(retain)


def expect_no_message(client: RawClient) -> None:
    """PINGREQ is answered before any other message comes; open QoS 2 flows may end first."""
    client.send(b"\xc0\x00")
    while (packet := client.read_packet()).kind != 13:
        assert packet.kind == 6, f"came {packet.raw[:80].hex(' ')}"
        client.send(b"\x70\x02" + packet.body[:2])


def acknowledgement(body: bytes, first: int) -> bytes:
    """The acknowledgement with this first byte of what has a packet identifier in front."""
    return bytes([first, 2]) + body[:2]


def let_pass(seconds: float) -> None:
    """Until so much time has passed: here the clock is the thing that is waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)


def publish(port: int, topic: str, payload: bytes, qos: int = 1, **options: object) -> None:
    """Publish by a client of its own, and see the message accepted."""
    with RawClient(port) as client:
        client.join(new_name("p"), version=5)
        client.send(publish_packet(topic, payload, qos=qos, version=5, **options))  # type: ignore[arg-type]  # passed on as it is
        if qos == 2:
            client.send(acknowledgement(client.expect_kind(5).body, 0x62))
            client.expect_kind(7)
        elif qos:
            client.expect_kind(4)
        client.ping()


def leave(client: RawClient) -> None:
    """Say goodbye, and see the connection closed."""
    client.send(b"\xe0\x00")
    client.expect_closed()
