"""The API as programs use it: checked by mypy and pyright, and run by `test_usage`.

Nothing here looks inside. What a type checker has to find out by itself is asserted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_type

import msgspec

import ganglion
from ganglion import (
    JSON,
    MSGPACK,
    Codec,
    Job,
    Mesh,
    Message,
    NoResponders,
    Receipt,
    Record,
    Request,
    StateChange,
    TimedOut,
    TraceContext,
    WrongVersion,
)

__all__ = ["use"]


@dataclass
class Order:
    """A value as a dataclass."""

    id: str
    cents: int


class Paid(msgspec.Struct):
    """A value as a struct."""

    order: str
    cents: int


class Upper:
    """A codec of one's own."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        """Text in capitals."""
        return str(value).upper().encode(), "text/upper"

    def decode(self, payload: bytes, content_type: str | None, wanted: Any) -> Any:
        """Text in small letters."""
        return payload.decode().lower()


async def topics(mesh: Mesh) -> None:
    """Publishing and subscribing."""
    order = Order("7", 1250)
    async with mesh.subscribe("orders/+", buffer=256, overflow="drop_oldest") as messages:
        assert_type(messages.dropped, int)
        receipt = await mesh.publish(
            "orders/created",
            order,
            key=order.id,
            headers={"source": "shop"},
            expires_s=60,
            delay_s=5,
        )
        assert_type(receipt, Receipt)
        assert_type(receipt.subscribers, int | None)
        async for message in messages:
            assert_type(message, Message)
            assert_type(message.decode(Order), Order)
            assert message.decode(Order) == order
            assert_type(message.payload, bytes)
            assert_type(message.text, str)
            assert_type(message.key, str | None)
            assert_type(message.headers, Mapping[str, str])
            break
    await mesh.send("orders/seen", b"7", key="7")
    assert_type(await mesh.publish_batch("orders/created", [order, b"raw", "text"]), Receipt)
    await mesh.publish_batch(["orders/a", "orders/b"], [1, 2], timeout_s=5)
    async with mesh.publisher(in_flight=100) as publisher:
        for number in range(300):
            await publisher.publish("orders/created", Order(str(number), number))
        await publisher.flush()
    assert_type(publisher.confirmed, int)
    await mesh.flush(timeout_s=5)


async def requests(mesh: Mesh) -> None:
    """Asking and answering."""
    try:
        await mesh.request("pricing/quote", {"item": 5}, timeout_s=2)
    except NoResponders as error:
        assert_type(error.code, str)
    async with mesh.serve("pricing/quote", group="pricing", concurrency=8) as served:
        import anyio  # noqa: PLC0415 - trio and asyncio have task groups, too

        async def answer() -> None:
            async for request in served:
                assert_type(request, Request)
                async with request:
                    assert_type(await request.reply({"price": 12}), bool)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            reply = await mesh.request("pricing/quote", {"item": 5}, timeout_s=2, repeat=True)
            assert_type(reply, Message)
            assert reply.decode(dict[str, int]) == {"price": 12}
            answers = await mesh.gather("pricing/quote", b"", timeout_s=0.5, at_most=1)
            assert_type(answers, list[Message])
            assert [each.json() for each in answers] == [{"price": 12}]
            tasks.cancel_scope.cancel()


async def queues(mesh: Mesh) -> None:
    """Work that is done once."""
    queue = mesh.queue("billing")
    description = await queue.declare(
        bindings=["orders/#"], lease_s=30, max_deliveries=3, dead_letter="failed"
    )
    assert_type(description.definition, Mapping[str, Any])
    await queue.send(Order("8", 99), priority=0, message_id="order-8")
    await queue.send(b"not an order")
    async with queue.consume(prefetch=32) as jobs:
        async for job in jobs:
            assert_type(job, Job)
            if job.content_type is None:
                await job.reject("not an order", confirmed=True)
                break
            async with job:
                await job.extend(30)
                assert_type(job.decode(Order), Order)
                assert_type(job.attempts, int)
    assert_type(await queue.browse(count=1), list[ganglion.StoredMessage])
    assert_type(await queue.purge(), int)
    await queue.pause()
    await queue.resume()
    assert_type((await queue.describe()).paused, bool)
    assert_type(await mesh.queue("failed").redrive(10), int)
    assert_type(await mesh.queues(), list[Mapping[str, Any]])
    await queue.delete()


