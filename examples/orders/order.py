"""The order service: takes orders of customers, and knows how each of them ended."""

import uuid

from msgspec import Struct

import ganglion
from examples.orders.events import PLACED, RELEASED, SHIPPED, SOLD_OUT, Order

__all__ = ["OrderService", "Wish"]


class Wish(Struct):
    """What a customer asks for."""

    item: str
    card: str = "good"


class OrderService:
    """Answers requests, and begins the trace that all that follows belongs to."""

    def __init__(self, mesh: ganglion.Mesh) -> None:
        self._mesh = mesh
        self.ended: dict[str, str] = {}

    async def join(self, worker: ganglion.Worker) -> None:
        """Let this worker do what there is to do."""
        queue = self._mesh.queue("order")
        await queue.declare(bindings=[SHIPPED, SOLD_OUT, RELEASED], ordered_by_key=True)
        worker.request("shop/order", group="order")(self.take)
        worker.queue("order")(self.on_end)

    async def take(self, wish: Wish) -> dict[str, str]:
        """Take an order. It is on disk, in the queue of the stock, when the customer is told."""
        order = Order(uuid.uuid4().hex[:8], wish.item, wish.card)
        trace = ganglion.TraceContext.new(correlation_id=order.id)
        with ganglion.continuing(trace.headers()):
            await self._mesh.publish(PLACED, order, key=order.id)
        return {"order": order.id}

    async def on_end(self, order: Order, job: ganglion.Job) -> None:
        """It has ended, well or not. The same again changes nothing."""
        self.ended[order.id] = job.topic
