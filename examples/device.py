"""A device as it should be: it tells when it is gone, and misses no command while it is away.

    python examples/device.py [HOST [PORT]]

- Its status is a retained message, so whoever asks later knows it; the will sets it to "offline"
  when the device vanishes without a word.
- Its session outlives its connection (MQTT 5, ten minutes), so commands of QoS 1 wait for it.

Without an address it brings a broker of its own, plays both the device and its operator, and
prints what happens.
"""

import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import ganglion.testing

SESSION_S = 600


def device(host: str, port: int, commands: "queue.Queue[str]") -> mqtt.Client:
    """Connect the device: status online, commands into `commands`."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="pump-7", protocol=mqtt.MQTTv5)
    client.will_set("pumps/7/status", "offline", qos=1, retain=True)
    client.on_message = lambda _client, _data, message: commands.put(message.payload.decode())

    def greeted(client: mqtt.Client, _data: object, flags: mqtt.ConnectFlags, *_: object) -> None:
        if not flags.session_present:
            client.subscribe("pumps/7/commands", qos=1)
        client.publish("pumps/7/status", "online", qos=1, retain=True)

    client.on_connect = greeted
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_S
    client.connect(host, port, clean_start=False, properties=properties)
    client.loop_start()
    return client


def operator(host: str, port: int, statuses: "queue.Queue[str]") -> mqtt.Client:
    """Connect somebody who watches the status."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="operator")
    client.on_message = lambda _client, _data, message: statuses.put(message.payload.decode())
    client.on_connect = lambda client, *_: client.subscribe("pumps/7/status", qos=1)
    client.connect(host, port)
    client.loop_start()
    return client


def play(host: str, port: int) -> None:
    """The device comes, vanishes, is sent a command, and comes back."""
    commands: queue.Queue[str] = queue.Queue()
    statuses: queue.Queue[str] = queue.Queue()
    pump = device(host, port, commands)
    watcher = operator(host, port, statuses)
    while (status := statuses.get(timeout=10)) != "online":
        pass
    print("status:", status)

    connection = pump.socket()
    assert connection is not None
    pump.loop_stop()
    connection.close()  # no DISCONNECT: the power is gone
    print("status:", statuses.get(timeout=10))

    watcher.publish("pumps/7/commands", "start", qos=1).wait_for_publish(10)
    pump = device(host, port, commands)
    print("status:", statuses.get(timeout=10))
    print("command that waited:", commands.get(timeout=10))
    for client in (pump, watcher):
        client.disconnect()
        client.loop_stop()


def main() -> None:
    """Play against the broker that is named, or against one of our own."""
    if len(sys.argv) > 1:
        play(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1883)
    else:
        with ganglion.testing.broker_thread() as broker:
            play(broker.host, broker.port)


if __name__ == "__main__":
    main()
