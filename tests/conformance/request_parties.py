"""Requesters and responders of every protocol, each with bare packets of its own.

The tests of request/reply know only `Asker` and `Answerer`, so that each holds for every pair. As
everywhere in this folder nothing here uses Ganglion's own code.
"""

import socket
import struct
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import msgpack

from tests.conformance.decoder import Meaning, decode
from tests.support import DEADLINE_S, BrokerProcess, RawClient, publish_packet, text

__all__ = [
    "ANSWERERS",
    "ASKERS",
    "Answerer",
    "Asker",
    "Call",
    "Heard",
    "Mqtt5Asker",
    "NativeAnswerer",
    "NativeAsker",
    "dropped_replies",
]

_MESSAGE_EXPIRY, _RESPONSE_TOPIC, _CORRELATION, _USER = 0x02, 0x08, 0x09, 0x26
_RESPONSE_INFORMATION = 0x1A
_CALL, _REPLY, _CANCELLED, _OK, _ERROR, _HELLO = 5, 6, 7, 11, 12, 32
_REQUEST, _GATHER, _SERVE, _ANSWER, _CANCEL, _PING, _PONG = 80, 81, 82, 83, 85, 14, 15
_STATISTICS = 100
_NATIVE_CODES = {
    "no_responders": "no-responder",
    "responder_gone": "responder-left",
    "timed_out": "deadline",
}
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Call:
    """A request as its responder sees it."""

    topic: str
    payload: bytes
    reply_to: object
    """What the responder needs in order to answer, in the terms of its protocol."""
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a requester hears: an answer, or the code of an error."""

    name: str
    """Which request it is about."""
    payload: bytes = b""
    error: str = ""


class Asker(Protocol):
    """Makes requests."""

    @abstractmethod
    def ask(
        self, topic: str, payload: bytes, *, timeout_s: int = 60, may_repeat: bool = False
    ) -> str:
        """Make a request, and return the name that `hear` tells of it."""

    @abstractmethod
    def hear(self) -> Heard:
        """The next answer or error of any request."""

    @abstractmethod
    def lose(self) -> None:
        """Break the connection."""

    @abstractmethod
    def close(self) -> None:
        """Free the socket."""

    @abstractmethod
    def expect_nothing(self) -> None:
        """Nothing has come that was not taken."""


class Answerer(Protocol):
    """Answers requests for one topic filter."""

    @abstractmethod
    def take(self) -> Call:
        """The next request."""

    @abstractmethod
    def answer(self, call: Call, payload: bytes) -> bool:
        """Answer it; whether somebody waited for that, as far as the protocol tells."""

    @abstractmethod
    def lose(self) -> None:
        """Break the connection."""

    @abstractmethod
    def close(self) -> None:
        """Free the socket."""

    @abstractmethod
    def expect_nothing(self) -> None:
        """No request has come that was not taken."""


def _packet(client: RawClient, version: int) -> Meaning:
    return decode(client.read_packet().raw, version)


class _Inbox:
    """A connection on which requests may come between a PUBLISH and its PUBACK."""

    def __init__(self, client: RawClient, version: int) -> None:
        self._client = client
        self._version = version
        self._waiting: list[Meaning] = []

    def request(self) -> Meaning:
        """The next PUBLISH."""
        packet = self._waiting.pop(0) if self._waiting else _packet(self._client, self._version)
        assert packet.name == "PUBLISH", packet
        return packet

    def puback(self) -> Meaning:
        """The PUBACK that is awaited."""
        while (packet := _packet(self._client, self._version)).name == "PUBLISH":
            self._waiting.append(packet)
        assert packet.name == "PUBACK", packet
        return packet

    def expect_nothing(self) -> None:
        """PINGRESP is next."""
        assert self._waiting == []
        self._client.ping()


class Mqtt5Asker(Asker):
    """Publishes with a response topic below the prefix that it was given."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.client = RawClient(broker.ports["mqtt"])
        connack = self.client.join(f"asker{next(_numbers)}", version=5, properties=b"\x19\x01")
        information = dict(decode(connack.raw, 5).properties)[_RESPONSE_INFORMATION]
        self.response_topic = f"{information}/answers"
        self.client.subscribe(f"{information}/#", options=1, version=5)
        self._heard: list[Heard] = []

    def ask(
        self, topic: str, payload: bytes, *, timeout_s: int = 60, may_repeat: bool = False
    ) -> str:
        """PUBLISH at QoS 1; 0x10 in PUBACK is the error that nobody answers."""
        number = next(_numbers) % 60_000 + 1
        properties = b"\x02" + timeout_s.to_bytes(4, "big")
        properties += b"\x08" + text(self.response_topic) + b"\x09" + text(str(number))
        if may_repeat:
            properties += b"\x26" + text("x-repeat") + text("1")
        self.client.send(
            publish_packet(
                topic, payload, qos=1, packet_id=number, version=5, properties=properties
            )
        )
        while (packet := _packet(self.client, 5)).name != "PUBACK":
            self._note(packet)
        assert packet.fields["identifier"] == number
        if packet.fields["reason"] == 0x10:
            self._heard.append(Heard(str(number), error="no-responder"))
        else:
            assert packet.fields["reason"] == 0, packet
        return str(number)

    def _note(self, packet: Meaning) -> None:
        assert packet.name == "PUBLISH", packet
        assert packet.fields["topic"] == self.response_topic
        identifier, payload = packet.fields["identifier"], packet.fields["payload"]
        assert isinstance(identifier, int)
        assert isinstance(payload, bytes)
        self.client.send(b"\x40\x02" + identifier.to_bytes(2, "big"))
        correlation = dict(packet.properties)[_CORRELATION]
        assert isinstance(correlation, bytes)
        error = ""
        for kind, value in packet.properties:
            if kind == _USER:
                assert isinstance(value, tuple)
                assert value[0] == "x-error"
                error = value[1]
        self._heard.append(Heard(correlation.decode(), b"" if error else payload, error))

    def hear(self) -> Heard:
        """The next message at the response topic."""
        if not self._heard:
            self._note(_packet(self.client, 5))
        return self._heard.pop(0)

    def told_at_once(self) -> Heard | None:
        """What PUBACK said was wrong with a request, if anything."""
        return self._heard.pop(0) if self._heard else None

    def lose(self) -> None:
        """Reset the connection."""
        self.client.reset()

    def close(self) -> None:
        """Free the socket."""
        self.client.close()

    def expect_nothing(self) -> None:
        """PINGRESP is next."""
        assert self._heard == []
        self.client.ping()


