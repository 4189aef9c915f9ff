"""What the services tell each other: the order, and what has happened to it.

Each event is a topic. Nobody is told what to do: who has to do with an event has a queue that is
bound to it. Everything that is said of one order has its id as the key, so that it keeps its order.
"""

from typing import Final

from msgspec import Struct

__all__ = ["DECLINED", "PAID", "PLACED", "RELEASED", "RESERVED", "SHIPPED", "SOLD_OUT", "Order"]


class Order(Struct, frozen=True):
    """What a customer wants."""

    id: str
    item: str
    card: str


PLACED: Final = "events/placed"
RESERVED: Final = "events/reserved"
SOLD_OUT: Final = "events/sold-out"
PAID: Final = "events/paid"
DECLINED: Final = "events/declined"
RELEASED: Final = "events/released"
SHIPPED: Final = "events/shipped"
