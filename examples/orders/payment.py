"""The payment service: charges cards, at a bank that is not always there."""

import ganglion
from examples.orders.events import DECLINED, PAID, RESERVED, Order

__all__ = ["Bank", "PaymentService"]


class Bank:
    """Somebody else's service. It does not answer the first call, as happens."""

    def __init__(self) -> None:
        self.calls = 0
        self.charged: list[str] = []

    async def charge(self, order: Order) -> bool:
        """Whether the card is good."""
        self.calls += 1
        if self.calls == 1:
            raise ConnectionError("the bank does not answer")
        if order.card == "stolen":
            return False
        self.charged.append(order.id)
        return True


class PaymentService:
    """Charges each order once, however often it is asked to."""

    def __init__(self, mesh: ganglion.Mesh) -> None:
        self._mesh = mesh
        self.bank = Bank()
        self._outcomes: dict[str, str] = {}

    async def join(self, worker: ganglion.Worker) -> None:
        """Let this worker do what there is to do; what the bank misses is tried again."""
        queue = self._mesh.queue("payment")
        await queue.declare(bindings=[RESERVED], ordered_by_key=True, dead_letter="payment-dead")
        retry = ganglion.Retry(attempts=10, backoff_s=0.1, on=(ConnectionError,))
        worker.queue("payment", retry=retry)(self.on_reserved)

    async def on_reserved(self, order: Order) -> None:
        """Charge the card, unless that was done; and tell what came of it."""
        if order.id not in self._outcomes:
            is_paid = await self.bank.charge(order)
            self._outcomes[order.id] = PAID if is_paid else DECLINED
        await self._mesh.publish(self._outcomes[order.id], order, key=order.id)
