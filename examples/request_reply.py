"""Request and reply over MQTT: a pump that is asked to do something, and a client that asks.

    python examples/request_reply.py [HOST [PORT]]

- The pump speaks MQTT 3.1.1, which has no response topic. It subscribes to ``$request/+/…``, finds
  the number of the request in the topic, and answers to the same topic with ``$reply``.
- The client speaks MQTT 5. It asks as the specification says: with a response topic below the
  prefix that the broker gave it (Response Information), and correlation data.
- Nobody there, or nobody any more, is an error at once and not a timeout.

Without an address it brings a broker of its own, and prints what happens.
"""

import queue
import sys
from itertools import count

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

import ganglion.testing

TIMEOUT_S = 5


class Pump:
    """A device that answers requests with MQTT 3.1.1."""

    def __init__(self, host: str, port: int) -> None:
        """Connect, and return when requests can come."""
        self._ready: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="pump-7")
        self.client.on_connect = lambda client, *_: client.subscribe("$request/+/pumps/7/+")
        self.client.on_subscribe = lambda *_: self._ready.put(True)
        self.client.on_message = self.on_request
        self.client.connect(host, port)
        self.client.loop_start()
        self._ready.get(timeout=10)

    def on_request(self, client: mqtt.Client, _data: object, request: mqtt.MQTTMessage) -> None:
        """Answer a request, unless it is one that breaks the pump."""
        command = request.topic.rsplit("/", 1)[1]
        if command == "overload":
            connection = client.socket()
            assert connection is not None
            connection.close()
            return
        answer_topic = request.topic.replace("$request/", "$reply/", 1)
        client.publish(answer_topic, f"{command} at {request.payload.decode()}: done", qos=1)

    def stop(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()


class Requester:
    """Asks with MQTT 5, one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        """Connect, and subscribe to its own reply topic."""
        self._answers: queue.SimpleQueue[tuple[bytes, str]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._numbers = count(1)
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = self._on_connect
        self.client.on_publish = self._on_publish
        self.client.on_message = self._on_answer
        self.client.on_subscribe = lambda *_: self._ready.put("subscribed")
        properties = Properties(PacketTypes.CONNECT)
        properties.RequestResponseInformation = 1
        self.client.connect(host, port, properties=properties)
        self.client.loop_start()
        self._ready.get(timeout=10)

    def _on_connect(
        self,
        client: mqtt.Client,
        _data: object,
        _flags: mqtt.ConnectFlags,
        _reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        assert properties is not None
        self.reply_topic = f"{properties.ResponseInformation}/answers"
        client.subscribe(self.reply_topic, qos=1)

    def _on_publish(
        self,
        _client: mqtt.Client,
        _data: object,
        _number: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.value == 0x10:  # no matching subscribers
            self._answers.put((self._correlation, "nobody answers there"))

    def _on_answer(self, _client: mqtt.Client, _data: object, answer: mqtt.MQTTMessage) -> None:
        assert answer.properties is not None
        text = answer.payload.decode()
        for name, value in getattr(answer.properties, "UserProperty", ()):
            if name == "x-error":
                text = f"error {value}: {text}"
        self._answers.put((answer.properties.CorrelationData, text))

    def ask(self, topic: str, payload: str) -> str:
        """Ask, and return the answer or what is wrong."""
        self._correlation = b"%d" % next(self._numbers)
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = self.reply_topic
        properties.CorrelationData = self._correlation
        properties.MessageExpiryInterval = TIMEOUT_S
        self.client.publish(topic, payload, qos=1, properties=properties)
        while True:
            correlation, text = self._answers.get(timeout=2 * TIMEOUT_S)
            if correlation == self._correlation:
                return text

    def stop(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()


def play(host: str, port: int) -> None:
    """The pump is asked before it is there, while it is there, and to death."""
    requester = Requester(host, port)
    print("start:", requester.ask("pumps/7/start", "half speed"))
    pump = Pump(host, port)
    print("start:", requester.ask("pumps/7/start", "half speed"))
    print("stop:", requester.ask("pumps/7/stop", "once"))
    print("overload:", requester.ask("pumps/7/overload", "full speed"))
    pump.stop()
    requester.stop()


def main() -> None:
    """Play against the broker that is named, or against one of our own."""
    if len(sys.argv) > 1:
        play(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1883)
    else:
        with ganglion.testing.broker_thread() as broker:
            play(broker.host, broker.port)


if __name__ == "__main__":
    main()
