"""Sessions seen from their connections: present, expiry, takeover, keep alive, identifiers."""

import pytest

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.sessions import NEVER_EXPIRES
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Publish,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link, RecordingStore

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
OLD_VERSIONS = pytest.mark.parametrize("version", [V31, V311])


class TestSessionPresent:
    """Whether CONNACK says that the session was there (MQTT 5.0, 3.1.2.4 and 3.2.2.1.1)."""

    def test_a_new_session_is_not_present(self) -> None:
        """Nothing is there at first, with clean start or without (3.2.2-3)."""
        link = Link()
        link.connect("a", clean_start=True, present=False)
        link.connect("b", clean_start=False, present=False)

    def test_an_unexpired_session_is_present(self) -> None:
        """A session within its expiry interval is found, subscriptions and all (3.1.2-5)."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.subscribe("t", 1)
        client.disconnect()
        link.connect("p").complete("t", b"x", 1)
        client = link.connect("a", clean_start=False, expiry_s=60, present=True)
        assert client.payloads() == [b"x"]

    def test_clean_start_ends_the_old_session(self) -> None:
        """With clean start nothing of the old session is left (3.1.2-4)."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.subscribe("t", 1)
        client.disconnect()
        publisher = link.connect("p")
        publisher.complete("t", b"x", 1)
        client = link.connect("a", clean_start=True, expiry_s=60, present=False)
        publisher.complete("t", b"y", 1)
        assert client.take() == []
        assert not client.session.subscriptions

    @OLD_VERSIONS
    def test_clean_session_of_mqtt_3(self, version: int) -> None:
        """CleanSession 0 keeps the session without end, 1 only while connected (3.1.1, 3.1.2.4)."""
        link = Link()
        client = link.connect("a", version, clean_start=False)
        client.subscribe("t", 1)
        client.disconnect()
        link.advance(1e9)
        link.connect("p", version).complete("t", b"x", 1)
        client = link.connect("a", version, clean_start=False)
        assert client.payloads() == [b"x"]
        client.disconnect()
        client = link.connect("a", version, clean_start=True)
        client.subscribe("t", 1)
        client.cut()
        assert "a" not in link.node.sessions

    def test_session_present_is_zero_in_mqtt_3_1(self) -> None:
        """MQTT 3.1 has no such flag: the byte is reserved and zero (3.1, 3.2)."""
        link = Link()
        link.connect("a", V31, clean_start=False).disconnect()
        client = link.open(V31)
        client.send(Connect(V31, "a", clean_start=False))
        assert bytes(client.endpoint.output) == b"\x20\x02\x00\x00"