class Mqtt5Answerer(Answerer):
    """Subscribes to the topic itself, and answers to the response topic."""

    def __init__(self, broker: BrokerProcess, topic_filter: str) -> None:
        self.client = RawClient(broker.ports["mqtt"])
        self._inbox = _Inbox(self.client, 5)
        self.client.join(f"answerer{next(_numbers)}", version=5)
        self.client.subscribe(topic_filter, version=5)

    def take(self) -> Call:
        """The next PUBLISH."""
        packet = self._inbox.request()
        topic, payload = packet.fields["topic"], packet.fields["payload"]
        assert isinstance(topic, str)
        assert isinstance(payload, bytes)
        properties = dict(packet.properties)
        correlation = properties[_CORRELATION]
        assert isinstance(correlation, bytes)
        return Call(topic, payload, properties[_RESPONSE_TOPIC], correlation)

    def answer(self, call: Call, payload: bytes) -> bool:
        """PUBLISH to the response topic at QoS 1: 0x10 says that nobody waits."""
        assert isinstance(call.reply_to, str)
        assert call.correlation is not None
        properties = b"\x09" + text(call.correlation)
        self.client.send(
            publish_packet(call.reply_to, payload, qos=1, version=5, properties=properties)
        )
        return self._inbox.puback().fields["reason"] == 0

    def lose(self) -> None:
        """Reset the connection."""
        self.client.reset()

    def close(self) -> None:
        """Free the socket."""
        self.client.close()

    def expect_nothing(self) -> None:
        """PINGRESP is next."""
        self._inbox.expect_nothing()


class DeviceAnswerer(Answerer):
    """Subscribes to ``$request/+/…`` with MQTT 3.1.1, and answers by the topic alone."""

    def __init__(self, broker: BrokerProcess, topic_filter: str) -> None:
        self.client = RawClient(broker.ports["mqtt"])
        self._inbox = _Inbox(self.client, 4)
        self.client.join(f"device{next(_numbers)}")
        self.client.subscribe(f"$request/+/{topic_filter}")

    def take(self) -> Call:
        """The next PUBLISH."""
        packet = self._inbox.request()
        topic, payload = packet.fields["topic"], packet.fields["payload"]
        assert isinstance(topic, str)
        assert isinstance(payload, bytes)
        prefix, _number, asked = topic.split("/", 2)
        assert prefix == "$request"
        return Call(asked, payload, topic.replace("$request", "$reply", 1))

    def answer(self, call: Call, payload: bytes) -> bool:
        """PUBLISH at QoS 1; MQTT 3.1.1 does not tell what became of it."""
        assert isinstance(call.reply_to, str)
        self.client.send(publish_packet(call.reply_to, payload, qos=1))
        self._inbox.puback()
        return True

    def lose(self) -> None:
        """Reset the connection."""
        self.client.reset()

    def close(self) -> None:
        """Free the socket."""
        self.client.close()

    def expect_nothing(self) -> None:
        """PINGRESP is next."""
        self._inbox.expect_nothing()


