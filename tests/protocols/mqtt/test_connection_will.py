"""The will: when it is published, and when it is not (MQTT 5.0, 3.1.2.5 and 3.1.3.2)."""

from collections.abc import Callable

import pytest

from ganglion.broker.core.access import Access, Rule
from ganglion.broker.core.limits import Limits
from ganglion.protocols.mqtt.packets import V5, V31, V311, Disconnect, Publish, Will
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from tests.protocols.mqtt.fake_link import FakeClient, Link

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


def _will(*, delay_s: int = 0, qos: int = 1, retain: bool = False, **properties: object) -> Will:
    about = Properties(will_delay_interval=delay_s, **properties)  # type: ignore[arg-type]  # fields
    return Will("will", b"dead", qos, retain, about)


class Scene:
    """Somebody who watches for wills."""

    def __init__(self, limits: Limits | None = None, access: Access | None = None) -> None:
        self.link = Link(limits=limits, access=access)
        self.watcher = self.link.connect("watcher")
        assert self.watcher.subscribe("will/#", 2) == 2

    def wills(self) -> int:
        """How many wills have come since the last call."""
        return len(self.watcher.messages())


def _cut(client: FakeClient) -> None:
    client.cut()


def _break_the_protocol(client: FakeClient) -> None:
    client.send_bytes(b"\x36\x05\x00\x01t\x00\x01")  # QoS 3


def _close_the_stream(client: FakeClient) -> None:
    client.connection.end_of_stream()
    client.endpoint.close("the client closed the connection")
    client.link.tick()


def _fall_silent(client: FakeClient) -> None:
    client.link.advance(200)


def _stop_half_way(client: FakeClient) -> None:
    client.send_bytes(b"\x30\x10\x00")
    client.cut()


@VERSIONS
@pytest.mark.parametrize(
    "end", [_cut, _break_the_protocol, _close_the_stream, _fall_silent, _stop_half_way]
)
def test_every_abnormal_end_publishes_it(version: int, end: Callable[[FakeClient], None]) -> None:
    """However the connection ends without DISCONNECT, the will is published once (3.1.2-8)."""
    scene = Scene()
    client = scene.link.connect("a", version, keep_alive_s=100, will=_will())
    assert scene.wills() == 0
    end(client)
    assert client.is_gone
    assert scene.wills() == 1
    scene.link.advance(1000)
    assert scene.wills() == 0


@VERSIONS
def test_a_normal_disconnect_removes_it(version: int) -> None:
    """After DISCONNECT with reason 0x00 the will is not published, then or later (3.1.2-10)."""
    scene = Scene()
    client = scene.link.connect("a", version, will=_will())
    client.disconnect()
    scene.link.advance(1000)
    assert scene.wills() == 0


@pytest.mark.parametrize(
    "reason", [Reason.DISCONNECT_WITH_WILL_MESSAGE, Reason.UNSPECIFIED_ERROR, 0x83, 0x99]
)
def test_a_disconnect_that_asks_for_it(reason: int) -> None:
    """DISCONNECT 0x04, or with an error, publishes the will (3.14.2.1, 3.1.2.5)."""
    scene = Scene()
    scene.link.connect("a", will=_will()).disconnect(reason)
    assert scene.wills() == 1


def test_what_it_says() -> None:
    """Topic, payload, QoS and properties are those of CONNECT (3.1.3.2, 3.1.3-11)."""
    scene = Scene()
    about = Properties(
        payload_format_indicator=1,
        content_type="text/plain",
        response_topic="answers",
        correlation_data=b"\x00\x01",
        user_properties=(("a", "1"), ("a", "2")),
    )
    will = Will("will/here", "täglich".encode(), 2, False, about)
    scene.link.connect("a", will=will).cut()
    (message,) = scene.watcher.messages()
    assert (message.topic, message.payload, message.qos) == ("will/here", "täglich".encode(), 2)
    assert message.properties == about


@VERSIONS
def test_a_retained_will(version: int) -> None:
    """A will with the retain flag is retained, and flagged for new subscribers (3.1.2-14, -15)."""
    scene = Scene()
    scene.link.connect("a", version, will=_will(retain=True)).cut()
    (message,) = scene.watcher.messages()
    assert not message.retain
    late = scene.link.connect("late", version)
    late.subscribe("will", 1)
    (message,) = late.messages()
    assert (message.payload, message.retain) == (b"dead", True)


