"""The shipping service: sends what is paid."""

import ganglion
from examples.orders.events import PAID, SHIPPED, Order

__all__ = ["ShippingService"]


class ShippingService:
    """Sends one parcel for each order."""

    def __init__(self, mesh: ganglion.Mesh) -> None:
        self._mesh = mesh
        self.parcels: set[str] = set()

    async def join(self, worker: ganglion.Worker) -> None:
        """Let this worker do what there is to do."""
        queue = self._mesh.queue("shipping")
        await queue.declare(bindings=[PAID], ordered_by_key=True)
        worker.queue("shipping")(self.on_paid)

    async def on_paid(self, order: Order) -> None:
        """Send it. A set does not mind the same twice."""
        self.parcels.add(order.id)
        await self._mesh.publish(SHIPPED, order, key=order.id)
