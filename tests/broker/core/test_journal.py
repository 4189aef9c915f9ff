"""Recovery: a new node on the same store has what had been committed, all of it and no more.

The state machine lets clients do what they like, and then asks of every moment whether a node that
started on the store now would be the same.
"""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ganglion.broker.core.access import Client
from ganglion.broker.core.backlog import Waiting
from ganglion.broker.core.node import Node
from ganglion.broker.core.sessions import NEVER_EXPIRES, Session
from ganglion.protocols.mqtt.packets import V311, Puback, Pubcomp, Publish, Pubrec, Pubrel
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, Link

FULL = Properties(
    payload_format_indicator=1,
    content_type="c",
    response_topic="r",
    correlation_data=b"\x00\xff",
    user_properties=(("k", "v"), ("k", "")),
)


def _waiting(waiting: Waiting) -> Any:
    message, terms = waiting.message, waiting.terms
    return (
        message.topic,
        message.payload,
        message.qos,
        message.retain,
        message.properties,
        None if message.expires_at is None else round(message.expires_at, 3),
        (terms.qos, terms.retain, terms.identifiers),
        waiting.shared,
        waiting.number,
    )


def _session(session: Session) -> dict[str, Any]:
    assert session.backlog is not None
    return {
        "client": session.client,
        "expiry": session.expiry_s,
        "subscriptions": {
            each.topic_filter: (
                each.qos,
                each.no_local,
                each.retain_as_published,
                each.identifier,
            )
            for each in session.subscriptions.values()
        },
        "cost": session.subscription_cost,
        "on the way": [
            (packet_id, each[2]) for packet_id, each in session.inflight.items() if each is not None
        ],
        "released": sorted(
            packet_id for packet_id, each in session.inflight.items() if each is None
        ),
        "backlog": [_waiting(each) for each in session.backlog.browse()],
        "count": session.backlog.count,
        "bytes": session.backlog.size_bytes,
        "received": sorted(session.received or ()),
    }


def snapshot(node: Node) -> dict[str, Any]:
    """All that a restart must not change."""
    return {
        "sessions": {
            name: _session(session)
            for name, session in node.sessions.items()
            if session.is_durable()
        },
        "retained": {
            message.topic: (
                message.payload,
                message.qos,
                message.properties,
                None if message.expires_at is None else round(message.expires_at, 3),
            )
            for message in node.retained
            if not message.topic.startswith("$")
        },
        "retained bytes": node.retained.size_bytes,
    }