async def streams(mesh: Mesh) -> None:
    """Events that stay."""
    stream = mesh.stream("orders")
    await stream.declare(keyed=True, max_age_s=3600)
    position = await stream.append(Paid("7", 1250), key="order-7", expected=0)
    assert_type(position, int)
    try:
        await stream.append(Paid("7", 1), key="order-7", expected=0)
    except WrongVersion as error:
        assert_type(error.actual, int)
        position = error.actual
    appended = await stream.append_batch(
        [Paid("8", 1), Paid("9", 2)], keys=["order-8", None], expected={"order-8": 0}
    )
    assert_type(appended.first, int)
    async for event in stream.follow(after=position):
        assert_type(event, Record)
        assert_type(event.sequence, int)
        assert_type(event.time, datetime)
        assert event.time < datetime.now(UTC)
        assert event.decode(Paid) == Paid("8", 1)
        break
    assert_type(await stream.read(after=0, count=10, key="order-8"), list[Record])
    assert await stream.version("order-7") == position
    group = stream.group("mailer")
    await group.declare(after=0)
    async with group.follow(prefetch=2) as records:
        async with await anext(records) as record:
            assert record.sequence == position
        await (await anext(records)).ack(confirmed=True)
    await group.delete()
    assert (await stream.describe()).statistics["records"] == 3
    assert_type(await mesh.streams(), list[Mapping[str, Any]])
    await stream.delete()


async def last_values(mesh: Mesh) -> None:
    """What was published last."""
    await mesh.retained.put("shop/open", True)
    value = await mesh.retained.get("shop/open")
    assert_type(value, Message | None)
    assert value is not None
    assert value.decode(bool) is True
    assert_type(await mesh.retained.list("shop/#", count=10), list[Message])
    await mesh.retained.delete("shop/open")


async def the_connection(mesh: Mesh) -> None:
    """What is known of it, and what is carried along."""
    assert_type(mesh.state, StateChange)
    assert mesh.state.state == "open"
    assert_type(mesh.greeting, Mapping[str, Any])
    assert_type(await mesh.statistics(), Mapping[str, Any])
    trace = TraceContext.new(correlation_id="order-7")
    with ganglion.continuing(trace.headers()) as inside:
        assert_type(inside, TraceContext | None)
        assert ganglion.current_trace() == inside
        async with mesh.subscribe("traced") as messages:
            await mesh.publish("traced", b"")
            assert (await anext(messages)).headers["correlation-id"] == "order-7"


async def codecs(url: str) -> None:
    """Values as other bytes."""
    own: Codec = Upper()
    for codec, expected in ((JSON, b'"a"'), (MSGPACK, b"\xa1a"), (own, b"['A']")):
        async with (
            ganglion.connect(url, codec=codec) as mesh,
            mesh.subscribe("t", own=True, retained=False) as messages,
        ):
            await mesh.publish("t", ["a"])
            assert expected in (await anext(messages)).payload


async def secret() -> str:
    """A token that is asked for at each connection."""
    return "unused"


async def use(url: str) -> None:
    """All of it."""
    changes: list[StateChange] = []
    addresses: Sequence[str] = ("ganglion://127.0.0.1:1", url)
    async with ganglion.connect(
        *addresses, client="shop", wait_for_node_s=5, on_state=changes.append
    ) as mesh:
        states = mesh.states()
        for part in (topics, requests, queues, streams, last_values, the_connection):
            await part(mesh)
    async for change in states:
        assert_type(change, StateChange)
    assert [each.state for each in changes] == ["open", "closed"]
    await codecs(url)
    try:
        await mesh.publish("t", b"", timeout_s=1)
    except (TimedOut, ganglion.Closed) as error:
        assert_type(error, TimedOut | ganglion.Closed)
    ganglion.connect(url, token=secret)
