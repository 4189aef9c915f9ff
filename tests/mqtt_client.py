"""A small blocking MQTT client for tests of the daemon.

It is the other end of the same sans-I/O codec that the broker uses, over one blocking socket
(TCP, TLS or Unix). Every wait has a deadline, in seconds. There is no background thread: the
keep alive is looked after while `MqttClient` waits for something.

A message that arrives is acknowledged when the caller says so (`MqttClient.acknowledge`).
"""

import itertools
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from ganglion.broker.daemon.probe import (
    ConnectionLost,
    ProbeError,
    Refused,
    Target,
    TimedOut,
    open_socket,
    words_of,
)
from ganglion.protocols.mqtt.codec import decode, encode, read_header
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.reasons import MqttError, Reason

__all__ = ["MqttClient", "scripted_broker", "tls_context"]

_READ_SIZE_BYTES = 65_536
_WINDOW = 64  # unacknowledged publishes in flight: enough to hide the round trip, small to resend

# MQTT 3.x connect return codes (3.1.1 clause 3.2.2.3) in the words of MQTT 5.0.
_RETURN_CODES = {
    1: Reason.UNSUPPORTED_PROTOCOL_VERSION,
    2: Reason.CLIENT_IDENTIFIER_NOT_VALID,
    3: Reason.SERVER_UNAVAILABLE,
    4: Reason.BAD_USER_NAME_OR_PASSWORD,
    5: Reason.NOT_AUTHORIZED,
}


_Answer = TypeVar("_Answer", Connack, Suback, Pingresp)


