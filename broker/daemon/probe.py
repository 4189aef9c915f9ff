"""Whether an MQTT broker answers: CONNECT, PINGREQ and DISCONNECT, for ``ganglion health``.

One blocking socket (TCP, TLS or Unix) at the other end of the codec that the broker itself uses.
"""

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit

from ganglion import GanglionError
from ganglion.protocols.mqtt.codec import decode, encode, read_header
from ganglion.protocols.mqtt.packets import (
    V5,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
)
from ganglion.protocols.mqtt.reasons import MqttError, Reason

__all__ = [
    "ConnectionLost",
    "ProbeError",
    "Refused",
    "Target",
    "TimedOut",
    "Unreachable",
    "open_socket",
    "probe",
    "words_of",
]

_READ_SIZE_BYTES = 4096

_Answer = TypeVar("_Answer", Connack, Pingresp)


class ProbeError(GanglionError):
    """The broker did not answer as a broker does."""


class Unreachable(ProbeError):
    """No connection came about: nobody listens, the name is unknown, or TLS failed."""


class ConnectionLost(ProbeError):
    """The broker ended the connection, or spoke something that is not MQTT."""


class TimedOut(ProbeError):
    """The broker did not answer in time."""


class Refused(ProbeError):
    """The broker answered, and said no. ``reason`` is its reason code."""

    def __init__(self, what: str, reason: int, text: str | None = None) -> None:
        self.reason = reason
        super().__init__(f"{what}: {words_of(reason)}" + (f" ({text})" if text else ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a broker is and who we are there."""

    host: str = ""
    port: int = 0
    path: str | None = None
    """The path of a Unix socket, instead of host and port."""
    tls: bool = False
    user: str | None = None
    password: bytes | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``mqtt://[user[:password]@]host[:port]``, ``mqtts://…`` or ``unix:/path``.

        ``host[:port]`` alone means ``mqtt://``. Raises `ProbeError` for anything else.
        """
        if url.startswith("unix:"):
            path = "/" + url.removeprefix("unix:").lstrip("/")
            return cls(path=path)
        try:
            parts = urlsplit(url if "://" in url else f"mqtt://{url}")
            port = parts.port
        except ValueError as error:
            raise ProbeError(f"{url!r} is not a URL: {error}") from None
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ProbeError(f"{url!r} must be mqtt://HOST:PORT, mqtts://HOST:PORT or unix:/PATH")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ProbeError(f"{url!r} must end with the port; a topic is given by itself")
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=(8883 if tls else 1883) if port is None else port,
            tls=tls,
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password).encode(),
        )

    def __str__(self) -> str:
        """The URL without user and password."""
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def probe(target: Target, timeout_s: float) -> None:
    """Connect and have a ping answered; each answer may take ``timeout_s`` seconds.

    The certificate of the broker is not checked. Raises `Unreachable`, `Refused`,
    `ConnectionLost` or `TimedOut`.
    """
    tls = None
    if target.tls:
        tls = ssl.create_default_context()
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
        tls.set_alpn_protocols(["mqtt"])
    with open_socket(target, tls, timeout_s) as opened:
        hello = Connect(V5, "", username=target.user, password=target.password)
        greeting = _ask(opened, hello, Connack, timeout_s)
        if greeting.reason:
            text = None if greeting.properties is None else greeting.properties.reason_string
            raise Refused(f"connection to {target} refused", greeting.reason, text)
        _ask(opened, Pingreq(), Pingresp, timeout_s)
        _send(opened, Disconnect())


def _ask(opened: socket.socket, question: Packet, kind: type[_Answer], timeout_s: float) -> _Answer:
    """Send a packet and wait for the answer, which is the next one."""
    _send(opened, question)
    deadline = time.monotonic() + timeout_s
    data = b""
    try:
        while (header := read_header(data, 0, V5)) is None or header[2] > len(data):
            if kind is Connack and data and data[0] >> 4 != PacketType.CONNACK:
                # Said now: what another protocol sends may look like the begin of a long packet.
                raise ConnectionLost("this is no MQTT broker: its answer is not CONNACK")
            data += _receive(opened, deadline, timeout_s)
        answer = decode(*header[:1], data, *header[1:], V5)
    except MqttError as error:
        raise ConnectionLost(f"the broker does not speak MQTT: {error}") from None
    if isinstance(answer, kind):
        return answer
    if isinstance(answer, Disconnect):
        text = None if answer.properties is None else answer.properties.reason_string
        words = words_of(answer.reason) + (f" ({text})" if text else "")
        raise ConnectionLost(f"the broker ended the connection: {words}")
    raise ConnectionLost(f"this is no MQTT broker: its answer is not {kind.__name__.upper()}")


def _send(opened: socket.socket, packet: Packet) -> None:
    try:
        opened.sendall(encode(packet, V5))
    except OSError as error:
        raise ConnectionLost(f"connection lost: {error.strerror or error}") from None


def _receive(opened: socket.socket, deadline: float, timeout_s: float) -> bytes:
    try:
        opened.settimeout(max(deadline - time.monotonic(), 0.001))
        data = opened.recv(_READ_SIZE_BYTES)
    except TimeoutError:
        raise TimedOut(f"the broker did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectionLost(f"connection lost: {error.strerror or error}") from None
    if not data:
        raise ConnectionLost("the broker closed the connection")
    return data


def open_socket(target: Target, tls: ssl.SSLContext | None, timeout_s: float) -> socket.socket:
    """A blocking connection, by TLS if there is a context for it. Raises `Unreachable`."""
    try:
        if target.path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout_s)
            try:
                connection.connect(target.path)
            except BaseException:
                connection.close()
                raise
            return connection
        connection = socket.create_connection((target.host, target.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return connection
        try:
            return tls.wrap_socket(connection, server_hostname=target.host)
        except BaseException:
            connection.close()
            raise
    except TimeoutError:
        raise Unreachable(f"cannot connect to {target}: no answer in {timeout_s:g} s") from None
    except OSError as error:
        words = getattr(error, "verify_message", "") or error.strerror or str(error)
        raise Unreachable(f"cannot connect to {target}: {words}") from None


def words_of(reason: int) -> str:
    """A reason code of MQTT 5 in words."""
    try:
        return Reason(reason).name.lower().replace("_", " ")
    except ValueError:
        return f"reason 0x{reason:02X}"
