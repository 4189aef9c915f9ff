"""Nothing leaves before it is durable: connections on a store whose commits take their time.

The last tests stop the node between any two commits and go on with what the store then has: QoS 2
is exactly once there too.
"""

import pytest

from ganglion.protocols.mqtt.packets import (
    V5,
    Connack,
    Connect,
    Packet,
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
    Unsuback,
    Unsubscribe,
)
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, HeldStore, Link

DURABLE = Properties(session_expiry_interval=3600)


class SlowDisk:
    """A link whose store commits only when told to, with a durable subscriber to ``kept/#``."""

    def __init__(self) -> None:
        self.store = HeldStore()
        self.link = Link(store=self.store)
        self.subscriber = self.connect("subscriber")
        self.subscriber.send(Subscribe(1, [SubscriptionRequest("kept/#", 2)]))
        self.commit()
        self.subscriber.expect(Suback)

    def connect(self, client_id: str) -> FakeClient:
        """A client with a durable session, greeted."""
        client = self.link.open()
        client.send(Connect(V5, client_id, clean_start=False, properties=DURABLE))
        self.commit()
        client.expect(Connack)
        return client

    def commit(self) -> None:
        """The disk catches up, also with what this leads to."""
        while self.store.held:
            self.store.release()
            self.link.tick()


@pytest.fixture
def disk() -> SlowDisk:
    """A node with a slow disk."""
    return SlowDisk()


def _kinds(packets: list[Packet]) -> list[type[Packet]]:
    return [type(each) for each in packets]


def test_connack_waits_and_comes_first(disk: SlowDisk) -> None:
    """CONNACK of a durable session waits for its commit; nothing comes before it (3.2.0-1)."""
    client = disk.link.open()
    client.send(
        Connect(V5, "new", properties=DURABLE),
        Pingreq(),
        Subscribe(1, [SubscriptionRequest("t", 0)]),
        Publish("t", b"y", 1, packet_id=2),
    )
    client.send(Publish("t", b"z"))
    assert client.take() == []
    disk.commit()
    assert _kinds(client.take()) == [Connack, Pingresp, Publish, Publish, Suback, Puback]


def test_nothing_is_sent_to_a_returning_client_before_connack(disk: SlowDisk) -> None:
    """While CONNACK waits for its commit, messages for the session wait behind it (3.2.0-1)."""
    publisher = disk.connect("publisher")
    disk.subscriber.cut()
    disk.commit()
    publisher.publish("kept/a", b"waits for the commit", 1)
    client = disk.link.open()
    client.send(Connect(V5, "subscriber", clean_start=False, properties=DURABLE))
    publisher.publish("kept/a", b"transient", 0)
    assert client.take() == []
    disk.commit()
    packets = client.take()
    assert _kinds(packets) == [Connack, Publish]


def test_a_taken_over_greeting_gets_no_disconnect(disk: SlowDisk) -> None:
    """DISCONNECT is never sent before CONNACK (MQTT 5.0, 3.14.0-1)."""
    first = disk.link.open()
    first.send(Connect(V5, "same", properties=DURABLE))
    second = disk.link.open()
    second.send(Connect(V5, "same", clean_start=False, properties=DURABLE))
    assert first.is_gone
    assert first.take() == []
    disk.commit()
    assert first.take() == []
    assert _kinds(second.take()) == [Connack]
    assert disk.link.node.connected == 2


def test_a_client_that_leaves_before_connack(disk: SlowDisk) -> None:
    """A connection that ends while its CONNACK waits leaves a session without a connection."""
    client = disk.link.open()
    client.send(Connect(V5, "gone", properties=DURABLE))
    client.cut()
    disk.commit()
    assert client.take() == []
    assert disk.link.node.connected == 1
    assert disk.link.node.sessions["gone"].connection is None


@pytest.mark.parametrize(("qos", "answer"), [(1, Puback), (2, Pubrec)])
def test_acknowledgement_and_delivery_wait(
    disk: SlowDisk, qos: int, answer: type[Puback] | type[Pubrec]
) -> None:
    """A publish with a durable target is acknowledged and delivered after its commit."""
    publisher = disk.connect("publisher")
    for first_or_fast_path in range(2):
        publisher.publish("kept/a", b"x", qos)
        assert publisher.take() == []
        assert disk.subscriber.take() == []
        disk.commit()
        assert publisher.only(answer).packet_id == first_or_fast_path + 1
        assert disk.subscriber.only(Publish).payload == b"x"


@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_hurries_an_uncommitted_message(disk: SlowDisk, qos: int) -> None:
    """Neither packets of the client nor an end of its congestion send what is not durable yet."""
    publisher = disk.connect("publisher")
    for payload in (b"1", b"2"):
        publisher.publish("kept/a", payload, qos)
    disk.subscriber.send(Puback(9), Pingreq())
    disk.subscriber.relieve()
    assert _kinds(disk.subscriber.take()) == [Pingresp]
    disk.commit()
    arrived = disk.subscriber.take()
    assert [each.payload for each in arrived if isinstance(each, Publish)] == [b"1", b"2"]


def test_transient_messages_do_not_wait(disk: SlowDisk) -> None:
    """QoS 0 is delivered, and QoS 1 without a durable target acknowledged, without the disk."""
    client = disk.connect("client")
    client.publish("kept/a", b"now", 0)
    assert disk.subscriber.only(Publish).payload == b"now"
    client.publish("elsewhere", b"", 1)
    client.only(Puback)


