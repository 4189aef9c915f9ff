"""The blocking client, against the broker and against peers that misbehave on purpose."""

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from ganglion.broker.daemon.client import (
    ClientError,
    ConnectionLost,
    MqttClient,
    Refused,
    Target,
    TimedOut,
    Unreachable,
)
from ganglion.broker.daemon.config import Configuration, Flag, load
from ganglion.broker.daemon.health import HealthError, check_health
from ganglion.protocols.mqtt.codec import encode, read_header
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Connack,
    Disconnect,
    Packet,
    Puback,
    Publish,
    Suback,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.testing import RunningBroker, broker_thread


def take(client: MqttClient, count: int) -> list[Publish]:
    """The next messages, each acknowledged."""
    messages: list[Publish] = []
    for message in client.messages(time.monotonic() + 10):
        client.acknowledge(message)
        messages.append(message)
        if len(messages) == count:
            return messages
    raise AssertionError(f"only {len(messages)} of {count} messages came")


def publish_all(client: MqttClient, topic: str, payloads: list[bytes], qos: int) -> None:
    """Publish every payload, and wait until the broker has them all."""
    for payload in payloads:
        client.publish(Publish(topic, payload, qos=qos))
    client.settle()
    client.ping()


@contextmanager
def script(*steps: Packet | bytes | None) -> Generator[Target, None, None]:
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


