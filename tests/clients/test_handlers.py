"""Handlers: what they get of an item by their annotations, and when something is tried again."""

import enum
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import anyio
import msgspec
import pytest

from ganglion.clients.errors import BadOption, NotDecodable
from ganglion.clients.handlers import Handler, Retry
from ganglion.clients.messages import Message, Record
from ganglion.clients.queues import Job
from tests.clients.backends import under_each


@dataclass
class Order:
    """A payload."""

    number: int


class Kind(enum.Enum):
    """What an order may be."""

    NEW = "new"


ITEM = Record("orders/created", b'{"number": 7}', {"content_type": "application/json"}, sequence=3)


def arguments(function: Any, item: Message = ITEM) -> list[Any]:
    """What a handler is called with."""
    return Handler(function, type(item), {}).arguments(item)


def test_a_parameter_gets_the_payload_as_its_type_says() -> None:
    """Dataclasses, structs, bytes and text; without a type the value that was sent."""

    class Struct(msgspec.Struct):
        number: int

    def dataclass_(order: Order) -> None: ...
    def struct(order: Struct) -> None: ...
    def raw(payload: bytes) -> None: ...
    def text(payload: str) -> None: ...
    def untyped(payload) -> None: ...  # type: ignore[no-untyped-def]  # what is promised

    assert arguments(dataclass_) == [Order(7)]
    assert arguments(raw) == [b'{"number": 7}']
    assert arguments(text) == ['{"number": 7}']
    assert arguments(untyped) == [{"number": 7}]
    assert arguments(struct) == [Struct(7)]


def _named(annotation: str) -> Any:
    def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = annotation
    return handler


def test_a_parameter_for_a_message_gets_the_item() -> None:
    """By its own kind or the general one, before or behind the payload, or alone."""

    def both(record: Record, order: Order) -> None: ...
    def behind(order: Order, message: Message, limit: int = 3) -> None: ...
    def alone(record: Record) -> None: ...
    def nothing() -> None: ...

    assert arguments(both) == [ITEM, Order(7)]
    assert arguments(behind) == [Order(7), ITEM]
    assert arguments(alone) == [ITEM]
    assert arguments(nothing) == []


def test_methods_and_other_callables_are_handlers() -> None:
    """What they are bound to is no parameter."""

    class Service:
        def handle(self, order: Order) -> None: ...
        def __call__(self, order: Order) -> None: ...

    assert arguments(Service().handle) == [Order(7)]
    assert arguments(Service()) == [Order(7)]


def test_what_cannot_be_called_is_named() -> None:
    """When it is declared, not when the first item comes."""

    def other_kind(job: Job) -> None: ...
    def two_payloads(order: Order, more: Order) -> None: ...
    def keyword(*, order: Order) -> None: ...

    with pytest.raises(BadOption, match="job is to be a Job, and what comes is a Record"):
        arguments(other_kind)
    with pytest.raises(BadOption, match="more would be a second payload"):
        arguments(two_payloads)
    with pytest.raises(BadOption, match="nothing is there for the parameter order"):
        arguments(keyword)
    with pytest.raises(BadOption, match="cannot be read: name 'Nowhere'"):
        arguments(_named("Nowhere"))


def test_a_payload_that_is_not_what_is_wanted() -> None:
    """The error names the topic and where it differs."""

    def handler(kind: Kind) -> None: ...

    with pytest.raises(NotDecodable, match="orders/created as Kind"):
        arguments(handler)


@under_each
async def test_plain_functions_run_in_threads() -> None:
    """They may block, and wait for each other, without stopping the program."""
    meeting = Barrier(2)
    results: list[int] = []

    def handler(order: Order) -> int:
        meeting.wait(5)
        return order.number

    async def call() -> None:
        made = Handler(handler, Record, {})
        results.append(await made.call(made.arguments(ITEM), threads))

    threads = anyio.CapacityLimiter(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        tasks.start_soon(call)
    assert results == [7, 7]


def test_pauses_double_up_to_the_longest() -> None:
    """Each is spread over its upper half; a count that nobody bounds does no harm."""
    retry = Retry(backoff_s=1, backoff_max_s=10)
    for attempt, longest_s in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (100_000, 10)):
        for _ in range(20):
            assert longest_s / 2 <= retry.delay_s(attempt) <= longest_s


def test_what_is_tried_again() -> None:
    """Errors of the kinds that are named, until all tries are used up."""
    retry = Retry(attempts=3, on=(OSError,))
    assert retry.allows(2, ConnectionError())
    assert not retry.allows(3, ConnectionError())
    assert not retry.allows(1, ValueError())


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"backoff_s": -1}, {"backoff_max_s": float("nan")}]
)
def test_a_policy_that_cannot_be_is_named(options: dict[str, Any]) -> None:
    """The message says which field."""
    with pytest.raises(BadOption, match=next(iter(options))):
        Retry(**options)
