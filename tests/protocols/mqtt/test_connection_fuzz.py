"""Any bytes on a connection: no exception, bounded memory, and nobody else is affected.

The bytes are packets of every kind with random fields, packets that are damaged afterwards, and
noise, in chunks of any size, behind a valid CONNECT or in its place. To run it for longer by hand:
``FUZZ_EXAMPLES=100000 pytest tests/protocols/mqtt/test_connection_fuzz.py``.
"""

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.broker.core.access import Access, Rule
from ganglion.broker.core.limits import Limits
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, HeldStore, Link

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))

LIMITS = Limits(
    packet_size_max_bytes=4096,
    connect_size_max_bytes=1024,
    topic_size_max_bytes=64,
    topic_levels_max=6,
    subscriptions_per_client_max=20,
    receive_max=5,
    inflight_max=5,
    queued_messages_per_session_max=20,
    retained_messages_max=10,
    topic_alias_max=3,
    sessions_max=5,
    properties_per_packet_max=6,
)

versions = st.sampled_from([V31, V311, V5])
levels = st.sampled_from(["a", "b", "secret", "$SYS", "_reply", "", "é", "x" * 40])
topics = st.lists(levels, min_size=1, max_size=8).map("/".join)
filters = st.one_of(
    st.lists(levels | st.sampled_from(["+", "#", "a+"]), min_size=1, max_size=8).map("/".join),
    topics.map(lambda topic: f"$share/g/{topic}"),
    st.just("$share/g/#"),
)
payloads = st.one_of(st.binary(max_size=20), st.sampled_from([b"", b"x" * 300, b"\xff" * 4000]))
identifiers = st.one_of(st.integers(1, 8), st.just(65_535))
qualities = st.integers(0, 2)
reasons = st.sampled_from([0, 0, 0, 0x80, 0x87])
intervals = st.sampled_from([None, 0, 1, 100, 0xFFFF_FFFF])
publish_properties = st.one_of(
    st.none(),
    st.builds(
        Properties,
        payload_format_indicator=st.sampled_from([None, 0, 1]),
        message_expiry_interval=intervals,
        topic_alias=st.sampled_from([None, None, 1, 2, 3, 4, 65_535]),
        response_topic=st.none() | filters,
        content_type=st.none() | st.text("aé☃", max_size=5),
        user_properties=st.lists(
            st.tuples(st.text("aé☃", max_size=3), st.text("aé☃", max_size=3)), max_size=8
        ).map(tuple),
    ),
)
requests = st.builds(
    SubscriptionRequest, filters, qualities, st.booleans(), st.booleans(), st.integers(0, 2)
)
subscribe_properties = st.sampled_from(
    [
        None,
        Properties(subscription_identifiers=(1,)),
        Properties(subscription_identifiers=(77_777,)),
    ]
)
disconnect_properties = intervals.map(
    lambda interval: None if interval is None else Properties(session_expiry_interval=interval)
)
packets: st.SearchStrategy[Packet] = st.one_of(
    st.builds(
        Publish,
        topics,
        payloads,
        qualities,
        st.booleans(),
        st.booleans(),
        identifiers,
        publish_properties,
    ),
    st.builds(Puback, identifiers, reasons),
    st.builds(Pubrec, identifiers, reasons),
    st.builds(Pubrel, identifiers),
    st.builds(Pubcomp, identifiers),
    st.builds(
        Subscribe, identifiers, st.lists(requests, min_size=1, max_size=4), subscribe_properties
    ),
    st.builds(Unsubscribe, identifiers, st.lists(filters, min_size=1, max_size=3)),
    st.just(Pingreq()),
    st.just(Pingresp()),
    st.builds(Disconnect, st.sampled_from([0, 4, 0x80]), disconnect_properties),
    st.builds(Auth, st.sampled_from([0x18, 0x19])),
    st.builds(Connect, versions, st.sampled_from(["a", "b"])),
)


@dataclass
class Script:
    """What one client does."""

    version: int
    connect: bytes
    chunks: list[bytes] = field(default_factory=list)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """A version, a CONNECT, and chunks of bytes behind it."""
    version = draw(versions)
    will = draw(st.none() | st.builds(Will, topics, payloads, qualities, st.booleans()))
    about = None
    if version == V5:
        about = Properties(
            session_expiry_interval=draw(intervals),
            receive_maximum=draw(st.sampled_from([None, 1, 3])),
            maximum_packet_size=draw(st.sampled_from([None, None, 30, 200])),
            topic_alias_maximum=draw(st.sampled_from([None, 0, 2])),
            request_problem_information=draw(st.sampled_from([None, 0, 1])),
            request_response_information=draw(st.sampled_from([None, 1])),
        )
    name = draw(st.sampled_from(["a", "b", "c", ""]))
    clean_start = draw(st.booleans())
    connect = Connect(version, name, clean_start, draw(st.integers(0, 2)), None, None, will, about)
    data = b"".join(
        encode(each, version) if version == V5 or not isinstance(each, Auth) else b"\xf0\x00"
        for each in draw(st.lists(packets, max_size=12))
    )
    match draw(st.sampled_from(["as it is", "as it is", "damaged", "noise"])):
        case "damaged" if data:
            at = draw(st.integers(0, len(data) - 1))
            data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
        case "noise":
            data += draw(st.binary(max_size=40))
        case _:
            pass
    chunks: list[bytes] = []
    while data:
        size = draw(st.sampled_from([1, 2, 5, 50, 5000]))
        chunks.append(data[:size])
        data = data[size:]
        if len(chunks) > 60:
            chunks.append(data)
            break
    return Script(version, encode(connect, version), chunks)


