"""The notification service: tells customers how their order stands, as it happens.

The status is the last value of a topic, so that a browser that comes late sees it at once.
"""

from typing import Final

from msgspec import Struct

import ganglion
from examples.orders.events import (
    DECLINED,
    PAID,
    PLACED,
    RELEASED,
    RESERVED,
    SHIPPED,
    SOLD_OUT,
    Order,
)

__all__ = ["NotificationService", "Status"]

_STEPS: Final = {
    PLACED: ("accepted", 1),
    RESERVED: ("in stock", 2),
    PAID: ("paid", 3),
    SHIPPED: ("on its way", 4),
    DECLINED: ("payment declined", 3),
    RELEASED: ("cancelled", 4),
    SOLD_OUT: ("sold out", 4),
}


class Status(Struct):
    """How an order stands; with the last step it has ended."""

    status: str
    step: int
    of: int = 4


class NotificationService:
    """Hears everything, and does nothing but tell."""

    def __init__(self, mesh: ganglion.Mesh) -> None:
        self._mesh = mesh
        self._told: set[tuple[str, str]] = set()

    async def join(self, worker: ganglion.Worker) -> None:
        """Let this worker do what there is to do."""
        await self._mesh.queue("notification").declare(bindings=["events/+"], ordered_by_key=True)
        worker.queue("notification")(self.on_event)

    async def on_event(self, order: Order, job: ganglion.Job) -> None:
        """Tell it once: a customer who reads "paid" twice will ask."""
        if (order.id, job.topic) not in self._told:
            name, step = _STEPS[job.topic]
            await self._mesh.retained.put(f"orders/{order.id}/status", Status(name, step))
            self._told.add((order.id, job.topic))