class TestExpiry:
    """How long a session outlives its connection (MQTT 5.0, 3.1.2.11.2 and 3.14.2.2.2)."""

    def test_absent_means_at_once(self) -> None:
        """Without an interval the session ends with its connection (3.1.2.11.2)."""
        link = Link()
        client = link.connect("a")
        client.subscribe("t", 1)
        client.cut()
        assert link.node.sessions == {}
        link.connect("a", clean_start=False, present=False)

    def test_it_counts_from_the_end_of_the_connection(self) -> None:
        """The interval begins when the connection ends, however long that was (3.1.2-23)."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        link.advance(1000)
        client.cut()
        link.advance(59.9)
        client = link.connect("a", clean_start=False, expiry_s=60, present=True)
        link.advance(1000)
        client.cut()
        link.advance(60.1)
        link.connect("a", clean_start=False, present=False)
        assert link.node.statistics.clients_expired == 1

    def test_all_records_are_gone_with_the_session(self) -> None:
        """An expired session leaves nothing in the store: subscriptions, messages, identifiers."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.subscribe("t/#", 2)
        publisher = link.connect("p")
        for _ in range(3):
            publisher.complete("t/x", b"x", 2)
        client.send(Publish("elsewhere", b"", 2, packet_id=1))
        client.cut()
        publisher.complete("t/x", b"x", 2)
        store = link.store
        assert isinstance(store, RecordingStore)
        assert store.record_count() > 5
        link.advance(61)
        assert store.record_count() == 0
        assert link.node.router.subscription_count == 0

    def test_never(self) -> None:
        """4,294,967,295 means that the session does not expire (3.1.2.11.2)."""
        link = Link()
        link.connect("a", expiry_s=NEVER_EXPIRES).cut()
        link.advance(10.0 * NEVER_EXPIRES)
        link.connect("a", clean_start=False, present=True)

    def test_disconnect_changes_it(self) -> None:
        """DISCONNECT may set another interval for what follows (3.14.2.2.2)."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.disconnect(properties=Properties(session_expiry_interval=600))
        link.advance(599)
        client = link.connect("a", clean_start=False, expiry_s=60, present=True)
        client.disconnect(properties=Properties(session_expiry_interval=0))
        assert link.node.sessions == {}

    def test_disconnect_cannot_revive_it(self) -> None:
        """An interval in DISCONNECT after zero in CONNECT is a protocol error (3.14.2.2.2)."""
        link = Link()
        client = link.connect("a")
        client.disconnect(properties=Properties(session_expiry_interval=5))
        assert client.goodbye() == Reason.PROTOCOL_ERROR
        assert link.node.sessions == {}

    def test_the_node_caps_it(self) -> None:
        """`session_expiry_max_s` lowers the interval, and CONNACK says so (3.2.2.3.2)."""
        link = Link(limits=Limits(session_expiry_max_s=100))
        client, connack = link.greet("a", session_expiry_interval=5000)
        assert connack.session_expiry_interval == 100
        client.disconnect(properties=Properties(session_expiry_interval=7000))
        link.advance(101)
        assert link.node.sessions == {}
        _, connack = link.greet("b", session_expiry_interval=50)
        assert connack.session_expiry_interval is None

    def test_an_interval_may_become_zero_at_reconnect(self) -> None:
        """A session that is continued without an interval is kept no longer, nor recorded."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.subscribe("t", 2)
        publisher = link.connect("p")
        for payload in (b"1", b"2", b"3"):
            publisher.complete("t", payload, 2)
        client.cut()
        client = link.connect("a", clean_start=False, expiry_s=0, receive_maximum=2, present=True)
        store = link.store
        assert isinstance(store, RecordingStore)
        assert client.payloads() == [b"1", b"2", b"3"]
        restarted = link.restart()  # finds nothing that belongs to no session
        assert isinstance(restarted.store, RecordingStore)
        restarted.tick()
        assert restarted.store.record_count() == 0
        client.cut()
        assert "a" not in link.node.sessions

    @pytest.mark.parametrize("step", range(4))
    def test_a_restart_after_the_interval_became_zero(self, step: int) -> None:
        """Such a session may be anywhere in its flows when the node stops: it is just gone."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.subscribe("t", 2)
        client.cut()
        link.connect("p").complete("t", b"1", 2)
        client = link.connect("a", clean_start=False, expiry_s=0, present=True)
        client.send(Publish("x", b"", 2, packet_id=1))
        for _ in range(step):
            for packet in client.take():
                match packet:
                    case Publish(packet_id=packet_id):
                        client.send_bytes(b"\x50\x02" + packet_id.to_bytes(2, "big"))
                    case _:
                        pass
        assert link.restart().node.sessions == {}


class TestTakeover:
    """A second connection with the same client identifier (MQTT 5.0, 3.1.4-3)."""

    def test_the_old_connection_is_told(self) -> None:
        """The old connection gets DISCONNECT 0x8E and is closed; the new one works (3.1.4-3)."""
        link = Link()
        old = link.connect("a")
        new = link.connect("a", present=False)
        assert old.goodbye() == Reason.SESSION_TAKEN_OVER
        new.send(Pingreq())
        new.only(Pingresp)
        assert link.node.connected == 1
        assert link.node.sessions["a"].connection is new.connection

    @OLD_VERSIONS
    def test_mqtt_3_is_just_closed(self, version: int) -> None:
        """MQTT 3.x has no word for it: the old connection is closed (3.1.1, 3.1.4-2)."""
        link = Link()
        old = link.connect("a", version)
        link.connect("a", version)
        assert old.is_gone
        assert old.take() == []

    @pytest.mark.parametrize("stuck", [False, True])
    def test_the_session_goes_on(self, stuck: bool) -> None:
        """The new connection has the session, also while the old one is stuck."""
        link = Link()
        old = link.connect("a", expiry_s=60)
        old.subscribe("t", 1)
        old.endpoint.stuck = stuck
        publisher = link.connect("p")
        publisher.complete("t", b"1", 1)
        new = link.connect("a", clean_start=False, expiry_s=60, present=True)
        publisher.complete("t", b"2", 1)
        assert new.payloads() == [b"1", b"2"]
        old.endpoint.stuck = False
        link.tick()  # the end of the old connection changes nothing any more
        assert old.is_gone
        publisher.complete("t", b"3", 1)
        assert new.payloads() == [b"3"]
        assert link.node.connected == 2

    def test_what_the_old_connection_sends_afterwards_is_ignored(self) -> None:
        """Packets behind the takeover have no effect."""
        link = Link()
        subscriber = link.connect("s")
        subscriber.subscribe("t")
        old = link.connect("a")
        old.endpoint.stuck = True
        link.connect("a")
        old.connection.receive(b"\x30\x04\x00\x01tx", link.now)
        link.tick()
        assert subscriber.take() == []

    def test_again_and_again(self) -> None:
        """Clients that fight for an identifier leave one session and one connection."""
        link = Link()
        clients: list[FakeClient] = [
            link.connect("a", expiry_s=60 * (number % 2), clean_start=False) for number in range(20)
        ]
        assert [each.is_gone for each in clients] == [True] * 19 + [False]
        assert link.node.connected == 1
        assert len(link.node.sessions) == 1


class TestKeepAlive:
    """A client from which nothing comes (MQTT 5.0, 3.1.2.10)."""

    @VERSIONS
    def test_one_and_a_half_times(self, version: int) -> None:
        """After 1.5 times the keep alive without a packet the connection is closed (3.1.2-22)."""
        link = Link()
        client = link.connect("a", version, keep_alive_s=10)
        link.advance(14.9)
        client.send(Pingreq())
        client.only(Pingresp)
        link.advance(14.9)
        assert not client.ended()
        link.advance(0.2)
        assert client.ended()
        if version == V5:
            assert client.goodbye() == Reason.KEEP_ALIVE_TIMEOUT

    def test_it_counts_from_the_last_packet(self) -> None:
        """The deadline moves with every packet by all of the time that it came later."""
        link = Link()
        client = link.connect("a", keep_alive_s=10)
        link.advance(0.5)
        client.send(Pingreq())
        link.advance(14.9)
        assert not client.ended()
        link.advance(0.2)
        assert client.ended()

    def test_any_bytes_count(self) -> None:
        """Whatever comes shows that the client lives, a part of a packet too."""
        link = Link()
        client = link.connect("a", V311, keep_alive_s=10)
        for byte in b"\x30\x06\x00\x01tabc":
            link.advance(14)
            client.send_bytes(bytes((byte,)))
        assert not client.ended()

    @pytest.mark.parametrize("at", [0.1, 1e5 + 0.1, 1e6 + 0.3, 1e7 + 0.7])
    def test_the_check_ends_whatever_the_clock_shows(self, at: float) -> None:
        """At the very deadline the connection ends: rounding never makes the check run for ever."""
        for keep_alive_s in range(1, 40):
            link = Link(start_s=at)
            client = link.connect("a", keep_alive_s=keep_alive_s)
            link.advance(1.5 * keep_alive_s + 0.001)
            assert client.ended()

    def test_zero_switches_it_off(self) -> None:
        """Keep alive 0: the client may be silent for ever (3.1.2.10)."""
        link = Link()
        client = link.connect("a", keep_alive_s=0)
        link.advance(1e6)
        assert not client.ended()

    def test_the_node_caps_it(self) -> None:
        """`keep_alive_max_s` is announced as Server Keep Alive and used (3.2.2-21, 3.2.2-22)."""
        link = Link(limits=Limits(keep_alive_max_s=20))
        for asked, told in ((60, 20), (0, 20), (10, None), (20, None)):
            client, connack = link.greet("a", keep_alive_s=asked)
            assert connack.server_keep_alive == told
            link.advance(1.5 * min(asked or 20, 20) - 0.1)
            assert not client.ended()
            link.advance(0.2)
            assert client.ended()

    def test_no_timers_are_left_behind(self) -> None:
        """Ten thousand pings leave one deadline, not ten thousand."""
        link = Link()
        client = link.connect("a", keep_alive_s=10)
        for _ in range(100):
            client.send(*[Pingreq()] * 100)
        assert len(link.timers) < 5


class TestClientIdentifiers:
    """Who the client says it is (MQTT 5.0, 3.1.3.1)."""

    def test_mqtt_5_is_given_one(self) -> None:
        """An empty identifier is replaced by one that is told to the client (3.1.3-6, -7)."""
        link = Link()
        _, first = link.greet("")
        _, second = link.greet("", clean_start=False)
        assert first.assigned_client_identifier
        assert second.assigned_client_identifier
        assert first.assigned_client_identifier != second.assigned_client_identifier
        assert len(link.node.sessions) == 2

    def test_mqtt_3_1_1_with_clean_session(self) -> None:
        """MQTT 3.1.1 may leave it empty with CleanSession 1 only (3.1.1, 3.1.3-7 to 3.1.3-9)."""
        link = Link()
        link.connect("", V311, clean_start=True)
        refused = link.connect("", V311, clean_start=False, expected=2)
        assert refused.is_gone

    def test_mqtt_3_1_needs_one(self) -> None:
        """MQTT 3.1 has no empty identifiers: return code 2 (3.1, 3.1)."""
        assert Link().connect("", V31, expected=2).is_gone

    def test_a_very_long_one_is_refused(self) -> None:
        """Identifiers are kept: one over `topic_size_max_bytes` is refused with 0x85."""
        link = Link(limits=Limits(topic_size_max_bytes=100))
        link.connect("x" * 100)
        link.connect("x" * 101, expected=Reason.CLIENT_IDENTIFIER_NOT_VALID)


class TestBeforeConnect:
    """A connection that has not said CONNECT (MQTT 5.0, 3.1.0)."""

    @VERSIONS
    def test_nothing_comes(self, version: int) -> None:
        """Without CONNECT in time the connection is closed (3.1.4)."""
        link = Link(limits=Limits(connect_timeout_s=5))
        client = link.open(version)
        link.advance(4.9)
        assert not client.ended()
        link.advance(0.2)
        assert client.ended()
        assert client.take() == []

    @pytest.mark.parametrize("first", [each << 4 for each in range(16) if each != 1])
    def test_another_packet_comes_first(self, first: int) -> None:
        """The first packet is CONNECT, or the connection ends without a word (3.1.0-1)."""
        client = Link().open()
        client.send_bytes(bytes((first, 0)))
        assert client.is_gone
        assert client.take() == []

    def test_connect_in_single_bytes(self) -> None:
        """CONNECT may come byte by byte, and the packets behind it in the same chunk."""
        link = Link()
        client = link.open(V311)
        connect = bytes.fromhex("10 0D 00 04 4D 51 54 54 04 02 00 3C 00 01 61")
        for byte in connect[:-1]:
            client.send_bytes(bytes((byte,)))
        client.send_bytes(connect[-1:] + b"\xc0\x00\xc0\x00")
        assert [type(each) for each in client.take()] == [Connack, Pingresp, Pingresp]

    def test_a_second_connect(self) -> None:
        """A second CONNECT is a protocol error (3.1.0-2)."""
        link = Link()
        client = link.connect("a")
        client.send(Connect(V5, "a"))
        assert client.goodbye() == Reason.PROTOCOL_ERROR

    def test_an_oversize_connect(self) -> None:
        """A CONNECT over `connect_size_max_bytes` is not read: the sender is unknown yet."""
        link = Link(limits=Limits(connect_size_max_bytes=256))
        client = link.open()
        client.send_bytes(b"\x10\xff\x7f")
        assert client.is_gone

    @pytest.mark.parametrize(
        ("level", "answer"), [(2, "20 02 00 01"), (6, "20 02 00 01"), (0x84, "20 02 00 01")]
    )
    def test_an_unknown_version(self, level: int, answer: str) -> None:
        """Another protocol level is refused in the form that older clients know (3.1.2-2)."""
        client = Link().open(V311)
        connect = bytes.fromhex("10 0D 00 04 4D 51 54 54 04 02 00 3C 00 01 61")
        client.send_bytes(connect[:8] + bytes((level,)) + connect[9:])
        assert bytes(client.endpoint.output) == bytes.fromhex(answer)
        assert client.is_gone


class TestDrain:
    """The node stops (MQTT 5.0, 3.14.4)."""

    def test_a_client_that_is_being_greeted_is_told(self) -> None:
        """Its CONNECT came after the goodbye: it gets CONNACK, and DISCONNECT 0x8B at once."""
        link = Link()
        client = link.open()
        link.node.drain()
        client.send(Connect(V5, "late"))
        assert [type(each) for each in client.take()] == [Connack, Disconnect]
        assert client.is_gone
        assert link.node.connected == 0

    def test_clients_are_told(self) -> None:
        """MQTT 5.0 clients get DISCONNECT 0x8B behind what was queued for them, others nothing."""
        link = Link()
        new = link.connect("new")
        new.subscribe("t", 1)
        old = link.connect("old", V311)
        link.connect("p").complete("t", b"x", 1)
        link.node.drain()
        link.tick()
        packets = new.take()
        assert [type(each) for each in packets] == [Publish, Disconnect]
        last = packets[-1]
        assert isinstance(last, Disconnect)
        assert last.reason == Reason.SERVER_SHUTTING_DOWN
        assert old.is_gone
        assert old.take() == []
        assert link.node.connected == 0

    def test_durable_sessions_stay(self) -> None:
        """What outlives its connection outlives the node that has been drained."""
        link = Link()
        client = link.connect("a", expiry_s=60)
        client.subscribe("t", 1)
        link.node.drain()
        link.tick()
        link.node.close()
        again = link.restart()
        again.connect("a", clean_start=False, present=True)