class _Native:
    """A connection of the native protocol (docs/protocol.md): frames are MessagePack arrays."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.socket = socket.create_connection(("127.0.0.1", broker.ports["native"]), DEADLINE_S)
        self._unpacker = msgpack.Unpacker()
        self._ids = count(1)
        self._waiting: list[list[Any]] = []
        self.call(_HELLO, 1, {"keep_alive_s": 0})

    def send(self, operation: int, *elements: object) -> int:
        """Send a request; its id."""
        number = next(self._ids)
        self.socket.sendall(msgpack.packb([operation, number, *elements]))
        return number

    def call(self, operation: int, *elements: object) -> Any:
        """Send a request, and return the result of its `ok`."""
        number = self.send(operation, *elements)
        while (frame := self._read())[:2] != [_OK, number]:
            assert frame[:2] != [_ERROR, number], frame
            self._waiting.append(frame)
        return frame[2] if len(frame) > 2 else None

    def frame(self) -> list[Any]:
        """The next frame that was not the answer to a `call`."""
        return self._waiting.pop(0) if self._waiting else self._read()

    def _read(self) -> list[Any]:
        while True:
            for frame in self._unpacker:
                assert isinstance(frame, list)
                return frame
            data = self.socket.recv(65_536)
            assert data, "the node has closed the connection"
            self._unpacker.feed(data)

    def expect_nothing(self) -> None:
        """A frame that is answered is the next to be."""
        assert self._waiting == []
        self.socket.sendall(msgpack.packb([_PING]))
        assert self._read()[0] == _PONG

    def reset(self) -> None:
        """Break the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class NativeAsker(Asker):
    """Makes requests by the native protocol."""

    def __init__(self, broker: BrokerProcess) -> None:
        self._native = _Native(broker)

    def ask(
        self, topic: str, payload: bytes, *, timeout_s: int = 60, may_repeat: bool = False
    ) -> str:
        """`request`."""
        options = {"timeout_s": timeout_s, "repeat": may_repeat}
        return str(self._native.send(_REQUEST, topic, payload, None, options))

    def gather(self, topic: str, payload: bytes, **options: int) -> str:
        """`gather`: its name."""
        return str(self._native.send(_GATHER, topic, payload, None, options))

    def gathered(self, name: str) -> tuple[list[bytes], dict[str, Any]]:
        """All answers of a gather, and its result."""
        answers: list[bytes] = []
        while (frame := self._native.frame())[0] == _REPLY:
            assert str(frame[1]) == name
            answers.append(frame[2])
        assert frame[:2] == [_OK, int(name)], frame
        return answers, frame[2]

    def cancel(self, name: str) -> None:
        """`cancel`."""
        self._native.call(_CANCEL, int(name))

    def hear(self) -> Heard:
        """`reply` or `error`."""
        frame = self._native.frame()
        if frame[0] == _REPLY:
            return Heard(str(frame[1]), frame[2])
        assert frame[0] == _ERROR, frame
        return Heard(str(frame[1]), error=_NATIVE_CODES[frame[2]])

    def lose(self) -> None:
        """Reset the connection."""
        self._native.reset()

    def close(self) -> None:
        """Free the socket."""
        self._native.socket.close()

    def expect_nothing(self) -> None:
        """PONG is next."""
        self._native.expect_nothing()


class NativeAnswerer(Answerer):
    """Serves by the native protocol."""

    def __init__(self, broker: BrokerProcess, topic_filter: str) -> None:
        self._native = _Native(broker)
        self._native.call(_SERVE, topic_filter)

    def take(self) -> Call:
        """`call`; what was withdrawn meanwhile is passed over."""
        while (frame := self._native.frame())[0] == _CANCELLED:
            pass
        assert frame[0] == _CALL, frame
        _, service, number, topic, payload, *_ = frame
        return Call(topic, payload, (service, number))

    def answer(self, call: Call, payload: bytes) -> bool:
        """`answer`: its result says whether somebody waited."""
        assert isinstance(call.reply_to, tuple)
        result = self._native.call(_ANSWER, *call.reply_to, payload)
        return bool(result["taken"])

    def withdrawn(self) -> str:
        """The reason of the next frame, which takes a request back."""
        frame = self._native.frame()
        assert frame[0] == _CANCELLED, frame
        return str(frame[3])

    def lose(self) -> None:
        """Reset the connection."""
        self._native.reset()

    def close(self) -> None:
        """Free the socket."""
        self._native.socket.close()

    def expect_nothing(self) -> None:
        """PONG is next."""
        self._native.expect_nothing()


def dropped_replies(broker: BrokerProcess) -> int:
    """How many answers the broker has dropped, for whatever reason, by its own statistics."""
    native = _Native(broker)
    dropped: dict[str, int] = native.call(_STATISTICS)["dropped"]
    native.socket.close()
    return sum(count for reason, count in dropped.items() if reason.startswith("reply"))


ASKERS: dict[str, Callable[[BrokerProcess], Asker]] = {
    "MQTT 5": Mqtt5Asker,
    "native": NativeAsker,
}
"""By protocol: a requester that is connected."""

ANSWERERS: dict[str, Callable[[BrokerProcess, str], Answerer]] = {
    "MQTT 5": Mqtt5Answerer,
    "MQTT 3.1.1": DeviceAnswerer,
    "native": NativeAnswerer,
}
"""By protocol: a responder that serves a topic filter already."""
