"""The stock service: sets things aside for orders, and puts them back when nobody pays."""

import ganglion
from examples.orders.events import DECLINED, PLACED, RELEASED, RESERVED, SOLD_OUT, Order

__all__ = ["StockService"]


class StockService:
    """What is there, and for whom it is. A real one has both in one database."""

    def __init__(self, mesh: ganglion.Mesh) -> None:
        self._mesh = mesh
        self.left = {"a lamp": 10, "a margherita": 100}
        self._outcomes: dict[str, str] = {}

    async def join(self, worker: ganglion.Worker) -> None:
        """Let this worker do what there is to do."""
        queue = self._mesh.queue("stock")
        await queue.declare(bindings=[PLACED, DECLINED], ordered_by_key=True)
        worker.queue("stock")(self.on_event)

    async def on_event(self, order: Order, job: ganglion.Job) -> None:
        """Set it aside; or put it back, which compensates that.

        The same event may come twice. Then nothing is done, and what came of it is told again: the
        first time may have ended between doing and telling.
        """
        outcome = self._outcomes.get(order.id)
        if job.topic == PLACED and outcome is None:
            outcome = RESERVED if self.left.get(order.item, 0) else SOLD_OUT
            if outcome == RESERVED:
                self.left[order.item] -= 1
        elif job.topic == DECLINED and outcome == RESERVED:
            outcome = RELEASED
            self.left[order.item] += 1
        assert outcome is not None
        self._outcomes[order.id] = outcome
        await self._mesh.publish(outcome, order, key=order.id)