def test_acknowledgements_behind_a_waiting_one_wait_too(disk: SlowDisk) -> None:
    """PUBACKs keep the order of their PUBLISHes when only some wait for the disk (4.6-2)."""
    client = disk.connect("client")
    client.publish("elsewhere", b"", 1)
    client.only(Puback)
    client.send(
        Publish("kept/a", b"", 1, packet_id=21),
        Publish("elsewhere", b"", 1, packet_id=22),
        Publish("elsewhere", b"", 0),
        Publish("elsewhere", b"", 1, packet_id=23),
    )
    assert client.take() == []
    disk.commit()
    answers = client.take()
    assert [each.packet_id for each in answers if isinstance(each, Puback)] == [21, 22, 23]


def test_pubrec_of_a_durable_session_waits(disk: SlowDisk) -> None:
    """PUBREC promises that the identifier is known: its commit comes first (4.3.3)."""
    client = disk.connect("client")
    for packet_id in (1, 2):  # the second takes the fast path
        client.send(Publish("elsewhere", b"", 2, packet_id=packet_id))
        assert client.take() == []
        disk.commit()
        client.only(Pubrec)
        client.send(Pubrel(packet_id))
        assert client.take() == []
        disk.commit()
        client.only(Pubcomp)


def test_pubrel_of_a_durable_session_waits(disk: SlowDisk) -> None:
    """PUBREL lets the client forget the identifier: that it was released is durable first."""
    publisher = disk.connect("publisher")
    publisher.publish("kept/a", b"x", 2)
    disk.commit()
    packet_id = disk.subscriber.only(Publish).packet_id
    disk.subscriber.send(Pubrec(packet_id))
    assert disk.subscriber.take() == []
    disk.commit()
    assert disk.subscriber.only(Pubrel).packet_id == packet_id


def test_suback_and_unsuback_wait(disk: SlowDisk) -> None:
    """What a durable session is told of its subscriptions is durable."""
    client = disk.connect("client")
    client.send(Subscribe(5, [SubscriptionRequest("t", 1)]))
    assert client.take() == []
    disk.commit()
    client.only(Suback)
    client.send(Unsubscribe(6, ["t"]))
    assert client.take() == []
    disk.commit()
    client.only(Unsuback)


def test_retained_messages_come_after_suback(disk: SlowDisk) -> None:
    """Retained messages of a new subscription follow its SUBACK."""
    publisher = disk.connect("publisher")
    publisher.publish("r", b"retained", 0, retain=True)
    disk.commit()
    client = disk.connect("client")
    client.send(Subscribe(5, [SubscriptionRequest("r", 0)]))
    disk.commit()
    assert _kinds(client.take()) == [Suback, Publish]


def test_retained_messages_of_a_client_that_has_gone(disk: SlowDisk) -> None:
    """A client that goes before its SUBACK leaves no retained messages to be sent later."""
    disk.connect("publisher").publish("r", b"retained", 0, retain=True)
    disk.commit()
    client = disk.connect("client")
    client.send(Subscribe(5, [SubscriptionRequest("r", 0)]))
    client.cut()
    disk.commit()
    assert disk.link.node.sessions["client"].replay is None
    back = disk.connect("client")
    assert back.take() == []


def test_a_retained_message_is_acknowledged_after_its_commit(disk: SlowDisk) -> None:
    """PUBACK of a retained message says that it will be there after a restart."""
    publisher = disk.connect("publisher")
    publisher.publish("r", b"x", 1, retain=True)
    assert publisher.take() == []
    disk.commit()
    publisher.only(Puback)


@pytest.mark.parametrize("commits", range(8))
def test_qos_2_from_the_client_is_exactly_once_across_a_crash(commits: int) -> None:
    """Stopped after any number of commits, and resent, the message is routed exactly once."""
    disk = SlowDisk()
    disk.subscriber.cut()
    disk.commit()
    client = disk.connect("client")
    message = Publish("kept/a", b"once", 2, packet_id=4)
    unfinished: Publish | Pubrel | None = message
    client.send(message)
    for _ in range(commits):
        disk.store.release(1)
        disk.link.tick()
        for packet in client.take():
            if isinstance(packet, Pubrec):
                unfinished = Pubrel(4)
                client.send(Pubrel(4))
            elif isinstance(packet, Pubcomp):
                unfinished = None
    link = disk.link.restart()
    client = link.connect("client", clean_start=False, expiry_s=3600, present=True)
    if isinstance(unfinished, Publish):
        unfinished.dup = True
        client.send(unfinished)
        client.only(Pubrec)
        unfinished = Pubrel(4)
    if unfinished is not None:
        client.send(unfinished)
        client.only(Pubcomp)
    subscriber = link.connect("subscriber", clean_start=False, expiry_s=3600, present=True)
    assert subscriber.payloads() == [b"once"]


@pytest.mark.parametrize("commits", range(10))
def test_qos_2_to_the_client_is_exactly_once_across_a_crash(commits: int) -> None:
    """Stopped after any number of commits, the messages arrive exactly once all the same."""
    disk = SlowDisk()
    publisher = disk.connect("publisher")
    disk.subscriber.session._next_id = 100  # it has had others before
    for payload in (b"first", b"second"):
        publisher.publish("kept/a", payload, 2)
    held: set[int] = set()
    delivered: list[bytes] = []

    def follow(client: FakeClient) -> bool:
        packets = client.take()
        for packet in packets:
            if isinstance(packet, Publish):
                if packet.packet_id not in held:
                    delivered.append(packet.payload)
                    held.add(packet.packet_id)
                client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                held.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))
        return bool(packets)

    for _ in range(commits):
        follow(disk.subscriber)
        disk.store.release(1)
        disk.link.tick()
    follow(disk.subscriber)
    link = disk.link.restart()
    client = link.connect("subscriber", clean_start=False, expiry_s=3600, present=True)
    while follow(client):
        pass
    assert delivered == [b"first", b"second"][: len(delivered)]
    assert len(delivered) == 2 or commits < 2, "what was committed is lost"
    assert held == set()
