"""`/metrics`: the node's figures in the text format of Prometheus.

The data path counts (`Statistics`, `Listener`, queues and streams); here it is only read. A scrape
is made family by family, each in a tick of its own, so that nobody waits longer for a scrape than
for a message. Scrapes that come while one is made, or shortly after, get the same text.
"""

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import accumulate
from pathlib import Path
from typing import Final, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ganglion.broker.core.node import Node
from ganglion.broker.core.statistics import Histogram
from ganglion.broker.net.reactor import Reactor
from ganglion.broker.store import Store
from ganglion.protocols.http.messages import Response
from ganglion.protocols.http.routes import Exchange
from ganglion.protocols.http.server import HttpServer

__all__ = ["Metrics", "Sources"]

_PREFIX: Final = "ganglion_"
_AGAIN_S: Final = 1.0
"""For so long a text is given again: who scrapes without end costs no more than once a second."""
_NAMED_MAX: Final = 100
"""Queues, and streams, with figures of their own: the fullest. Each is several lines a scrape."""
_AT_ONCE: Final = 10  # queues or streams that are looked at in one tick: the store may be read
_SESSIONS_AT_ONCE: Final = 5000
_NEXT_STEP_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures are."""

    node: Node
    reactor: Reactor
    store: Store
    http: HttpServer
    version: str
    wall_clock_offset_s: float


class _OneFamily:
    """What `generate_latest` takes for a registry."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class Metrics:
    """Answers scrapes."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._started_s = sources.node.timers.now + sources.wall_clock_offset_s
        self._text = b""
        self._text_until = 0.0
        self._waiting: list[Exchange] = []

    def answer(self, exchange: Exchange) -> None:
        """Answer now, or when the text is made."""
        if self._sources.node.timers.now < self._text_until:
            self._respond(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._go_on(self._families(), [])

    def _respond(self, exchange: Exchange) -> None:
        exchange.respond(Response(200, self._text, CONTENT_TYPE_LATEST.encode()))

    def _go_on(self, families: Iterator[Metric | None], parts: list[bytes]) -> None:
        """Make one more family, or answer when there are no more."""
        timers = self._sources.node.timers
        try:
            family = next(families, self)
        except Exception:
            waiting, self._waiting = self._waiting, []
            for exchange in waiting:
                exchange.respond(Response(500, b"the figures could not be read\n"))
            raise
        if family is not self:
            if isinstance(family, Metric):
                parts.append(generate_latest(cast("CollectorRegistry", _OneFamily(family))))
            timers.after(_NEXT_STEP_S, lambda _: self._go_on(families, parts))
            return
        self._text = b"".join(parts)
        self._text_until = timers.now + _AGAIN_S
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            self._respond(exchange)

    # -- the families; None gives others a turn ---------------------------------------------------

    def _families(self) -> Iterator[Metric | None]:
        yield from self._process()
        yield from self._connections()
        yield from self._messages()
        yield from self._sessions()
        yield from self._queues()
        yield from self._streams()
        yield from self._storage()
        yield from self._times()

    def _process(self) -> Iterator[Metric]:
        about = {"version": self._sources.version, "node": self._sources.node.name}
        yield InfoMetricFamily(f"{_PREFIX}build", "What runs here.", value=about)
        yield _gauge("start_time_seconds", "When the node was started.", self._started_s)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        yield _counter("cpu_seconds", "Processor time of the process.", cpu_s)
        yield _gauge("resident_memory_bytes", "Memory of the process.", _resident_bytes())

    def _connections(self) -> Iterator[Metric]:
        listeners = self._sources.reactor.listeners
        by_name: dict[str, list[int]] = {}
        for listener in listeners:
            figures = by_name.setdefault(listener.name, [0, 0, 0, 0])
            figures[0] += listener.connections
            figures[1] += listener.connections_opened
            figures[2] += listener.bytes_received
            figures[3] += listener.bytes_sent
        told = [
            ("connections", "Open connections, by listener."),
            ("connections_opened", "Connections accepted since the start."),
            ("received_bytes", "Bytes taken from connections, TLS removed."),
            ("sent_bytes", "Bytes given to connections, before TLS."),
        ]
        for index, (name, text) in enumerate(told):
            values = {each: figures[index] for each, figures in by_name.items()}
            make = _gauges if index == 0 else _counters
            yield make(name, text, "listener", values)
        http = self._sources.http
        yield _gauges(
            "websockets", "Open WebSockets, by subprotocol.", "subprotocol", http.websockets.open
        )
        responses = {str(status): count for status, count in http.responses.items()}
        yield _counters("http_responses", "HTTP responses, by status.", "status", responses)
        refusals = self._sources.node.refusals.counts
        yield _counters("refusals", "What clients were refused, by action.", "action", refusals)

    def _messages(self) -> Iterator[Metric]:
        counted = self._sources.node.statistics
        for name, text, value in (
            ("packets_received", "Packets of clients, of every kind.", counted.packets_received),
            ("packets_sent", "Packets to clients, of every kind.", counted.packets_sent),
            ("requests_received", "Requests for a reply.", counted.requests_received),
            ("replies_received", "Replies that were waited for.", counted.replies_received),
        ):
            yield _counter(name, text, value)
        for attribute, name, text in (
            ("received", "messages_received", "Messages that clients published."),
            ("sent", "messages_sent", "Messages given to clients."),
            ("received_bytes", "messages_received_bytes", "Bytes of the packets of the former."),
            ("sent_bytes", "messages_sent_bytes", "Bytes of the packets of the latter."),
        ):
            values = {key: getattr(each, attribute) for key, each in counted.traffic.items()}
            yield _counters(name, text, "protocol", values)
        ended = {str(outcome): count for outcome, count in counted.requests_ended.items()}
        yield _counters("requests_ended", "How requests ended.", "outcome", ended)
        yield _counters(
            "dropped", "What did not reach a receiver, by reason.", "reason", counted.dropped
        )

    def _sessions(self) -> Iterator[Metric | None]:
        node = self._sources.node
        connected = node.connected
        states = {"connected": connected, "away": len(node.sessions) - connected}
        yield _gauges("sessions", "Sessions of clients.", "state", states)
        yield _counter(
            "sessions_opened", "Clients that connected.", node.statistics.connections_opened
        )
        yield _gauge("subscriptions", "Subscriptions.", node.router.subscription_count)
        yield _gauge("retained_messages", "Retained messages.", len(node.retained))
        yield _gauge("retained_bytes", "What they count.", node.retained.size_bytes)
        shelf = node.journal.shelf
        waiting = {"memory": node.statistics.queued_messages, "store": shelf.count()}
        text = "Messages that wait, in sessions (memory, store) and queues (store)."
        yield _gauges("waiting_messages", text, "place", waiting)
        sizes = {"memory": node.statistics.queued_bytes, "store": shelf.size_bytes()}
        yield _gauges("waiting_bytes", "Their bytes.", "place", sizes)
        sessions = list(node.sessions.values())
        in_flight = 0
        for start in range(0, len(sessions), _SESSIONS_AT_ONCE):
            part = sessions[start : start + _SESSIONS_AT_ONCE]
            in_flight += sum(len(session.inflight) for session in part)
            yield None
        yield _gauge("in_flight_messages", "Sent to clients, not acknowledged.", in_flight)

    def _queues(self) -> Iterator[Metric | None]:
        queues = self._sources.node.queues
        yield _gauge("queues", "Queues.", len(queues))
        found: list[tuple[str, tuple[float, ...]]] = []
        for number, queue in enumerate(nlargest(_NAMED_MAX, queues, key=lambda each: each.count)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                yield None
            now = queue.statistics()
            found.append(
                (
                    queue.name,
                    (
                        now.messages,
                        now.bytes,
                        now.leased,
                        now.delayed,
                        now.consumers,
                        now.oldest_s or 0.0,
                        now.published,
                        now.acknowledged,
                        now.buried,
                        now.refused,
                        now.delivered_to_canaries,
                    ),
                )
            )
        for index, (name, text) in enumerate(
            (
                ("queue_messages", "Messages in a queue: ready, in flight and delayed."),
                ("queue_bytes", "Their bytes."),
                ("queue_in_flight_messages", "Messages with consumers, not settled."),
                ("queue_delayed_messages", "Messages that are not due yet."),
                ("queue_consumers", "Consumers of a queue."),
                ("queue_oldest_seconds", "How long the oldest message has been there."),
                ("queue_published", "Messages that came."),
                ("queue_acknowledged", "Messages that consumers acknowledged."),
                ("queue_dead_lettered", "Messages that were given up."),
                ("queue_refused", "Messages for which there was no room."),
                ("queue_delivered_to_canaries", "Messages that were given to canaries."),
            )
        ):
            values = {queue: figures[index] for queue, figures in found}
            make = _gauges if index <= _QUEUE_GAUGES else _counters
            yield make(name, text, "queue", values)

    def _streams(self) -> Iterator[Metric | None]:
        streams = self._sources.node.streams
        yield _gauge("streams", "Streams.", len(streams))
        records: dict[str, int] = {}
        sizes: dict[str, int] = {}
        last: dict[str, int] = {}
        for number, stream in enumerate(nlargest(_NAMED_MAX, streams, key=lambda each: each.count)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                yield None
            now = stream.statistics()
            records[stream.name] = now.records
            sizes[stream.name] = now.bytes
            last[stream.name] = now.last
        yield _gauges("stream_records", "Records that a stream keeps.", "stream", records)
        yield _gauges("stream_bytes", "What they take up.", "stream", sizes)
        yield _counters("stream_appended_records", "The last sequence.", "stream", last)

    def _storage(self) -> Iterator[Metric]:
        store = self._sources.store.statistics()
        yield _gauge("store_bytes", "What the store takes up.", store.size_bytes)
        yield _gauge("store_full", "1: there is no room on the disk.", int(store.is_full))
        yield _counter("store_commits", "The number of the last commit.", store.commit_number)
        yield _counter("store_damaged_records", "Damage met since the start.", store.damaged)
        waiting = self._sources.node.journal.commits.waiting_bytes
        yield _gauge("uncommitted_bytes", "Bytes of messages on their way to the disk.", waiting)

    def _times(self) -> Iterator[Metric]:
        counted = self._sources.node.statistics
        ticks = "Ticks of the reactor that were measured (one of 16)."
        yield _histogram("tick_seconds", ticks, {(): counted.tick_s})
        commits = "From when the store has a commit until it is durable."
        yield _histogram("commit_seconds", commits, {(): counted.commit_s})
        delivery = (
            "From a message's coming to its going out. Transient: measured ticks that delivered, "
            "as an upper bound for each. Durable: commits, with the wait for the one before."
        )
        kinds: dict[tuple[str, ...], Histogram] = {
            ("transient",): counted.delivery_s,
            ("durable",): counted.durable_delivery_s,
        }
        yield _histogram("delivery_seconds", delivery, kinds, ("path",))


_QUEUE_GAUGES: Final = 5  # the index of the last figure of a queue that is no counter


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(
    name: str,
    text: str,
    values: Mapping[tuple[str, ...], Histogram],
    labels: Sequence[str] = (),
) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=labels)
    for key, histogram in values.items():
        bounds = [*(str(float(f"{bound:g}")) for bound in histogram.bounds), "+Inf"]
        cells = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric(key, cells, histogram.total)
    return family


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_bytes().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
