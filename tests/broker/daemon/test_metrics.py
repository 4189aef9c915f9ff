"""`/metrics`: figures that are true, in a format that Prometheus reads, at a bounded price."""

import time
from collections.abc import Callable
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.daemon.app import Broker
from ganglion.broker.daemon.metrics import Metrics, Sources
from ganglion.broker.store import StoreStatistics
from ganglion.broker.store.memory import MemoryStore
from ganglion.protocols.http.messages import Request, Response
from ganglion.protocols.mqtt.connection import MqttConnection
from ganglion.protocols.native.connection import NativeConnection
from ganglion.testing import broker_thread
from tests.protocols.mqtt.fake_link import RecordingLog
from tests.support import RawClient, connect_packet, publish_packet, subscribe_packet

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Samples:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


class Scrape:
    """An exchange that keeps its response."""

    def __init__(self) -> None:
        self.request = Request("GET", "/metrics", "", (), b"", "127.0.0.1", False)
        self.response: Response | None = None

    def respond(self, response: Response) -> None:
        """Keep it."""
        assert self.response is None
        self.response = response

    def samples(self) -> Samples:
        """What came."""
        assert self.response is not None
        assert self.response.status == 200
        assert self.response.content_type.startswith(b"text/plain; version=")
        return read(self.response.body.decode())


