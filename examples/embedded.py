"""A broker inside a program, and two ordinary MQTT clients (paho-mqtt) that meet there.

    python examples/embedded.py

Prints what the subscriber received. See docs/embedding.md.
"""

import queue

import paho.mqtt.client as mqtt

import ganglion.testing


def connect(client_id: str, host: str, port: int) -> mqtt.Client:
    """A client that is connected and runs in a thread of its own."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id)
    client.connect(host, port)
    client.loop_start()
    return client


def main() -> None:
    """Publish three temperatures and print them where they arrive."""
    arrived: queue.Queue[str] = queue.Queue()
    subscribed: queue.Queue[None] = queue.Queue()
    with ganglion.testing.broker_thread() as broker:
        subscriber = connect("display", broker.host, broker.port)
        subscriber.on_message = lambda _client, _data, message: arrived.put(
            f"{message.topic} {message.payload.decode()}"
        )
        subscriber.on_subscribe = lambda *_: subscribed.put(None)
        subscriber.subscribe("plant/+/temperature", qos=1)
        subscribed.get(timeout=10)

        sensor = connect("sensor", broker.host, broker.port)
        for pump, celsius in (("a", 21.5), ("b", 19.0), ("c", 23.25)):
            sensor.publish(f"plant/{pump}/temperature", str(celsius), qos=1)
        for _ in range(3):
            print(arrived.get(timeout=10))
        for client in (sensor, subscriber):
            client.disconnect()
            client.loop_stop()


if __name__ == "__main__":
    main()