class Bystanders:
    """Two clients that must not notice anything."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.store = link.store
        self.subscriber = link.open()
        self.subscriber.send(Connect(V5, "bystander"))
        self.publisher = link.open(V311)
        self.publisher.send(Connect(V311, "publisher"))
        self._settle()
        self.subscriber.take()
        self.subscriber.send(Subscribe(1, [SubscriptionRequest("bystander/only", 2)]))
        self._settle()
        self.count = 0

    def _settle(self) -> None:
        while isinstance(self.store, HeldStore) and self.store.held:
            self.store.release()
            self.link.tick()

    def check(self) -> None:
        """Messages between them arrive, in order, at every QoS."""
        self._settle()
        self.subscriber.take()
        self.publisher.take()
        sent: list[bytes] = []
        for qos in (0, 1, 2):
            self.count += 1
            payload = b"%d" % self.count
            self.publisher.publish("bystander/only", payload, qos)
            sent.append(payload)
        self._settle()
        got: list[bytes] = []
        while arrived := self.subscriber.take():
            for packet in arrived:
                match packet:
                    case Publish(payload=payload, qos=qos, packet_id=packet_id):
                        got.append(payload)
                        if qos:
                            self.subscriber.send(
                                Puback(packet_id) if qos == 1 else Pubrec(packet_id)
                            )
                    case Pubrel(packet_id=packet_id):
                        self.subscriber.send(Pubcomp(packet_id))
                    case _:
                        raise AssertionError(packet)
            self._settle()
        assert got == sent
        for packet in self.publisher.take():
            if isinstance(packet, Pubrec):
                self.publisher.send(Pubrel(packet.packet_id))
        assert not self.subscriber.is_gone
        assert not self.publisher.is_gone


def _check_bounds(link: Link) -> None:
    node, limits = link.node, link.node.limits
    assert len(node.sessions) <= limits.sessions_max
    assert len(node.retained) <= limits.retained_messages_max
    assert node.router.subscription_count == sum(
        len(session.subscriptions) for session in node.sessions.values()
    )
    for session in node.sessions.values():
        assert len(session.subscriptions) <= limits.subscriptions_per_client_max
        assert len(session.queue or ()) <= limits.queued_messages_per_session_max
        assert len(session.inflight) <= limits.inflight_max
        waiting = sum(each[0].size_bytes() for each in session.queue or ())
        assert session.queued_bytes == waiting
    connected = sum(session.connection is not None for session in node.sessions.values())
    assert node.connected == connected


def _play(client: FakeClient, script: Script, steps: list[int]) -> None:
    link = client.link
    client.send_bytes(script.connect)
    for chunk, step in zip(script.chunks, steps, strict=False):
        client.send_bytes(chunk)
        if step == 1 and isinstance(link.store, HeldStore):
            link.store.release(1)
            link.tick()
        elif step == 2:
            client.endpoint.congested = not client.endpoint.congested
            if not client.endpoint.congested:
                client.relieve()
        elif step == 3:
            link.advance(0.7)


@pytest.mark.slow
@settings(max_examples=EXAMPLES)
@given(
    st.lists(scripts(), min_size=1, max_size=3),
    st.lists(st.integers(0, 4), min_size=60, max_size=60),
    st.booleans(),
    st.booleans(),
)
def test_any_bytes(played: list[Script], steps: list[int], slow_disk: bool, ruled: bool) -> None:
    """Whatever clients send, the node goes on, within its limits, and others are served."""
    rules = [
        Rule(effect="deny", topics=("secret/#",), action="publish"),
        Rule(effect="deny", topics=("+/secret",), action="subscribe"),
    ]
    link = Link(
        limits=LIMITS,
        access=Access(rules) if ruled else None,
        store=HeldStore() if slow_disk else None,
    )
    bystanders = Bystanders(link)
    for script in played:
        client = link.open(script.version)
        _play(client, script, steps)
        bystanders.check()
        _check_bounds(link)
        if steps[0] % 2:
            client.cut()
    bystanders.check()
    link.advance(10)
    _check_bounds(link)
    again = link.restart()  # whatever was stored can be read
    _check_bounds(again)


@pytest.mark.slow
@settings(max_examples=EXAMPLES)
@given(versions, st.lists(st.binary(min_size=1, max_size=60), max_size=5), st.booleans())
def test_any_bytes_in_place_of_connect(version: int, chunks: list[bytes], framed: bool) -> None:
    """What is not a CONNECT ends the connection or waits for more; nothing of it is kept."""
    link = Link(limits=LIMITS)
    client = link.open(version)
    for chunk in chunks:
        client.send_bytes(b"\x10" + bytes((len(chunk),)) + chunk if framed else chunk)
    assert len(client.endpoint.output) < 2000
    link.advance(LIMITS.connect_timeout_s + 0.1)
    assert client.is_gone
    assert link.node.connected == 0