def tls_context(
    *, ca: Path | None, certificate: Path | None, key: Path | None, verify: bool
) -> ssl.SSLContext:
    """How to talk TLS: whom to trust (the system's authorities without ``ca``), and who we are.

    Raises `ProbeError` when a file cannot be used. ``verify`` off trusts everyone.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(each) for each in (ca, certificate, key) if each is not None)
        raise ProbeError(f"cannot use {files}: {error.strerror or error}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["mqtt"])
    return context


class MqttClient:
    """One connection to a broker. Use it as a context manager: leaving says DISCONNECT."""

    def __init__(
        self,
        target: Target,
        *,
        version: int = V5,
        client_id: str = "",
        keep_alive_s: int = 60,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect and wait for the broker's CONNACK, at most ``timeout_s`` seconds in all.

        ``timeout_s`` is also how long each later answer may take. Raises `Unreachable`,
        `Refused`, `ConnectionLost` or `TimedOut`.
        """
        self._version = version
        self._timeout_s = timeout_s
        self._keep_alive_s = keep_alive_s
        self._received = bytearray()
        self._packets: deque[Packet] = deque()
        self._messages: deque[Publish] = deque()
        self._unsettled: dict[int, Publish] = {}
        self._unreleased: set[int] = set()
        self._packet_ids = itertools.cycle(range(1, 65_536))
        self._pings_unanswered = 0
        self._window = _WINDOW
        self._is_connected = False
        deadline = time.monotonic() + timeout_s
        if tls is None and target.tls:
            tls = tls_context(ca=None, certificate=None, key=None, verify=True)
        self._socket = open_socket(target, tls, timeout_s)
        self._sent_s = time.monotonic()
        try:
            self.connack = self._connect(target, client_id, deadline)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        """Give the connected client itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Say DISCONNECT, so that the broker publishes no will, and close."""
        self.close()

    def publish(self, message: Publish) -> None:
        """Send ``message`` (its packet identifier is chosen here); wait only for a full window.

        `settle` waits for the acknowledgements. Raises `Refused` when one of an earlier message
        comes in meanwhile and says no.
        """
        if message.qos == 0:
            self._send(message)
            return
        while len(self._unsettled) >= self._window:
            self._advance(time.monotonic() + self._timeout_s)
        message.packet_id = self._free_packet_id()
        self._unsettled[message.packet_id] = message
        self._send(message)

    def settle(self) -> None:
        """Wait until every QoS 1 and 2 exchange, in both directions, is complete."""
        deadline = time.monotonic() + self._timeout_s
        before = len(self._unsettled) + len(self._unreleased)
        while before:
            self._advance(deadline)
            now = len(self._unsettled) + len(self._unreleased)
            if now < before:  # it is the silence that is bounded, not the whole
                deadline = time.monotonic() + self._timeout_s
            before = now

    def subscribe(self, topic_filters: list[str], qos: int) -> None:
        """Subscribe to all filters. Raises `Refused` naming the first that was refused."""
        requests = [SubscriptionRequest(each, qos) for each in topic_filters]
        packet_id = self._free_packet_id()
        self._send(Subscribe(packet_id, requests))
        answer = self._wait_for(Suback)
        for topic_filter, reason in zip(topic_filters, answer.reasons, strict=True):
            if reason >= 0x80:
                text = None if answer.properties is None else answer.properties.reason_string
                raise Refused(f"subscription to {topic_filter!r} refused", reason, text)

    def messages(self, deadline: float | None = None) -> Iterator[Publish]:
        """Messages as they arrive, until ``deadline`` (of `time.monotonic`) or for ever.

        Each is to be given to `acknowledge` once it is dealt with. Raises `ConnectionLost` when
        the broker ends the connection.
        """
        while True:
            while self._messages:
                yield self._messages.popleft()
            try:
                self._advance(deadline)
            except TimedOut:
                if deadline is not None and time.monotonic() >= deadline:
                    return
                raise

    def acknowledge(self, message: Publish) -> None:
        """Tell the broker that ``message`` needs not be sent again (nothing to do for QoS 0)."""
        if message.qos == 1:
            self._send(Puback(message.packet_id))
        elif message.qos == 2:
            self._send(Pubrec(message.packet_id))

    def ping(self) -> None:
        """Ask for a sign of life and wait for it: all that was sent before has been read then."""
        self._ping()
        self._wait_for(Pingresp)

    def close(self) -> None:
        """Say DISCONNECT (clause 3.14) and close the socket. Harmless when repeated."""
        try:
            self._send(Disconnect())
            self._socket.shutdown(socket.SHUT_WR)
        except (ProbeError, OSError):
            pass  # the connection has ended already, which is what was wanted
        finally:
            self._socket.close()

    def _connect(self, target: Target, client_id: str, deadline: float) -> Connack:
        connect = Connect(
            self._version,
            client_id or _assigned(self._version),
            keep_alive_s=self._keep_alive_s,
            username=target.user,
            password=target.password,
        )
        self._send(connect)
        answer = self._wait_for(Connack, deadline)
        if answer.reason:
            reason = answer.reason
            if self._version != V5:
                reason = _RETURN_CODES.get(reason, reason)
            text = None if answer.properties is None else answer.properties.reason_string
            raise Refused(f"connection to {target} refused", reason, text)
        self._is_connected = True
        if answer.properties is not None:
            properties = answer.properties
            if properties.receive_maximum is not None:
                self._window = min(self._window, properties.receive_maximum)
            if properties.server_keep_alive is not None:
                self._keep_alive_s = properties.server_keep_alive
        return answer

    def _free_packet_id(self) -> int:
        return next(each for each in self._packet_ids if each not in self._unsettled)

    def _wait_for(self, kind: type[_Answer], deadline: float | None = None) -> _Answer:
        """The next packet of a kind that `_handle` leaves alone."""
        deadline = time.monotonic() + self._timeout_s if deadline is None else deadline
        while True:
            while self._packets:
                packet = self._packets.popleft()
                if isinstance(packet, kind):
                    return packet
            self._advance(deadline)

    def _advance(self, deadline: float | None) -> None:
        """Wait for bytes until ``deadline``, and deal with every packet that is complete then."""
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimedOut(f"the broker did not answer within {self._timeout_s:g} s")
        wake_s = deadline
        if self._keep_alive_s:
            ping_s = self._sent_s + self._keep_alive_s / 2
            if now >= ping_s:
                if self._pings_unanswered:
                    raise TimedOut("the broker no longer answers")
                self._ping()
                ping_s = self._sent_s + self._keep_alive_s / 2
            wake_s = ping_s if wake_s is None else min(wake_s, ping_s)
        self._socket.settimeout(None if wake_s is None else max(wake_s - now, 0.001))
        try:
            data = self._socket.recv(_READ_SIZE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            raise ConnectionLost(f"connection lost: {error.strerror or error}") from None
        if not data:
            raise ConnectionLost("the broker closed the connection")
        self._received += data
        try:
            self._take_packets()
        except MqttError as error:
            raise ConnectionLost(f"the broker does not speak MQTT: {error}") from None

    def _take_packets(self) -> None:
        data, position = bytes(self._received), 0
        if not self._is_connected and data[0] >> 4 != PacketType.CONNACK:
            # Said now: what another protocol sends may look like the begin of a long packet.
            raise ConnectionLost("this is no MQTT broker: its answer is not CONNACK")
        try:
            while (header := read_header(data, position, self._version)) is not None:
                first, start, end = header
                if end > len(data):
                    break
                position = end
                self._handle(decode(first, data, start, end, self._version))
        finally:
            del self._received[:position]

    def _handle(self, packet: Packet) -> None:
        match packet:
            case Publish():
                self._handle_publish(packet)
            case Puback() | Pubcomp():
                self._settled(packet.packet_id, packet.reason)
            case Pubrec():
                if packet.reason >= 0x80:
                    self._settled(packet.packet_id, packet.reason)
                else:
                    self._send(Pubrel(packet.packet_id))
            case Pubrel():
                self._unreleased.discard(packet.packet_id)
                self._send(Pubcomp(packet.packet_id))
            case Pingresp():
                self._pings_unanswered = 0
                self._packets.append(packet)
            case Disconnect():
                text = None if packet.properties is None else packet.properties.reason_string
                words = words_of(packet.reason) + (f" ({text})" if text else "")
                raise ConnectionLost(f"the broker ended the connection: {words}")
            case _:
                self._packets.append(packet)

    def _handle_publish(self, message: Publish) -> None:
        if message.qos == 2:
            if message.packet_id in self._unreleased:  # a copy of what we have (clause 4.3.3)
                self._send(Pubrec(message.packet_id))
                return
            self._unreleased.add(message.packet_id)
        self._messages.append(message)

    def _settled(self, packet_id: int, reason: int) -> None:
        message = self._unsettled.pop(packet_id, None)
        if message is not None and reason >= 0x80:
            raise Refused(f"publish to {message.topic!r} refused", reason)

    def _ping(self) -> None:
        self._pings_unanswered += 1
        self._send(Pingreq())

    def _send(self, packet: Packet) -> None:
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall(encode(packet, self._version))
        except TimeoutError:
            raise TimedOut("the broker takes no more bytes") from None
        except OSError as error:
            raise ConnectionLost(f"connection lost: {error.strerror or error}") from None
        self._sent_s = time.monotonic()


def _assigned(version: int) -> str:
    """A client identifier when none is given: empty, but MQTT 3.1 knows no empty one."""
    return f"ganglion-{secrets.token_hex(6)}" if version == V31 else ""


@contextmanager
def scripted_broker(*steps: Packet | bytes | None) -> Generator[Target, None, None]:
    """A broker that answers the n-th packet with the n-th step; without steps it closes at once.

    None answers nothing to that packet. The errors of its thread come out of the context.
    """
    errors: list[Exception] = []

    def serve(listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(10)
                answer_each(connection)
        except Exception as error:  # noqa: BLE001 - raised where the test can see it
            errors.append(error)

    def answer_each(connection: socket.socket) -> None:
        data = b""
        for step in steps:
            while (header := read_header(data, 0, V5)) is None or header[2] > len(data):
                more = connection.recv(65_536)
                if not more:
                    return
                data += more
            data = data[header[2] :]
            if step is not None:
                connection.sendall(step if isinstance(step, bytes) else encode(step, V5))
        while steps and connection.recv(65_536):
            pass  # until the client closes

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        try:
            yield Target(host="127.0.0.1", port=listening.getsockname()[1])
        finally:
            thread.join()
    if errors:
        raise errors[0]