class RecoveryMachine(RuleBasedStateMachine):
    """Clients with durable sessions, and a node that may stop at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link()
        self.clients: dict[str, FakeClient] = {}
        self.publisher = self.link.connect("publisher")

    @rule(
        name=st.sampled_from("abc"),
        clean_start=st.booleans(),
        expiry_s=st.sampled_from([0, 60, 60, NEVER_EXPIRES]),
        window=st.integers(1, 3),
    )
    def connect(self, name: str, clean_start: bool, expiry_s: int, window: int) -> None:
        """Connect or take over."""
        self.clients[name] = self.link.connect(
            name, clean_start=clean_start, expiry_s=expiry_s, receive_maximum=window
        )

    @rule(name=st.sampled_from("abc"))
    def cut(self, name: str) -> None:
        """Lose a connection."""
        client = self.clients.pop(name, None)
        if client is not None:
            client.cut()

    @rule(
        name=st.sampled_from("abc"),
        topic_filter=st.sampled_from(["t/1", "t/+", "#", "$share/g/t/#", "$share/g/t/1"]),
        qos=st.integers(0, 2),
        identifier=st.integers(0, 2),
        wished=st.booleans(),
    )
    def subscribe(
        self, name: str, topic_filter: str, qos: int, identifier: int, wished: bool
    ) -> None:
        """Subscribe."""
        client = self.clients.get(name)
        if client is not None:
            client.subscribe(topic_filter, qos, identifier=identifier, retain_as_published=wished)

    @rule(name=st.sampled_from("abc"), topic_filter=st.sampled_from(["t/1", "#", "$share/g/t/#"]))
    def unsubscribe(self, name: str, topic_filter: str) -> None:
        """End a subscription that is there."""
        client = self.clients.get(name)
        if client is not None and topic_filter in client.session.subscriptions:
            client.unsubscribe(topic_filter)

    @rule(
        topic=st.sampled_from(["t/1", "t/2", "u"]),
        payload=st.sampled_from([b"", b"x", b"long" * 20]),
        qos=st.integers(0, 2),
        retain=st.booleans(),
        about=st.sampled_from([None, FULL, Properties(message_expiry_interval=30)]),
    )
    def publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, about: Properties | None
    ) -> None:
        """Publish, with the whole flow."""
        self.publisher.complete(topic, payload, qos, retain=retain, properties=about)

    @rule(name=st.sampled_from("abc"), packet_id=st.integers(1, 3), release=st.booleans())
    def half_publish(self, name: str, packet_id: int, release: bool) -> None:
        """Begin a QoS 2 flow, or release it."""
        client = self.clients.get(name)
        if client is not None:
            client.send(
                Pubrel(packet_id)
                if release
                else Publish("u", b"", 2, dup=True, packet_id=packet_id)
            )

    @rule(name=st.sampled_from("abc"), count=st.integers(1, 3))
    def answer(self, name: str, count: int) -> None:
        """Answer some of what came; the rest is ignored for ever."""
        client = self.clients.get(name)
        if client is None:
            return
        answered = 0
        for packet in client.take():
            if answered == count:
                return
            match packet:
                case Publish(qos=1, packet_id=packet_id):
                    client.send(Puback(packet_id))
                case Publish(qos=2, packet_id=packet_id):
                    client.send(Pubrec(packet_id))
                case Pubrel(packet_id=packet_id):
                    client.send(Pubcomp(packet_id))
                case _:
                    continue
            answered += 1

    @rule(seconds=st.sampled_from([1, 20, 70]))
    def wait(self, seconds: int) -> None:
        """Time passes: sessions and messages expire."""
        self.link.advance(seconds)

    @rule()
    def stop_and_start(self) -> None:
        """The node is replaced by a new one on the same records."""
        before = snapshot(self.link.node)
        self.link = self.link.restart()
        assert snapshot(self.link.node) == before
        self.clients = {}
        self.publisher = self.link.connect("publisher")

    @invariant()
    def a_new_node_would_be_the_same(self) -> None:
        """What is committed at the end of a tick is all there is."""
        assert snapshot(self.link.restart().node) == snapshot(self.link.node)

    @invariant()
    def nothing_belongs_to_nobody(self) -> None:
        """Without durable sessions and retained messages there are no records."""
        node = self.link.node
        if not any(session.is_durable() for session in node.sessions.values()) and not len(
            node.retained
        ):
            store = self.link.store
            assert store.record_count() == 0  # type: ignore[attr-defined]  # the link's own store


TestRecovery = pytest.mark.slow(RecoveryMachine.TestCase)
TestRecovery.settings = settings(max_examples=60, stateful_step_count=40)


def test_expiry_goes_on_while_the_node_is_down() -> None:
    """Time that passes without a node counts: sessions end, messages expire, retained ones too."""
    link = Link()
    client = link.connect("a", expiry_s=100)
    client.subscribe("t", 1)
    client.cut()
    link.connect("b", expiry_s=10_000).cut()
    about = Properties(message_expiry_interval=50)
    link.connect("p").complete("t", b"x", 1, retain=True, properties=about)
    link = link.restart(down_s=200)
    link.advance(0)
    assert list(link.node.sessions) == ["b"]
    reader = link.connect("reader")
    reader.subscribe("t")
    assert reader.take() == []


def test_a_session_that_was_connected_expires_from_the_start() -> None:
    """The interval of a client that was connected when the node stopped begins at the start."""
    link = Link()
    link.connect("a", expiry_s=100)
    link = link.restart(down_s=1000)
    link.advance(99)
    link.connect("a", clean_start=False, expiry_s=100, present=True).cut()
    link = link.restart()
    link.advance(101)
    assert link.node.sessions == {}


def test_the_client_is_known_again() -> None:
    """User, address and certificate are recorded, and the rules are asked about them."""
    link = Link(authenticator=lambda _user, _password, done: done(True))
    link.connect("a", username="ada", password=b"x", peer="192.0.2.1", expiry_s=60)
    link.connect("b", V311, clean_start=False, certificate="sensor")
    sessions = link.restart().node.sessions
    assert sessions["a"].client == Client("a", "ada", "192.0.2.1", None)
    assert sessions["b"].client == Client("b", None, "127.0.0.1", "sensor")


def test_the_nodes_own_topics_are_not_recorded() -> None:
    """``$SYS`` is made anew at every start."""
    link = Link(sys_interval_s=10)
    assert len(link.node.retained) > 10
    link.advance(100)
    assert link.store.commit_number == 0  # type: ignore[attr-defined]  # the link's own store
    assert len(link.restart().node.retained) == 0


def test_numbers_go_on() -> None:
    """After a restart new messages are behind those that waited, and none is overwritten."""
    link = Link()
    client = link.connect("a", expiry_s=60)
    client.subscribe("t", 1)
    client.cut()
    for round_number in range(3):
        link.connect("p").complete("t", b"%d" % round_number, 1)
        link = link.restart()
    client = link.connect("a", clean_start=False, expiry_s=60)
    assert client.payloads() == [b"0", b"1", b"2"]


@pytest.mark.parametrize("name", ["", "a", "é", "a/b", "x" * 300, "\U0001f600"])
def test_names_of_any_kind(name: str) -> None:
    """Client identifiers and filters of any kind are told apart in the store."""
    link = Link()
    for suffix in ("", "0", "00"):
        client = link.connect(f"{name}{suffix}.", expiry_s=60)
        client.subscribe(f"t/{suffix}/{name}", 1)
        client.subscribe("t/#", 1)
        client.cut()
    link.connect("p").complete("t/0/" + name, b"x", 1)
    assert snapshot(link.restart().node) == snapshot(link.node)


def test_a_payload_of_any_bytes() -> None:
    """Payloads, topics and properties come back byte by byte."""
    link = Link()
    client = link.connect("a", expiry_s=60)
    client.subscribe("#", 2)
    client.cut()
    payload = bytes(range(256)) * 300
    link.connect("p").complete("é/☃", payload, 2, properties=FULL)
    client = link.restart().connect("a", clean_start=False, expiry_s=60)
    (message,) = client.messages()
    assert (message.topic, message.payload, message.properties) == ("é/☃", payload, FULL)