class Node:
    """A broker that nobody reaches, its metrics, and its time."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.broker = Broker(
            log=RecordingLog(), name="tester", open_store=None if store is None else lambda _: store
        )
        node = self.broker.node
        sources = Sources(
            node, self.broker.reactor, self.broker._store, self.broker._web, "1.2", 1000.0
        )
        self.metrics = Metrics(sources)

    def pass_time(self, seconds: float) -> int:
        """Let time pass; how many timers came due on the way."""
        timers = self.broker.node.timers
        end, count = timers.now + seconds, 0
        while (deadline := timers.next_deadline()) is not None and deadline <= end:
            timers.run(deadline)
            count += 1
        timers.run(end)
        return count

    def scrape(self) -> Samples:
        """A new text."""
        self.pass_time(2)
        scrape = Scrape()
        self.metrics.answer(scrape)
        self.pass_time(1)
        return scrape.samples()


@pytest.fixture
def node() -> Node:
    """A new one."""
    return Node()


def test_every_figure_has_the_prefix_and_a_unit_at_its_end(node: Node) -> None:
    """Counters end in _total, sizes in bytes, times in seconds."""
    names = {name for name, _ in node.scrape()}
    assert len(names) > 30
    assert {name for name in names if not name.startswith("ganglion_")} == set()
    for name in names:
        assert not name.endswith(("_ms", "_s", "_kb", "_mb")), name


def test_figures_are_those_of_the_node(node: Node) -> None:
    """Counters, drops by reason, queues and the process itself."""
    counted = node.broker.node.statistics
    counted.traffic["mqtt"].received = 7
    counted.traffic["native-json"].sent = 9
    counted.traffic["native-json"].sent_bytes = 90
    counted.drop("slow", 3)
    node.broker.node.queues.declare(QueueDefinition(name='odd"name'))
    found = node.scrape()
    mqtt, native_json = (("protocol", "mqtt"),), (("protocol", "native-json"),)
    assert found["ganglion_messages_received_total", mqtt] == 7
    assert found["ganglion_messages_received_total", native_json] == 0
    assert found["ganglion_messages_sent_total", native_json] == 9
    assert found["ganglion_messages_sent_bytes_total", native_json] == 90
    assert found["ganglion_dropped_total", (("reason", "slow"),)] == 3
    assert found["ganglion_queues", ()] == 1
    assert found["ganglion_queue_messages", (("queue", 'odd"name'),)] == 0
    assert found["ganglion_build_info", (("node", "tester"), ("version", "1.2"))] == 1
    assert found["ganglion_resident_memory_bytes", ()] > 1_000_000
    assert found["ganglion_cpu_seconds_total", ()] > 0
    assert found["ganglion_store_full", ()] == 0


def test_what_comes_by_websocket_is_counted_apart(node: Node) -> None:
    """Each subprotocol has figures of its own, and they are not those of the listeners beside."""
    traffic = node.broker.node.statistics.traffic
    by_subprotocol: dict[str, object] = {}
    for subprotocols in node.broker._web.websockets.paths.values():
        for name, subprotocol in subprotocols.items():
            inner = subprotocol.make()
            assert isinstance(inner, MqttConnection | NativeConnection)
            by_subprotocol[name] = inner.traffic
    assert by_subprotocol == {
        "mqtt": traffic["mqtt-websocket"],
        "mqttv3.1": traffic["mqtt-websocket"],
        "ganglion.msgpack": traffic["native-websocket"],
        "ganglion.json": traffic["native-json"],
    }


def test_histograms_add_up(node: Node) -> None:
    """Cells are cumulative, the last is all, and the sum is that of the values."""
    for value in (0.000_02, 0.003, 0.003, 99.0):
        node.broker.node.statistics.durable_delivery_s.observe(value)
    found = node.scrape()
    name, path = "ganglion_delivery_seconds", ("path", "durable")
    assert found[f"{name}_bucket", (("le", "2.5e-05"), path)] == 1
    assert found[f"{name}_bucket", (("le", "0.0025"), path)] == 1
    assert found[f"{name}_bucket", (("le", "0.005"), path)] == 3
    assert found[f"{name}_bucket", (("le", "5.0"), path)] == 3
    assert found[f"{name}_bucket", (("le", "+Inf"), path)] == 4
    assert found[f"{name}_count", (path,)] == 4
    assert found[f"{name}_sum", (path,)] == pytest.approx(99.006_02)


def test_a_scrape_gives_others_their_turn(node: Node) -> None:
    """It is made in many ticks, and not in one."""
    scrape = Scrape()
    node.metrics.answer(scrape)
    assert scrape.response is None
    assert node.pass_time(1) > 40
    assert scrape.response is not None


def test_scrapes_share_a_text(node: Node) -> None:
    """Those that come at once, or within a second, cost nothing more."""
    scrapes = [Scrape() for _ in range(50)]
    for each in scrapes:
        node.metrics.answer(each)
    assert node.pass_time(0.5) < 100
    node.broker.node.statistics.traffic["native"].received = 7
    late = Scrape()
    node.metrics.answer(late)
    responses = {each.response.body for each in (*scrapes, late) if each.response is not None}
    assert len(responses) == 1
    assert late.response is not None
    assert node.scrape()["ganglion_messages_received_total", (("protocol", "native"),)] == 7


def test_many_queues_are_few_lines(node: Node) -> None:
    """Only the fullest have figures of their own; all are counted."""
    for number in range(150):
        node.broker.node.queues.declare(QueueDefinition(name=f"q{number}"))
    found = node.scrape()
    named = [labels for name, labels in found if name == "ganglion_queue_messages"]
    assert len(named) == 100
    assert found["ganglion_queues", ()] == 150


class BrokenStore(MemoryStore):
    """A store that at some time cannot say any more how it is."""

    is_broken = False

    def statistics(self) -> StoreStatistics:
        """Fail, once it is broken."""
        if self.is_broken:
            raise OSError("unreadable")
        return super().statistics()


def test_a_scrape_that_fails_is_answered() -> None:
    """The scraper learns of it, and the next one is made anew."""
    store = BrokenStore()
    node = Node(store)
    store.is_broken = True
    for _ in range(2):
        scrape = Scrape()
        node.metrics.answer(scrape)
        with pytest.raises(OSError, match="unreadable"):
            node.pass_time(1)
        assert scrape.response is not None
        assert scrape.response.status == 500


def scrape_over(get: Callable[[str], bytes]) -> Samples:
    """The figures of a running broker."""
    return read(get("/metrics").decode())


@pytest.mark.slow
def test_a_running_broker_measures() -> None:
    """Connections and bytes by listener, messages, ticks and deliveries of real traffic."""
    with broker_thread(web=True) as running:
        web = HTTPConnection("127.0.0.1", running.web_port, timeout=10)

        def get(path: str) -> bytes:
            web.request("GET", path)
            return web.getresponse().read()

        with RawClient(running.port) as client:
            client.send(connect_packet("c"))
            client.read_packet()
            client.send(subscribe_packet("t"))
            client.read_packet()
            for number in range(64):  # a tick each: they wait for one another
                client.send(publish_packet("t", b"%d" % number))
                assert client.read_packet().body.endswith(b"%d" % number)
            found = scrape_over(get)
        mqtt = (("listener", "mqtt"),)
        assert found["ganglion_connections", mqtt] == 1
        assert found["ganglion_connections_opened_total", mqtt] == 1
        assert found["ganglion_received_bytes_total", mqtt] > 64 * 6
        assert found["ganglion_sent_bytes_total", mqtt] > 64 * 6
        assert found["ganglion_connections", (("listener", "web"),)] == 1
        by_mqtt = (("protocol", "mqtt"),)
        assert found["ganglion_messages_received_total", by_mqtt] == 64
        assert found["ganglion_messages_sent_total", by_mqtt] == 64
        assert found["ganglion_tick_seconds_count", ()] >= 4
        transient = (("path", "transient"),)
        assert 2 <= found["ganglion_delivery_seconds_count", transient] <= 64
        assert 0 < found["ganglion_delivery_seconds_sum", transient] < 10
        give_up_at = time.monotonic() + 10
        while scrape_over(get)["ganglion_connections", mqtt]:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        web.close()
