"""What tests of queues over MQTT do: declare one, subscribe to it, look at it, take from it."""

from typing import Any

import pytest

from ganglion.broker.core.queue import QueueStatistics
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.protocols.mqtt.packets import (
    V5,
    V311,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from ganglion.protocols.mqtt.properties import Properties
from tests.protocols.mqtt.fake_link import FakeClient, Link

__all__ = ["JOBS", "VERSIONS", "declare", "statistics", "subscribe", "taken", "user"]

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
JOBS = "$queue/jobs"


def user(**properties: str) -> Properties:
    """User properties: ``x_key`` is ``x-key``."""
    return Properties(
        user_properties=tuple((name.replace("_", "-"), each) for name, each in properties.items())
    )


def declare(link: Link, name: str = "jobs", **options: Any) -> None:
    """Make a queue with these options, durably."""
    link.node.queues.declare(QueueDefinition(name=name, **options))
    link.tick()


def statistics(link: Link, name: str = "jobs") -> QueueStatistics:
    """How the queue stands."""
    return link.node.queues.get(name).statistics()


def taken(client: FakeClient) -> list[tuple[int, bytes]]:
    """Packet identifier and payload of what has come; nothing is acknowledged."""
    packets = client.take()
    assert all(isinstance(each, Publish) for each in packets), packets
    return [(each.packet_id, each.payload) for each in packets if isinstance(each, Publish)]


def subscribe(
    client: FakeClient, topic_filter: str, properties: Properties | None = None
) -> Suback:
    """Subscribe at QoS 1 and take the answer."""
    client.send(Subscribe(client.next_id(), [SubscriptionRequest(topic_filter, 1)], properties))
    return client.expect(Suback)