class TestDelay:
    """Will Delay Interval (MQTT 5.0, 3.1.3.2.2)."""

    def test_it_waits(self) -> None:
        """The will is published when the interval has passed, not before (3.1.3.2.2)."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will(delay_s=30)).cut()
        scene.link.advance(29.9)
        assert scene.wills() == 0
        scene.link.advance(0.2)
        assert scene.wills() == 1
        scene.link.advance(1000)
        assert scene.wills() == 0

    @pytest.mark.parametrize("expiry_s", [5, 30])
    def test_the_sessions_end_comes_first(self, expiry_s: int) -> None:
        """If the session ends before the delay, the will is published then (3.1.3.2.2)."""
        scene = Scene()
        scene.link.connect("a", expiry_s=expiry_s, will=_will(delay_s=30)).cut()
        scene.link.advance(expiry_s - 0.1)
        assert scene.wills() == 0
        scene.link.advance(0.2)
        assert scene.wills() == 1
        scene.link.advance(1000)
        assert scene.wills() == 0

    def test_without_a_session_there_is_no_delay(self) -> None:
        """Expiry 0: the session ends with the connection, and the will is published."""
        scene = Scene()
        scene.link.connect("a", will=_will(delay_s=30)).cut()
        assert scene.wills() == 1

    @pytest.mark.parametrize("delay_s", [30, 300])
    def test_a_client_that_returns_cancels_it(self, delay_s: int) -> None:
        """A new connection to the session before the delay has passed: no will (3.1.3-9)."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will(delay_s=delay_s)).cut()
        scene.link.advance(10)
        scene.link.connect("a", clean_start=False, expiry_s=100, present=True).disconnect()
        scene.link.advance(1000)
        assert scene.wills() == 0

    @pytest.mark.parametrize("delay_s", [30, 300])
    def test_clean_start_ends_the_session_and_publishes_it(self, delay_s: int) -> None:
        """Clean start ends the old session: its will is published then (3.1.4-3, 3.1.3.2.2)."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will(delay_s=delay_s)).cut()
        scene.link.connect("a", clean_start=True, expiry_s=100)
        assert scene.wills() == 1
        scene.link.advance(1000)
        assert scene.wills() == 0

    def test_the_interval_of_disconnect_counts(self) -> None:
        """The expiry interval set by DISCONNECT decides which comes first."""
        scene = Scene()
        client = scene.link.connect("a", expiry_s=1000, will=_will(delay_s=30))
        about = Properties(session_expiry_interval=5)
        client.send(Disconnect(Reason.DISCONNECT_WITH_WILL_MESSAGE, about))
        scene.link.advance(5.1)
        assert scene.wills() == 1


class TestTakeover:
    """The will of a connection that another one replaces (MQTT 5.0, 3.1.4-3)."""

    def test_without_delay_it_is_published(self) -> None:
        """The old connection did not say goodbye: its will is published (3.1.2.5)."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will())
        scene.link.connect("a", clean_start=False, expiry_s=100, present=True)
        assert scene.wills() == 1

    @pytest.mark.parametrize("delay_s", [30, 300])
    def test_with_delay_it_is_not(self, delay_s: int) -> None:
        """The session goes on before the delay has passed: no will (3.1.3-9)."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will(delay_s=delay_s))
        scene.link.connect("a", clean_start=False, expiry_s=100, present=True).disconnect()
        scene.link.advance(1000)
        assert scene.wills() == 0

    def test_with_delay_and_clean_start_it_is(self) -> None:
        """Clean start ends the session of the old connection, and so the delay."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will(delay_s=30))
        scene.link.connect("a", clean_start=True)
        assert scene.wills() == 1

    def test_the_new_connection_has_its_own(self) -> None:
        """The will of the new connection replaces that of the old one, or its absence does."""
        scene = Scene()
        scene.link.connect("a", expiry_s=100, will=_will(delay_s=30))
        new = scene.link.connect("a", clean_start=False, expiry_s=100, will=None)
        new.cut()
        scene.link.advance(1000)
        assert scene.wills() == 0


class TestExpiry:
    """Message Expiry Interval of a will (MQTT 5.0, 3.1.3.2.4)."""

    def test_it_counts_from_publication(self) -> None:
        """The interval is that of the published message: it begins then, not at CONNECT."""
        scene = Scene()
        client = scene.link.connect("a", will=_will(message_expiry_interval=60))
        scene.link.advance(1000)
        client.cut()
        (message,) = scene.watcher.messages()
        assert message.properties is not None
        assert message.properties.message_expiry_interval == 60

    def test_a_retained_will_expires(self) -> None:
        """A retained will is gone when its interval has passed since its publication."""
        scene = Scene()
        will = _will(message_expiry_interval=60, retain=True)
        scene.link.connect("a", will=will).cut()
        scene.link.advance(61)
        late = scene.link.connect("late")
        late.subscribe("will")
        assert late.take() == []