@pytest.mark.parametrize("version", [V31, V311, V5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_is_published_arrives_in_order(
    ganglion_broker: RunningBroker, version: int, qos: int
) -> None:
    """In every version and at every QoS more messages than the window holds come in order."""
    target = Target.parse(ganglion_broker.url)
    payloads = [b"%d" % number for number in range(200)]
    with MqttClient(target, version=version) as receiver, MqttClient(target) as sender:
        receiver.subscribe(["a/#"], qos)
        publish_all(sender, "a/b", payloads, qos)
        messages = take(receiver, len(payloads))
        receiver.settle()
    assert [message.payload for message in messages] == payloads
    assert {message.qos for message in messages} == {qos}


def test_properties_travel(ganglion_broker: RunningBroker) -> None:
    """What MQTT 5 lets a publisher say about a message comes with it."""
    target = Target.parse(ganglion_broker.url)
    properties = Properties(content_type="text/plain", user_properties=(("k", "v"),))
    with MqttClient(target) as client:
        client.subscribe(["t"], 1)
        client.publish(Publish("t", b"x", qos=1, properties=properties))
        (message,) = take(client, 1)
    assert message.properties == properties


def test_messages_end_at_their_deadline(ganglion_broker: RunningBroker) -> None:
    """Waiting for messages that do not come ends in time, without an error."""
    with MqttClient(Target.parse(ganglion_broker.url)) as client:
        client.subscribe(["nothing"], 0)
        assert list(client.messages(time.monotonic() + 0.05)) == []


@pytest.mark.slow
def test_the_keep_alive_is_kept_while_waiting() -> None:
    """A subscriber to a silent topic pings, so that the broker does not give it up."""
    with (
        broker_thread() as running,
        MqttClient(Target.parse(running.url), keep_alive_s=1) as client,
    ):
        client.subscribe(["t"], 0)
        # The broker cuts a connection that is silent for 1.5 s; a subscriber of another
        # connection publishes after 2 s.
        later = threading.Timer(2.0, publish_once, (running.url,))
        later.start()
        assert take(client, 1)[0].payload == b"late"
        later.join()


def publish_once(url: str) -> None:
    """Publish one message by a connection of its own."""
    with MqttClient(Target.parse(url)) as client:
        publish_all(client, "t", [b"late"], 0)


def test_a_refused_connection_tells_the_reason() -> None:
    """The broker's reason code and its words come out, and are told in one sentence."""
    properties = Properties(reason_string="come back tomorrow")
    with script(Connack(False, Reason.BANNED, properties)) as target:
        with pytest.raises(Refused, match=r"refused: banned \(come back tomorrow\)") as caught:
            MqttClient(target)
        assert caught.value.reason == Reason.BANNED


def test_return_codes_of_3_1_1_are_understood() -> None:
    """A refusal by MQTT 3.1.1 is told in the same words as one by MQTT 5."""
    with script(bytes.fromhex("20020005")) as target:
        with pytest.raises(Refused) as caught:
            MqttClient(target, version=V311)
        assert caught.value.reason == Reason.NOT_AUTHORIZED


def test_a_refused_publish_names_its_topic() -> None:
    """PUBACK with a failure is an error of the publish."""
    with script(Connack(False), Puback(1, Reason.QUOTA_EXCEEDED)) as target:
        client = MqttClient(target)
        client.publish(Publish("some/topic", b"", qos=1))
        with pytest.raises(Refused, match="'some/topic' refused: quota exceeded"):
            client.settle()
        client.close()


def test_a_refused_subscription_names_its_filter() -> None:
    """The filter that the broker did not grant is named, although the other was granted."""
    with script(Connack(False), Suback(1, [0, Reason.NOT_AUTHORIZED])) as target:
        client = MqttClient(target)
        with pytest.raises(Refused, match="'b/#' refused: not authorized"):
            client.subscribe(["a", "b/#"], 0)
        client.close()


def test_the_receive_maximum_of_the_broker_is_respected() -> None:
    """No more publishes are in flight than the broker allows (clause 3.3.4)."""
    properties = Properties(receive_maximum=1)
    # The second publish may only come after the first one was acknowledged; with a window of
    # two this script would see it as the packet that it answers with nothing.
    with script(Connack(False, 0, properties), Puback(1), Puback(2)) as target:
        client = MqttClient(target)
        client.publish(Publish("t", b"1", qos=1))
        client.publish(Publish("t", b"2", qos=1))
        client.settle()
        client.close()


def test_a_second_copy_of_a_qos_2_message_is_not_given_twice() -> None:
    """Exactly once: until PUBREL the same packet identifier is the same message (4.3.3)."""
    copy = encode(Publish("t", b"x", qos=2, packet_id=9), V5)
    again = encode(Publish("t", b"x", qos=2, packet_id=9, dup=True), V5)
    last = encode(Publish("t", b"end", qos=0), V5)
    with script(Connack(False), encode(Suback(1, [2]), V5) + copy + again + last) as target:
        client = MqttClient(target)
        client.subscribe(["t"], 2)
        assert [message.payload for message in take(client, 2)] == [b"x", b"end"]
        client.close()


def test_the_reason_of_a_disconnect_is_told() -> None:
    """When the broker says why it ends the connection, so does the error."""
    with script(Connack(False), Disconnect(Reason.SERVER_SHUTTING_DOWN)) as target:
        client = MqttClient(target)
        with pytest.raises(ConnectionLost, match="server shutting down"):
            client.ping()
        client.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00", b"\xc0\x00"])
def test_what_is_no_broker_is_told(answer: bytes) -> None:
    """A web server on the port, or garbage, is named at once, without waiting for more of it."""
    with script(answer) as target, pytest.raises(ConnectionLost, match="no MQTT broker"):
        MqttClient(target)


def test_a_broken_packet_is_told() -> None:
    """What MQTT does not allow ends the connection, and the error says what it was."""
    with script(Connack(False), b"\xd0\x01\x00") as target:
        client = MqttClient(target)
        with pytest.raises(ConnectionLost, match="does not speak MQTT"):
            client.ping()
        client.close()


def test_a_broker_that_closes_is_told() -> None:
    """An end without a word is an error of its own."""
    with script() as target, pytest.raises(ConnectionLost):
        MqttClient(target)


def test_silence_is_bounded() -> None:
    """A peer that never answers costs the timeout and no more."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(TimedOut, match=r"within 0\.05 s"),
    ):
        MqttClient(Target(host="127.0.0.1", port=listening.getsockname()[1]), timeout_s=0.05)


def test_nobody_there_is_told() -> None:
    """A port without a listener, an unknown socket: one sentence that names the target."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unreachable, match=f"mqtt://127.0.0.1:{port}: Connection refused"):
        MqttClient(Target(host="127.0.0.1", port=port))
    with pytest.raises(Unreachable, match="unix:/nonexistent: No such file"):
        MqttClient(Target(path="/nonexistent"))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("mqtt://example.org", Target(host="example.org", port=1883)),
        ("mqtts://example.org", Target(host="example.org", port=8883, tls=True)),
        ("example.org:1", Target(host="example.org", port=1)),
        ("mqtt://[::1]:1884/", Target(host="::1", port=1884)),
        ("unix:/run/g", Target(path="/run/g")),
        ("unix:///run/g", Target(path="/run/g")),
        ("mqtt://a%40b:p%3Aw@h", Target(host="h", port=1883, user="a@b", password=b"p:w")),
    ],
)
def test_urls_are_read(url: str, target: Target) -> None:
    """Every form of URL that the help names is understood."""
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    "url", ["http://h", "mqtt://", "mqtt://h:x", "mqtt://h/topic", "mqtt://h:99999"]
)
def test_other_urls_are_refused(url: str) -> None:
    """What is no such URL is refused with the URL in the message."""
    with pytest.raises(ClientError, match=url.replace("/", "\\/")):
        Target.parse(url)


