"""The node's own figures as retained messages under ``$SYS/broker``, named as Mosquitto names them.

Exporters and dashboards made for Mosquitto so work unchanged. Beside them stand figures of queues
and streams, all of them together and, of the first ones, each. A topic is published when its value
has changed since the last time.
"""

import resource
from typing import TYPE_CHECKING

from ganglion.broker.core.timers import Timer

if TYPE_CHECKING:
    from ganglion.broker.core.node import Node

__all__ = ["SysTopics"]

_ROOT = "$SYS/broker/"
_SHOWN_MAX = 1000  # queues, and streams, that have topics of their own: they are retained messages
_LOAD_MINUTES = (1, 5, 15)
_LOADS = (
    # (topic, the counter whose growth per minute it averages)
    ("messages/received", "packets_received"),
    ("messages/sent", "packets_sent"),
    ("bytes/received", "bytes_received"),
    ("bytes/sent", "bytes_sent"),
    ("publish/received", "publish_received"),
    ("publish/sent", "publish_sent"),
    ("sockets", "sockets_opened"),
    ("connections", "connections_opened"),
    ("requests", "requests_received"),
)


class SysTopics:
    """Publishes ``$SYS`` topics every `interval_s` seconds; never when that is 0."""

    def __init__(self, node: "Node", version: str, interval_s: float) -> None:
        self._node = node
        self._interval_s = interval_s
        self._started = node.timers.now
        self._last: dict[str, str] = {}
        self._sources: set[str] = set()
        self._counters = dict.fromkeys((name for _, name in _LOADS), 0)
        self._loads: dict[tuple[str, int], float] = {}
        self._published_at = self._started
        self._timer: Timer | None = None
        if interval_s > 0:
            self._publish("version", f"ganglion version {version}")
            self._tick(self._started)

    def stop(self) -> None:
        """Publish no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, now: float) -> None:
        self._timer = self._node.timers.at(now + self._interval_s, self._tick)
        self._publish("uptime", f"{int(now - self._started)} seconds")
        for topic, value in self._gauges().items():
            self._publish(topic, str(value))
        self._publish_sources()
        self._publish_loads(now)

    def _gauges(self) -> dict[str, int]:
        node = self._node
        counted = node.statistics
        total = len(node.sessions)
        shelf = node.journal.shelf
        stored = counted.queued_messages + shelf.count() + len(node.retained)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "clients/total": total,
            "clients/connected": node.connected,
            "clients/active": node.connected,
            "clients/disconnected": total - node.connected,
            "clients/inactive": total - node.connected,
            "clients/maximum": counted.clients_maximum,
            "clients/expired": counted.clients_expired,
            "messages/received": counted.packets_received,
            "messages/sent": counted.packets_sent,
            "messages/stored": stored,
            "store/messages/count": stored,
            "store/messages/bytes": (
                counted.queued_bytes + shelf.size_bytes() + node.retained.size_bytes
            ),
            "retained messages/count": len(node.retained),
            "subscriptions/count": node.router.subscription_count,
            "shared_subscriptions/count": node.router.shared_count,
            "publish/messages/received": counted.publish_received,
            "publish/messages/sent": counted.publish_sent,
            "publish/messages/dropped": sum(counted.dropped.values()),
            "requests/received": counted.requests_received,
            "requests/waiting": len(node.requests),
            "requests/services": node.requests.service_count,
            "requests/repeated": counted.requests_repeated,
            "replies/received": counted.replies_received,
            **{f"requests/{code}": count for code, count in counted.requests_ended.items()},
            "publish/bytes/received": counted.publish_bytes_received,
            "publish/bytes/sent": counted.publish_bytes_sent,
            "bytes/received": counted.bytes_received,
            "bytes/sent": counted.bytes_sent,
            "heap/maximum": usage.ru_maxrss * 1024,
        }

    def _publish_sources(self) -> None:
        node = self._node
        figures = {"queues/count": len(node.queues), "streams/count": len(node.streams)}
        for total in ("queues/messages", "queues/bytes", "streams/records", "streams/bytes"):
            figures[total] = 0
        for index, queue in enumerate(node.queues):
            figures["queues/messages"] += queue.count
            figures["queues/bytes"] += queue.size_bytes
            if index < _SHOWN_MAX:
                figures[f"queue/{queue.name}/messages"] = queue.count
                figures[f"queue/{queue.name}/consumers"] = len(queue.consumers)
        for index, stream in enumerate(node.streams):
            kept = stream.statistics()
            figures["streams/records"] += kept.records
            figures["streams/bytes"] += kept.bytes
            if index < _SHOWN_MAX:
                figures[f"stream/{stream.name}/records"] = kept.records
                figures[f"stream/{stream.name}/last"] = kept.last
        for topic in self._sources - figures.keys():  # of what was deleted
            del self._last[topic]
            node.publish_own(_ROOT + topic, b"", retain=True)
        self._sources = set(figures)
        for topic, value in figures.items():
            self._publish(topic, str(value))

    def _publish_loads(self, now: float) -> None:
        """Moving averages per minute over 1, 5 and 15 minutes, weighted exponentially."""
        elapsed_s = now - self._published_at
        self._published_at = now
        if elapsed_s <= 0:
            return
        for topic, name in _LOADS:
            value: int = getattr(self._node.statistics, name)
            per_minute = (value - self._counters[name]) * 60 / elapsed_s
            self._counters[name] = value
            for minutes in _LOAD_MINUTES:
                kept = 2.718281828459045 ** (-elapsed_s / (60 * minutes))
                old = self._loads.get((topic, minutes), 0.0)
                load = self._loads[topic, minutes] = per_minute + kept * (old - per_minute)
                self._publish(f"load/{topic}/{minutes}min", f"{load:.2f}")

    def _publish(self, topic: str, value: str) -> None:
        if self._last.get(topic) != value:
            self._last[topic] = value
            self._node.publish_own(_ROOT + topic, value.encode(), retain=True)
