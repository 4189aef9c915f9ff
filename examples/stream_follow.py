"""A reader of a stream: from the beginning, live, and on where it was after a break.

    python examples/stream_follow.py [HOST [PORT]]

- What is published below "plant/" is kept in the stream "plant": the topic filter says so.
- The reader's session outlives its connection (MQTT 5, ten minutes): the node keeps its position.
- Each record says its number (x-sequence). A reader with a memory of its own can as well begin
  behind any number, with the user property "after".

Without an address it brings a broker of its own, plays sensor and readers, and prints what they
see.
"""

import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import ganglion.testing

STREAM = "$stream/plant/plant/#"
SESSION_S = 600
TIMEOUT_S = 30


def connect(host: str, port: int, client_id: str, session_s: int = 0) -> mqtt.Client:
    """A connected client, whose session outlives its connection for so long."""
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=mqtt.MQTTv5,
        manual_ack=True,
    )
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = session_s
    client.connect(host, port, clean_start=not session_s, properties=properties)
    return client


def follow(host: str, port: int, client_id: str, start: tuple[str, str]) -> "queue.Queue[str]":
    """Follow the stream from there on, or where the session is, into a queue of lines."""
    lines: queue.Queue[str] = queue.Queue()
    client = connect(host, port, client_id, SESSION_S)

    def on_message(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        about = dict(message.properties.UserProperty)  # type: ignore[union-attr]  # MQTT 5 has them
        number = about["x-sequence"]
        lines.put(f"{number}: {message.topic} {message.payload.decode()}")
        client.ack(message.mid, message.qos)  # the position moves on
        if message.payload == b"pause":
            client.disconnect()

    client.on_message = on_message
    options = Properties(PacketTypes.SUBSCRIBE)
    options.UserProperty = start
    client.subscribe(STREAM, qos=1, properties=options)
    client.loop_start()
    return lines


def play(host: str, port: int) -> None:
    """A sensor publishes; a reader stops at a mark and comes back; another begins in the middle."""
    sensor = connect(host, port, "sensor")
    sensor.loop_start()
    sensor.subscribe(STREAM, qos=1)  # makes the stream, and binds the topics
    sensor.unsubscribe("$stream/plant")

    def publish(topic: str, payload: str) -> None:
        sensor.publish(topic, payload, qos=1).wait_for_publish(TIMEOUT_S)

    publish("plant/a/temperature", "21.5")
    publish("plant/b/temperature", "19.0")
    reader = follow(host, port, "reader", ("from", "first"))
    print(reader.get(timeout=TIMEOUT_S))
    print(reader.get(timeout=TIMEOUT_S))
    publish("plant/control", "pause")
    print(reader.get(timeout=TIMEOUT_S))
    publish("plant/a/temperature", "22.5")
    print("back again")
    print(follow(host, port, "reader", ("from", "first")).get(timeout=TIMEOUT_S))
    print("another one, behind number 1")
    print(follow(host, port, "another", ("after", "1")).get(timeout=TIMEOUT_S))
    sensor.disconnect()
    sensor.loop_stop()


def main() -> None:
    """Play against the broker that is named, or against one of our own."""
    if len(sys.argv) > 1:
        play(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1883)
    else:
        with ganglion.testing.broker_thread() as broker:
            play(broker.host, broker.port)


if __name__ == "__main__":
    main()