def test_a_target_never_shows_its_password() -> None:
    """The text of a target, which errors contain, has neither user nor password."""
    assert str(Target.parse("mqtt://ada:secret@[::1]:7")) == "mqtt://[::1]:7"


def no_configuration() -> Configuration:
    """Stands for the configuration where the URL is given, and it must not be asked for."""
    raise AssertionError("the configuration was asked for")


def test_a_broker_that_serves_is_healthy(ganglion_broker: RunningBroker) -> None:
    """A ping that is answered is health."""
    url = ganglion_broker.url
    assert check_health(url, no_configuration, 5) == f"{url} answers"


def test_a_broker_that_wants_a_password_is_healthy() -> None:
    """The check needs no account: to be refused politely is an answer."""
    with broker_thread(users={"ada": "secret"}) as running:
        assert "wants a password" in check_health(running.url, no_configuration, 5)


def test_other_refusals_are_not_health() -> None:
    """A broker that turns everybody away is not well."""
    with (
        script(Connack(False, Reason.SERVER_BUSY)) as target,
        pytest.raises(HealthError, match="server busy"),
    ):
        check_health(str(target), no_configuration, 5)


def test_nobody_is_not_health() -> None:
    """Where nobody listens, nobody is well."""
    with pytest.raises(HealthError, match="cannot connect"):
        check_health("unix:/nonexistent", no_configuration, 5)


def test_a_node_is_asked_over_the_native_protocol() -> None:
    """By its URL, or where it has no other listener; to want a password is health there, too."""
    with broker_thread() as running:
        url = running.native_url
        assert check_health(url, no_configuration, 5) == f"{url} answers"
        flags = [Flag("listeners.native", (f"127.0.0.1:{running.native_port}",), "--native")]
        answer = check_health(None, lambda: load(environment={"HOME": "/"}, flags=flags), 5)
        assert answer == f"{url} answers"
    with broker_thread(users={"ada": "secret"}) as running:
        assert "wants a password" in check_health(running.native_url, no_configuration, 5)
    with pytest.raises(HealthError, match="cannot connect"):
        check_health(running.native_url, no_configuration, 5)


def test_a_node_with_a_web_listener_alone_is_asked_there() -> None:
    """The health check then reads `/readyz`, and says when nobody answers."""
    with broker_thread(web=True) as running:
        flags = [Flag("listeners.web", (f"0.0.0.0:{running.web_port}",), "--web")]
        flags.append(Flag("access.insecure", True, "--insecure"))

        def configuration() -> Configuration:
            return load(environment={"HOME": "/"}, flags=flags)

        answer = check_health(None, configuration, 5)
        assert answer == f"web://127.0.0.1:{running.web_port} is ready"
    with pytest.raises(HealthError, match="does not answer"):
        check_health(None, configuration, 5)


def test_the_first_listener_is_asked_on_this_machine(ganglion_broker: RunningBroker) -> None:
    """Without a URL the configuration says where; a listener on all addresses is near, too."""
    flags = [
        Flag("listeners.mqtt", (f"0.0.0.0:{ganglion_broker.port}",), "--mqtt"),
        Flag("access.insecure", True, "--insecure"),
    ]
    answer = check_health(None, lambda: load(environment={"HOME": "/"}, flags=flags), 5)
    assert answer == f"{ganglion_broker.url} answers"
