"""Every packet exchange of the vectors, played against a broker in its own process.

The vectors are Eclipse Mosquitto's (see vectors/README.md). What comes back is compared by meaning
with the independent decoder beside this file. With ``TESTED_BROKER=mosquitto`` the same
exchanges are played against Mosquitto, which proves the runner.
"""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.decoder import Meaning, decode, difference
from tests.support import (
    BrokerProcess,
    Closed,
    RawClient,
    mosquitto,
    publish_packet,
    start_daemon,
)

VECTORS = Path(__file__).parent / "vectors"


def _load() -> list[Any]:
    found: list[Any] = []
    for path in sorted(VECTORS.glob("*.json")):
        for group in json.loads(path.read_text()):
            for test in group["tests"]:
                title = " ".join(f"{group['group']}: {test['name']}".split())
                found.append(pytest.param(test, id=f"{path.stem}/{title}"))
    return found


def _ganglion() -> AbstractContextManager[BrokerProcess]:
    # a vector takes 11 for more topic aliases than the broker announces
    return start_daemon("--limit", "topic_alias_max=10")


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    """The broker that all exchanges are played against."""
    chosen = os.environ.get("TESTED_BROKER", "ganglion")
    with mosquitto() if chosen == "mosquitto" else _ganglion() as process:
        yield process


@pytest.fixture(scope="module")
def publisher(broker: BrokerProcess) -> Iterator[RawClient]:
    """The second client, which publishes what a vector asks it to."""
    with RawClient(broker.ports["mqtt"]) as client:
        client.join("second client", keep_alive_s=0)
        yield client


def _bytes(payload: str) -> bytes:
    """The packet that a vector writes as hexadecimal digits, with blanks wherever it likes."""
    return bytes.fromhex("".join(payload.split()))


def _publish(client: RawClient, topic: str, payload: bytes, qos: int) -> None:
    client.send(publish_packet(topic, payload, qos=qos))
    if qos == 1:
        client.expect("40 02 00 01")
    elif qos == 2:
        client.expect("50 02 00 01")
        client.send("62 02 00 01")
        client.expect("70 02 00 01")


def _version(test: dict[str, Any]) -> int:
    """The protocol version spoken: that of the CONNECT in the vector, if it sends one."""
    if not test.get("connect", True):
        for message in test["msgs"]:
            sent = _bytes(message["payload"])
            if message["type"] == "send" and sent[0] >> 4 == 1:
                name_length = int.from_bytes(sent[2:4], "big")
                return sent[4 + name_length] if len(sent) > 4 + name_length else 4
    return int(test.get("ver", 4))


def _is_refusal(meaning: Meaning) -> bool:
    """A server may say why it closes a MQTT 5 connection (3.1.4-1, 3.14.4): that is no fault."""
    reason = meaning.fields.get("reason")
    return meaning.name in ("CONNACK", "DISCONNECT") and isinstance(reason, int) and reason >= 0x80


def test_every_vector_is_collected() -> None:
    """No exchange is lost on its way to the parametrised test: there are 1,483 of them."""
    assert len(_load()) == 1483


@pytest.mark.parametrize("test", _load())
def test_vector(test: dict[str, Any], broker: BrokerProcess, publisher: RawClient) -> None:
    """The broker answers with what the vector says and then stays connected or closes."""
    version = _version(test)
    with RawClient(broker.ports["mqtt"]) as client:
        if test.get("connect", True):
            client.join(test["name"], version=test.get("ver", 4))
        for message in test["msgs"]:
            if message["type"] == "send":
                client.send(_bytes(message["payload"]))
            elif message["type"] == "publish":
                _publish(publisher, message["topic"], message["payload"].encode(), message["qos"])
            else:
                assert message["type"] == "recv"
                expected = _bytes(message["payload"])
                try:
                    came = client.read_packet()
                except Closed as error:
                    pytest.fail(f"expected {decode(expected, version)}; {error}")
                found = difference(decode(expected, version), decode(came.raw, version))
                assert not found, found
        if not test.get("expect_disconnect", True):
            client.ping()
            return
        rest = [decode(packet.raw, version) for packet in client.read_to_end()]
        if version == 5 and len(rest) == 1 and _is_refusal(rest[0]):
            rest = []
        assert not rest, f"expected the end of the connection, came {rest}"
