"""A node and clients on fake links: no sockets, no threads, a virtual clock, no sleeping.

`Link` is a node with the protocol side of its MQTT connections. `FakeClient` is a scripted client
at the other end of one of them: it says what the test tells it to, in packets (the project's own
codec) or in bytes, and keeps what came back. Time passes only in `Link.advance`. Whatever a client
sends is handled at once, and a tick ends after it (`Link.tick`), as in the reactor: the node
commits, and closed connections are told that they are gone.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ganglion.broker.core.access import Access
from ganglion.broker.core.authentication import Mechanism, PasswordCheck
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.node import Node
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Batch, Store
from ganglion.broker.store.memory import MemoryStore
from ganglion.protocols.mqtt.codec import decode, encode, read_header
from ganglion.protocols.mqtt.connection import MqttConnection
from ganglion.protocols.mqtt.packets import (
    V5,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.server import MqttServer, MqttSettings

__all__ = ["FakeClient", "FakeEndpoint", "HeldStore", "Link", "RecordingLog", "RecordingStore"]

START_S = 1000.0
"""What the virtual clock shows when a link is made."""
UNIX_TIME_OFFSET_S = 1_700_000_000.0

PacketOf = TypeVar("PacketOf")


class RecordingLog:
    """A log that a test may read: the events with their details."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, /, **details: Any) -> None:
        """Keep the event."""
        self.events.append((event, details))

    info = debug
    warning = debug

    def refusals(self) -> list[dict[str, Any]]:
        """The details of every refusal that was logged."""
        return [details for event, details in self.events if event == "refused"]


class RecordingStore(MemoryStore):
    """A store whose committed records outlive the node: `copy` is what a new node finds."""

    def copy(self) -> "RecordingStore":
        """A store with the same committed records, as after a crash."""
        other = RecordingStore()
        other._records = deepcopy(self._records)
        return other

    def record_count(self) -> int:
        """How many records there are, of all kinds."""
        return sum(len(records) for records in self._records.values())


class HeldStore(RecordingStore):
    """A store with a slow disk: commits complete when the test says so, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Batch, Callable[[], None]]] = []

    def commit(self, batch: Batch, done: Callable[[], None]) -> None:
        """Hold the batch until `release`."""
        self.held.append((batch, done))

    def release(self, count: int | None = None) -> None:
        """Complete so many commits, or all of them, those that are made meanwhile included."""
        while self.held and (count is None or count > 0):
            batch, done = self.held.pop(0)
            super().commit(batch, done)
            count = None if count is None else count - 1


@dataclass(slots=True)
class FakeTls:
    """What TLS says about the peer."""

    certificate_name: str | None = None
    version: str = "TLSv1.3"


@dataclass(slots=True, eq=False)
class FakeEndpoint:
    """The broker's side of a fake link (an `Endpoint`)."""

    peer: str = "127.0.0.1"
    tls: FakeTls | None = None
    congested: bool = False
    """Set by the test; `FakeClient.relieve` ends it as the reactor does."""
    output: bytearray = field(default_factory=bytearray)
    """What the client has not read yet."""
    dropped: int = 0
    """Transient messages that were offered while it was congested."""
    closing: str | None = None
    """Why the protocol closed it."""
    lingers: bool = False
    stuck: bool = False
    """The peer takes nothing: a closed endpoint is not gone before its deadline."""
    paused: bool = False
    writes: int = 0
    """Calls of `write` and `offer` that were accepted."""

    def write(self, data: bytes) -> None:
        """Send."""
        if self.closing is None:
            self.writes += 1
            self.output += data

    def offer(self, data: bytes, count: int) -> None:
        """Send, or drop and count."""
        if self.congested:
            self.dropped += count
        else:
            self.write(data)

    def close(self, reason: str, *, linger: bool = False) -> None:
        """Close at the end of the tick."""
        if self.closing is None:
            self.closing = reason
            self.lingers = linger

    def pause_reading(self) -> None:
        """Take nothing more."""
        self.paused = True

    def resume_reading(self) -> None:
        """Take input again."""
        self.paused = False


