"""Queues and streams with unmodified clients: they publish, subscribe and acknowledge as ever."""

import itertools
import queue
import subprocess
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from tests.interop.conftest import WITH_MOSQUITTO
from tests.interop.peers import PEERS, Peer, Server, require
from tests.interop.test_clients import every_client, every_client_of_5
from tests.support import DEADLINE_S, BrokerProcess, start_daemon

pytestmark = pytest.mark.skipif(WITH_MOSQUITTO, reason="Mosquitto has no queues and streams")

_numbers = itertools.count(1)


@pytest.fixture
def plain(open_broker: BrokerProcess) -> Server:
    """The open broker over TCP: what is in the packets is the same over TLS."""
    return Server(open_broker.ports["mqtt"], host="127.0.0.1")


def _peer(name: str) -> Peer:
    require(name)
    return PEERS[name][0]


def _name() -> str:
    """The name of a queue, a stream or a client that no other test uses."""
    return f"source{next(_numbers)}"


@every_client
def test_a_queue(name: str, version: int, plain: Server) -> None:
    """What was sent while nobody consumed is consumed once, in order."""
    peer, topic = _peer(name), f"$queue/{_name()}"
    for payload in (b"1", b"2"):
        peer.publish(plain, topic, payload, version=version, qos=1)
    with peer.open(plain, _name(), [(topic, 1)], version=version) as session:
        assert [session.receive().payload for _ in range(2)] == [b"1", b"2"]
        peer.publish(plain, topic, b"3", version=version, qos=2)
        assert session.receive().payload == b"3"
    peer.publish(plain, topic, b"4", version=version, qos=1)
    with peer.open(plain, _name(), [(topic, 1)], version=version) as session:
        assert session.receive().payload == b"4"


@every_client
def test_a_bound_queue_with_options(name: str, version: int, plain: Server) -> None:
    """Options and binding in the filter need nothing that a client does not have."""
    peer, queue_name = _peer(name), _name()
    topic_filter = f"$queue/{queue_name}?credit=2&lease_s=30/interop/{queue_name}/+"
    with peer.open(plain, _name(), [(topic_filter, 1)], version=version) as session:
        assert session.granted == [1]
        for number in range(5):
            topic = f"interop/{queue_name}/{number}"
            peer.publish(plain, topic, b"%d" % number, version=version, qos=1)
        came = [session.receive() for _ in range(5)]
        assert [(each.topic, each.payload) for each in came] == [
            (f"interop/{queue_name}/{number}", b"%d" % number) for number in range(5)
        ]


@every_client
def test_a_stream(name: str, version: int, plain: Server) -> None:
    """Each reader gets all records from where it begins, and those that come."""
    peer, topic = _peer(name), f"$stream/{_name()}"
    for payload in (b"1", b"2"):
        peer.publish(plain, topic, payload, version=version, qos=1)
    for start, first in (("from=first", 1), ("after=1", 2)):
        last = 3 if first == 1 else 4
        with peer.open(plain, _name(), [(f"{topic}?{start}", 1)], version=version) as session:
            peer.publish(plain, topic, b"%d" % last, version=version, qos=1)
            expected = [b"%d" % number for number in range(first, last + 1)]
            assert [session.receive().payload for _ in expected] == expected


@every_client_of_5
def test_the_number_of_a_record(name: str, version: int, plain: Server) -> None:
    """MQTT 5 readers see each record's number as a user property."""
    peer, topic = _peer(name), f"$stream/{_name()}"
    peer.publish(plain, topic, b"x", version=version, qos=1)
    with peer.open(plain, _name(), [(f"{topic}?from=first", 1)], version=version) as session:
        assert ("x-sequence", "1") in session.receive().properties.user


@pytest.mark.parametrize("option", ["after 2", "from first"])
def test_mosquitto_sub_gives_user_properties(plain: Server, option: str) -> None:
    """``-D subscribe user-property`` says where in a stream to begin."""
    require("mosquitto")
    topic = f"$stream/{_name()}"
    for payload in (b"1", b"2", b"3"):
        PEERS["mosquitto"][0].publish(plain, topic, payload, version=5, qos=1)
    count = 1 if option == "after 2" else 3
    command = ["mosquitto_sub", "-V", "5", "-h", plain.host, "-p", str(plain.port)]
    command += ["-q", "1", "-t", topic, "-C", str(count), "-W", str(int(DEADLINE_S))]
    command += ["-D", "subscribe", "user-property", *option.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2", "3"][3 - count :]


class PahoWorker:
    """A paho client that acknowledges when it is told to."""

    def __init__(
        self, port: int, client_id: str, topic_filter: str, *, expiry_s: int = 0, **options: str
    ) -> None:
        self.messages: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        connect = PahoProperties(PacketTypes.CONNECT)
        connect.SessionExpiryInterval = expiry_s
        self.client.connect("127.0.0.1", port, clean_start=not expiry_s, properties=connect)
        if topic_filter:
            subscribe: Any = PahoProperties(PacketTypes.SUBSCRIBE)
            if options:
                subscribe.UserProperty = list(options.items())
            self.client.subscribe(topic_filter, qos=1, properties=subscribe)
        self.client.loop_start()

    def take(self) -> paho.MQTTMessage:
        """The next message; it is not acknowledged."""
        return self.messages.get(timeout=DEADLINE_S)

    def close(self) -> None:
        """Leave with DISCONNECT; what was acknowledged before has arrived by then."""
        self.client.disconnect()
        self.client.loop_stop()


def _send(port: int, topic: str, *payloads: str) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for payload in payloads:
        client.publish(topic, payload, qos=1).wait_for_publish(DEADLINE_S)
    client.disconnect()
    client.loop_stop()


def test_manual_acknowledgement_over_a_restart(tmp_path: Path) -> None:
    """What a worker did not acknowledge comes again after a restart, the rest does not."""
    data = ("--data", str(tmp_path / "data"))
    with start_daemon(*data) as daemon:
        port = daemon.ports["mqtt"]
        worker = PahoWorker(port, "worker", "$queue/jobs", expiry_s=600)
        _send(port, "$queue/jobs", "1", "2", "3")
        given = [worker.take() for _ in range(3)]
        assert [message.payload for message in given] == [b"1", b"2", b"3"]
        worker.client.ack(given[1].mid, 1)
        worker.close()
    with start_daemon(*data) as daemon:
        _send(daemon.ports["mqtt"], "$queue/jobs", "4")
        worker = PahoWorker(daemon.ports["mqtt"], "worker", "", expiry_s=600)
        assert [worker.take().payload for _ in range(3)] == [b"1", b"3", b"4"]
        worker.close()


def test_a_follower_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A durable session reads on behind what it has acknowledged, with the same SUBSCRIBE."""
    data = ("--data", str(tmp_path / "data"))
    start = {"from": "first"}
    with start_daemon(*data) as daemon:
        port = daemon.ports["mqtt"]
        _send(port, "$stream/log", "1", "2", "3")
        follower = PahoWorker(port, "follower", "$stream/log", expiry_s=600, **start)
        given = [follower.take() for _ in range(3)]
        for message in given[:2]:
            follower.client.ack(message.mid, 1)
        follower.close()
    with start_daemon(*data) as daemon:
        port = daemon.ports["mqtt"]
        _send(port, "$stream/log", "4")
        follower = PahoWorker(port, "follower", "$stream/log", expiry_s=600, **start)
        came = [follower.take() for _ in range(2)]
        assert [message.payload for message in came] == [b"3", b"4"]
        assert dict(came[0].properties.UserProperty)["x-sequence"] == "3"  # type: ignore[union-attr]  # MQTT 5
        follower.close()
