"""An order flow of five small services without a conductor: each hears events, acts, and tells.

    python -m examples.orders                    plays a few orders on a node of its own
    python -m examples.orders URL                all services, on that node
    python -m examples.orders URL stock payment  only these, in a process of their own

    placed ─▶ stock ─▶ reserved ─▶ payment ─▶ paid ─▶ shipping ─▶ shipped
                └─▶ sold out          └─▶ declined ─▶ stock ─▶ released

- Each service has a queue of its own, bound to the events that it has to do with. A service that is
  down misses nothing, and a new one needs nobody's leave.
- There is no transaction over services. When the payment fails, the stock hears of it and puts back
  what it had set aside.
- A job comes at least once, so every handler bears the same event twice.
- The id of the order is the key of all that is said of it, and the correlation id of all messages.

With all services running, /js/order.html on the web listener of the node shows it live: try "a
margherita", "a lamp" and "a unicorn".
"""

import sys
from collections.abc import Mapping
from typing import Final, Protocol

import anyio

import ganglion
from examples.orders.events import PLACED, SHIPPED, Order
from examples.orders.notification import NotificationService, Status
from examples.orders.order import OrderService, Wish
from examples.orders.payment import PaymentService
from examples.orders.shipping import ShippingService
from examples.orders.stock import StockService


class Service(Protocol):
    """What all five have in common."""

    async def join(self, worker: ganglion.Worker) -> None:
        """Declare its queue, and give the worker its handlers."""
        ...


SERVICES: Final = ("order", "stock", "payment", "shipping", "notification")


def services(mesh: ganglion.Mesh) -> Mapping[str, Service]:
    """One of each."""
    return {
        "order": OrderService(mesh),
        "stock": StockService(mesh),
        "payment": PaymentService(mesh),
        "shipping": ShippingService(mesh),
        "notification": NotificationService(mesh),
    }


async def serve(url: str, *names: str) -> None:
    """Run services until SIGTERM or Ctrl-C."""
    async with ganglion.connect(url, wait_for_node_s=60) as mesh:
        worker = mesh.worker()
        for name, service in services(mesh).items():
            if name in names:
                await service.join(worker)
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            print(f"running: {', '.join(names)}", flush=True)


async def buy(mesh: ganglion.Mesh, item: str, card: str = "good") -> str:
    """Order, print how it goes until it has ended; the id."""
    async with mesh.subscribe("orders/+/status", retained=False) as statuses:
        reply = await mesh.request("shop/order", Wish(item, card))
        order: str = reply.decode()["order"]
        steps: list[str] = []
        async for message in statuses:
            if message.topic == f"orders/{order}/status":
                assert message.headers["correlation-id"] == order
                status = message.decode(Status)
                steps.append(status.status)
                if status.step == status.of:
                    break
    print(f"{item}, {card} card: {', '.join(steps)}")
    return order


async def play(url: str) -> None:
    """Orders that go well and that do not, and an event that comes twice."""
    async with ganglion.connect(url) as mesh, anyio.create_task_group() as tasks:
        worker = mesh.worker()
        stock, payment, shipping = StockService(mesh), PaymentService(mesh), ShippingService(mesh)
        for service in (OrderService(mesh), stock, payment, shipping, NotificationService(mesh)):
            await service.join(worker)
        await tasks.start(worker.run)

        order = await buy(mesh, "a lamp")
        await buy(mesh, "a lamp", "stolen")
        await buy(mesh, "a unicorn")
        async with mesh.subscribe(SHIPPED) as shipped:
            await mesh.publish(PLACED, Order(order, "a lamp", "good"), key=order)
            async for message in shipped:
                print("told twice, and heard to the end again:", message.topic)
                break
        print(f"the bank was called {payment.bank.calls} times", end=", ")
        print(f"charged {len(payment.bank.charged)}, {len(shipping.parcels)} parcel", end=", ")
        print(f"{stock.left['a lamp']} lamps left")
        worker.stop()


def main() -> None:
    """Serve at the node that is named, or play at one of our own."""
    if len(sys.argv) > 1:
        anyio.run(serve, sys.argv[1], *(sys.argv[2:] or SERVICES))
    else:
        import ganglion.testing  # noqa: PLC0415 - a service needs nothing of a node

        with ganglion.testing.broker_thread() as broker:
            anyio.run(play, broker.native_url)


if __name__ == "__main__":
    main()