class FakeClient:
    """A scripted client and its connection."""

    def __init__(self, link: "Link", version: int, endpoint: FakeEndpoint) -> None:
        self.link = link
        self.version = version
        self.endpoint = endpoint
        self.connection = MqttConnection(link.server)
        self.is_gone = False
        """Whether the connection is over, and its protocol was told."""
        self._unsent = bytearray()
        self._packet_id = 0
        self._packets: list[Packet] = []
        self.connection.connected(endpoint, link.now)

    # -- sending ---------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        """Send these bytes as one chunk and let a tick pass."""
        self._unsent += data
        self.link.tick()

    def send(self, *packets: Packet) -> None:
        """Send these packets as one chunk and let a tick pass."""
        self.send_bytes(b"".join(encode(packet, self.version) for packet in packets))

    def next_id(self) -> int:
        """A packet identifier that this client has not used before."""
        self._packet_id += 1
        return self._packet_id

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> int:
        """Send a PUBLISH; its packet identifier, 0 for QoS 0. Nothing is awaited."""
        packet_id = self.next_id() if qos else 0
        self.send(Publish(topic, payload, qos, retain, False, packet_id, properties))
        return packet_id

    def complete(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> int:
        """Publish and go through the whole flow; the reason code of PUBACK or PUBREC."""
        packet_id = self.publish(topic, payload, qos, retain=retain, properties=properties)
        if qos == 0:
            return 0
        if qos == 1:
            puback = self.expect(Puback)
            assert puback.packet_id == packet_id
            return puback.reason
        pubrec = self.expect(Pubrec)
        assert pubrec.packet_id == packet_id
        if self.version != V5 or pubrec.reason < 0x80:
            self.send(Pubrel(packet_id))
            assert self.expect(Pubcomp).packet_id == packet_id
        return pubrec.reason

    def subscribe(
        self,
        topic_filter: str,
        qos: int = 0,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        identifier: int = 0,
    ) -> int:
        """Subscribe; the reason code. What else came stays to be read."""
        request = SubscriptionRequest(
            topic_filter, qos, no_local, retain_as_published, retain_handling
        )
        properties = Properties(subscription_identifiers=(identifier,)) if identifier else None
        packet_id = self.next_id()
        self.send(Subscribe(packet_id, [request], properties))
        suback = self.expect(Suback)
        assert suback.packet_id == packet_id
        assert len(suback.reasons) == 1
        return suback.reasons[0]

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe from a filter that has a subscription."""
        packet_id = self.next_id()
        self.send(Unsubscribe(packet_id, [topic_filter]))
        unsuback = self.expect(Unsuback)
        assert unsuback.packet_id == packet_id
        assert not any(unsuback.reasons)

    def disconnect(self, reason: int = 0, properties: Properties | None = None) -> None:
        """Say goodbye."""
        self.send(Disconnect(reason, properties))

    def cut(self, reason: str = "the connection broke") -> None:
        """The network connection is gone, without a word."""
        self._unsent.clear()
        if not self.is_gone:
            self.is_gone = True
            self.connection.lost(reason)
        self.link.tick()

    # -- receiving -------------------------------------------------------------------------------

    def take(self) -> list[Packet]:
        """Every whole packet that has come and was not taken yet."""
        self._read()
        packets, self._packets = self._packets, []
        return packets

    def expect(self, packet_type: type[PacketOf]) -> PacketOf:
        """Take the first packet of this type; it must have come. The others stay."""
        self._read()
        for index, packet in enumerate(self._packets):
            if isinstance(packet, packet_type):
                del self._packets[index]
                return packet
        raise AssertionError(f"no {packet_type.__name__} came, but {self._packets}")

    def only(self, packet_type: type[PacketOf]) -> PacketOf:
        """Take the one packet that has come, which is of this type."""
        packets = self.take()
        assert len(packets) == 1, packets
        assert isinstance(packets[0], packet_type), packets
        return packets[0]

    def messages(self) -> list[Publish]:
        """Take what was published to this client, acknowledging it until nothing more comes.

        Anything but messages and their acknowledgements is an error.
        """
        found: list[Publish] = []
        while packets := self.take():
            for packet in packets:
                match packet:
                    case Publish(qos=qos, packet_id=packet_id):
                        found.append(packet)
                        if qos == 1:
                            self.send(Puback(packet_id))
                        elif qos == 2:
                            self.send(Pubrec(packet_id))
                    case Pubrel(packet_id=packet_id):
                        self.send(Pubcomp(packet_id))
                    case _:
                        raise AssertionError(f"expected messages, came {packet}")
        return found

    def payloads(self) -> list[bytes]:
        """The payloads of `messages`."""
        return [each.payload for each in self.messages()]

    def goodbye(self) -> int:
        """The connection was closed by the broker: the reason of its last packet, DISCONNECT."""
        packets = self.take()
        assert packets, "nothing came"
        assert isinstance(packets[-1], Disconnect), packets
        assert self.is_gone
        return packets[-1].reason

    def _read(self) -> None:
        data = bytes(self.endpoint.output)
        pos = 0
        while (header := read_header(data, pos, self.version)) is not None:
            first, start, end = header
            if end > len(data):
                break
            self._packets.append(decode(first, data, start, end, self.version))
            pos = end
        del self.endpoint.output[:pos]

    # -- the link --------------------------------------------------------------------------------

    def ended(self) -> bool:
        """`is_gone`, for a test that asks again and again."""
        return self.is_gone

    @property
    def session(self) -> Session:
        """The session that this connection has."""
        assert self.connection.session is not None
        return self.connection.session

    def relieve(self) -> None:
        """The client reads again: the endpoint is not congested any more."""
        self.endpoint.congested = False
        self.connection.writable()
        self.link.tick()

    def deliver(self) -> bool:
        """Give the broker what was sent, unless it does not read; whether anything was given."""
        if not self._unsent or self.endpoint.paused or self.is_gone or self.endpoint.closing:
            return False
        data, self._unsent = bytes(self._unsent), bytearray()
        self.connection.receive(data, self.link.now)
        return True

    def finish(self) -> bool:
        """Tell the protocol that the connection which it closed is gone."""
        if self.endpoint.closing is None or self.is_gone or self.endpoint.stuck:
            return False
        self.is_gone = True
        self.connection.lost(self.endpoint.closing)
        return True


class Link:
    """A node, its clock, its store and its clients."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        access: Access | None = None,
        settings: MqttSettings | None = None,
        authenticator: PasswordCheck | None = None,
        mechanisms: Mapping[str, Callable[[], Mechanism]] | None = None,
        store: Store | None = None,
        sys_interval_s: float = 0.0,
        start_s: float = START_S,
    ) -> None:
        self.timers = Timers(start_s)
        self.log = RecordingLog()
        self.store = RecordingStore() if store is None else store
        self.node = Node(
            limits=Limits() if limits is None else limits,
            access=Access.open() if access is None else access,
            store=self.store,
            timers=self.timers,
            log=self.log,
            version="test",
            sys_interval_s=sys_interval_s,
            wall_clock_offset_s=UNIX_TIME_OFFSET_S,
        )
        self.server = MqttServer(self.node, settings, authenticator, mechanisms)
        self._clients: list[FakeClient] = []

    @property
    def now(self) -> float:
        """What the virtual clock shows, in seconds."""
        return self.timers.now

    # -- clients ---------------------------------------------------------------------------------

    def open(
        self, version: int = V5, *, peer: str = "127.0.0.1", certificate: str | None = None
    ) -> FakeClient:
        """A connection on which nothing was said yet."""
        tls = FakeTls(certificate) if certificate is not None else None
        client = FakeClient(self, version, FakeEndpoint(peer, tls))
        self._clients.append(client)
        return client

    def connect(
        self,
        client_id: str,
        version: int = V5,
        *,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        expiry_s: int | None = None,
        peer: str = "127.0.0.1",
        certificate: str | None = None,
        expected: int = 0,
        present: bool | None = None,
        **properties: Any,
    ) -> FakeClient:
        """A client that has sent CONNECT and was answered with the expected reason code.

        `properties` are those of CONNECT; `present` is what session present has to be, if given.
        """
        client = self.open(version, peer=peer, certificate=certificate)
        about = None
        if properties or expiry_s is not None:
            about = Properties(session_expiry_interval=expiry_s, **properties)
        client.send(
            Connect(version, client_id, clean_start, keep_alive_s, username, password, will, about)
        )
        connack = client.expect(Connack)
        assert connack.reason == expected, connack
        assert connack.session_present == present or present is None
        return client

    def greet(self, client_id: str, **options: Any) -> tuple[FakeClient, Properties]:
        """Like `connect` for MQTT 5.0, with the properties of CONNACK."""
        client = self.open()
        clean_start = options.pop("clean_start", True)
        keep_alive_s = options.pop("keep_alive_s", 0)
        about = Properties(**options) if options else None
        client.send(Connect(V5, client_id, clean_start, keep_alive_s, properties=about))
        connack = client.expect(Connack)
        assert connack.reason == 0
        return client, connack.properties or Properties()

    # -- time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Handle what clients have sent, commit, and end what was closed, until all is quiet."""
        busy = True
        while busy:
            busy = _any(client.deliver() for client in self._clients)
            self.node.flush()
            busy = _any(client.finish() for client in self._clients) or busy
        self._clients = [each for each in self._clients if not each.is_gone]

    def advance(self, seconds: float) -> None:
        """Let so much time pass; every timer runs at its own time, and a tick ends after it."""
        until = self.now + seconds
        while (deadline := self.timers.next_deadline()) is not None and deadline <= until:
            self.timers.run(max(deadline, self.now))
            self.tick()
        self.timers.run(until)
        self.tick()

    def restart(self, down_s: float = 0.0) -> "Link":
        """The node is gone from one moment to the next; a new one on what had been committed."""
        assert isinstance(self.store, RecordingStore)
        return Link(
            limits=self.node.limits,
            access=self.node.access,
            settings=self.server.settings,
            store=self.store.copy(),
            start_s=self.now + down_s,
        )


def _any(each: Iterable[bool]) -> bool:
    """Like `any`, but asks every one."""
    return sum(each) > 0
