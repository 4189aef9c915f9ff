"""The client of the tests themselves, against a broker and against peers that misbehave."""

import threading
import time

import pytest

from ganglion.broker.daemon.probe import Refused, Target
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Connack,
    Puback,
    Publish,
    Suback,
)
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.testing import RunningBroker, broker_thread
from tests.mqtt_client import MqttClient, scripted_broker


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


def test_return_codes_of_3_1_1_are_understood() -> None:
    """A refusal by MQTT 3.1.1 is told in the same words as one by MQTT 5."""
    with scripted_broker(bytes.fromhex("20020005")) as target:
        with pytest.raises(Refused) as caught:
            MqttClient(target, version=V311)
        assert caught.value.reason == Reason.NOT_AUTHORIZED


def test_a_refused_publish_names_its_topic() -> None:
    """PUBACK with a failure is an error of the publish."""
    with scripted_broker(Connack(False), Puback(1, Reason.QUOTA_EXCEEDED)) as target:
        client = MqttClient(target)
        client.publish(Publish("some/topic", b"", qos=1))
        with pytest.raises(Refused, match="'some/topic' refused: quota exceeded"):
            client.settle()
        client.close()


def test_a_refused_subscription_names_its_filter() -> None:
    """The filter that the broker did not grant is named, although the other was granted."""
    with scripted_broker(Connack(False), Suback(1, [0, Reason.NOT_AUTHORIZED])) as target:
        client = MqttClient(target)
        with pytest.raises(Refused, match="'b/#' refused: not authorized"):
            client.subscribe(["a", "b/#"], 0)
        client.close()


def test_the_receive_maximum_of_the_broker_is_respected() -> None:
    """No more publishes are in flight than the broker allows (clause 3.3.4)."""
    properties = Properties(receive_maximum=1)
    # The second publish may only come after the first one was acknowledged; with a window of
    # two this script would see it as the packet that it answers with nothing.
    with scripted_broker(Connack(False, 0, properties), Puback(1), Puback(2)) as target:
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
    with scripted_broker(
        Connack(False), encode(Suback(1, [2]), V5) + copy + again + last
    ) as target:
        client = MqttClient(target)
        client.subscribe(["t"], 2)
        assert [message.payload for message in take(client, 2)] == [b"x", b"end"]
        client.close()