class TestRefusals:
    """Wills that may not be (MQTT 5.0, 3.1.2.5 and 3.2.2.2)."""

    def test_one_that_may_not_be_published(self) -> None:
        """A will is judged when it is published, by the rules of then; a refusal is logged."""
        rules = [Rule(effect="allow", topics=("#",), action="subscribe")]
        access = Access(rules, users_exist=True, anonymous=True)
        scene = Scene(access=access)
        scene.link.connect("a", will=_will()).cut()
        assert scene.wills() == 0
        refusal = scene.link.log.refusals()[-1]
        assert refusal["action"] == "publish will"
        assert refusal["client"] == "a"
        assert refusal["topic"] == "will"

    def test_a_retained_one_without_room(self) -> None:
        """A will that cannot be retained is not published, and the refusal is logged."""
        scene = Scene(limits=Limits(retained_messages_max=0))
        scene.link.connect("a", will=_will(retain=True)).cut()
        assert scene.wills() == 0
        assert scene.link.log.refusals()[-1]["action"] == "publish will"

    @pytest.mark.parametrize("topic", ["a/+", "#", "x" * 5000, "/".join("x" * 200)])
    def test_one_with_an_impossible_topic(self, topic: str) -> None:
        """CONNECT with a will topic that is invalid or over a limit is refused with 0x90."""
        link = Link()
        link.connect("a", will=Will(topic, b""), expected=Reason.TOPIC_NAME_INVALID)

    def test_a_dollar_topic(self) -> None:
        """A will cannot be published to a topic of the node (4.7.2-1)."""
        scene = Scene()
        scene.watcher.subscribe("$SYS/#")
        scene.link.connect("a", will=Will("$SYS/broker/version", b"mine")).cut()
        assert scene.watcher.take() == []


def test_wills_of_many_reach_each_other() -> None:
    """A will that goes to a client whose will goes to another: each is published once."""
    link = Link()
    clients = [
        link.connect(f"c{number}", will=Will(f"will/{number}", b"", 1)) for number in range(5)
    ]
    for client in clients:
        client.subscribe("will/#", 1)
    for client in clients[:-1]:
        client.cut()
    got = [each for each in clients[-1].take() if isinstance(each, Publish)]
    assert [each.topic for each in got] == [f"will/{number}" for number in range(4)]


class TestRestart:
    """A will is in the store as long as its session is, if that outlives its connection."""

    def _wills(self, link: Link) -> int:
        watcher = link.connect("watcher", expiry_s=9999, clean_start=False)
        count = len(watcher.messages())
        watcher.subscribe("will", 2)
        return count

    def _link(self, delay_s: int = 0) -> Link:
        link = Link()
        assert self._wills(link) == 0
        client = link.connect("client", expiry_s=600, will=_will(delay_s=delay_s))
        assert client.session.will is not None
        return link

    def test_of_a_connected_client(self) -> None:
        """The client of a node that was killed had no time to say goodbye: its will is sent."""
        link = self._link().restart(down_s=5)
        link.advance(0)
        assert self._wills(link) == 1
        link = link.restart()
        link.advance(1000)
        assert self._wills(link) == 0

    def test_with_a_delay(self) -> None:
        """The delay runs over restarts, also while the node is down; then it is sent once."""
        link = self._link(delay_s=60)
        client = link.connect("client", expiry_s=600, clean_start=False, will=_will(delay_s=60))
        client.cut()
        link = link.restart(down_s=20)
        link = link.restart(down_s=20)
        link.advance(19)
        assert self._wills(link) == 0
        link.advance(1)
        assert self._wills(link) == 1
        link = link.restart()
        link.advance(1000)
        assert self._wills(link) == 0

    def test_the_client_comes_back_in_time(self) -> None:
        """Who is back before the delay is over has no old will any more (3.1.3.2.2)."""
        link = self._link(delay_s=60).restart(down_s=5)
        client = link.connect("client", clean_start=False, expiry_s=600, present=True)
        link.advance(100)
        assert self._wills(link) == 0
        client.cut()
        link.advance(100)
        assert self._wills(link) == 0

    def test_after_a_goodbye(self) -> None:
        """DISCONNECT removes it from the store too."""
        link = Link()
        link.connect("client", expiry_s=600, will=_will()).disconnect()
        link = link.restart()
        link.advance(1000)
        assert self._wills(link) == 0

    def test_to_a_queue(self) -> None:
        """A will to a queue waits there after the restart."""
        link = Link()
        will = Will("$queue/jobs", b"dead", 1, retain=False)
        link.connect("client", expiry_s=600, will=will)
        link = link.restart()
        link.advance(0)
        consumer = link.connect("consumer")
        consumer.subscribe("$queue/jobs", 1)
        assert consumer.payloads() == [b"dead"]
