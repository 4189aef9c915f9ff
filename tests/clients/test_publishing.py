"""Publishing: receipts, options, batches, publishers; and what a program cannot break by it."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from ganglion.clients.errors import (
    BadOption,
    ClientError,
    Closed,
    NotAuthorised,
    QueueFull,
    Refused,
    TimedOut,
)
from ganglion.clients.mesh import Mesh, connect
from ganglion.clients.messages import Receipt
from ganglion.testing import RunningBroker
from tests.clients.backends import eventually, stuck, under_each


@under_each
async def test_a_receipt_counts_the_targets(mesh: Mesh, other: Mesh) -> None:
    """Subscriptions, queues and streams that it was for; a group is one, and so are plain ones."""
    assert await mesh.publish("t", b"x") == Receipt(0, 0, 0)
    await mesh.queue("q").declare(bindings=["t"])
    await mesh.stream("s").declare(bindings=["t"])
    async with (
        mesh.subscribe("t"),
        mesh.subscribe("#"),
        mesh.subscribe("t", overflow="drop_oldest"),
        mesh.subscribe("+", overflow="drop_newest"),
        mesh.subscribe("t", group="g"),
        other.subscribe("t", group="g"),
        other.subscribe("+"),
    ):
        assert await mesh.publish("t", b"x") == Receipt(5, 1, 1)


@under_each
async def test_every_option_arrives(mesh: Mesh) -> None:
    """What is said of a message is said to its receiver, under the same names."""
    async with mesh.subscribe("t") as messages:
        await mesh.publish(
            "t",
            {"order": 7},
            key="k",
            headers={"a": "1", "b": "2"},
            expires_s=60,
            priority=3,
            message_id="m-1",
            reply_to="answers",
            correlation=b"\x00\x01",
        )
        message = await anext(messages)
    assert message.topic == "t"
    assert message.payload == b'{"order":7}'
    assert message.content_type == "application/json"
    assert message.key == "k"
    assert message.headers == {"a": "1", "b": "2"}
    assert message.expires_s is not None
    assert 59 < message.expires_s <= 60
    assert message.message_id == "m-1"
    assert message.reply_to == "answers"
    assert message.correlation == b"\x00\x01"
    assert message.retained is False


@under_each
async def test_a_content_type_of_ones_own_stands(mesh: Mesh) -> None:
    """The codec says what a payload is only where the program does not."""
    async with mesh.subscribe("t") as messages:
        await mesh.publish("t", {"order": 7}, content_type="application/vnd.shop+json")
        message = await anext(messages)
    assert message.content_type == "application/vnd.shop+json"
    assert message.decode() == {"order": 7}


@under_each
async def test_an_option_that_is_none_is_left_out(mesh: Mesh) -> None:
    """None means what leaving out means, so that a program can pass on what it may not have."""
    nothing: dict[str, Any] = {"key": None, "headers": None, "expires_s": None}
    async with mesh.subscribe("t") as messages:
        await mesh.publish("t", b"x", **nothing)
        assert (await anext(messages)).properties == {}


def publishing_calls(mesh: Mesh, **about: Any) -> dict[str, Any]:
    """Every call that takes options of a message."""
    return {
        "publish": lambda: mesh.publish("t", b"x", **about),
        "send": lambda: mesh.send("t", b"x", **about),
        "batch": lambda: mesh.publish_batch("t", [b"x"], **about),
        "queue": lambda: mesh.queue("q").send(b"x", **about),
        "request": lambda: mesh.request("t", b"x", **about),
        "gather": lambda: mesh.gather("t", b"x", **about),
        "append": lambda: mesh.stream("s").append(b"x", **about),
        "append_batch": lambda: mesh.stream("s").append_batch([b"x"], **about),
        "put": lambda: mesh.retained.put("t", b"x", **about),
        "publisher": lambda: mesh.publisher().publish("t", b"x", **about),
    }


@under_each
async def test_an_unknown_option_is_named(mesh: Mesh) -> None:
    """A node would ignore it without a word, so the client says it, with those that there are."""
    for call in publishing_calls(mesh, expire_s=5).values():
        with pytest.raises(BadOption, match=r"no option expire_s; there are .*expires_s"):
            await call()
    await mesh.flush()


@pytest.mark.parametrize(
    "about",
    [
        {"headers": {"a": object()}},
        {"headers": {"a": 1}},
        {"headers": {str(number): "x" for number in range(1000)}},
        {"headers": {"a": "x" * 200_000}},
        {"key": 7},
        {"key": "k" * 100_000},
        {"key": "\ud800"},
        {"key": "nul\x00"},
        {"expires_s": -1},
        {"expires_s": float("nan")},
        {"delay_s": "soon"},
        {"priority": 256},
        {"priority": 2**80},
        {"message_id": b"\xff"},
        {"correlation": 5},
        {"reply_to": "a/+"},
        {"content_type": 9},
        {"retain": "yes"},
    ],
    ids=lambda about: f"{next(iter(about))}={next(iter(about.values()))!r:.20}",
)
@under_each
async def test_no_value_of_an_option_ends_the_mesh(mesh: Mesh, about: dict[str, Any]) -> None:
    """One that cannot be is refused by name, or does no harm; never is the connection lost."""
    for call in publishing_calls(mesh, **about).values():
        with suppress(BadOption, Refused):
            await call()
    await mesh.flush()
    assert mesh.state.state == "open"


@under_each
async def test_no_topic_ends_the_mesh(mesh: Mesh) -> None:
    """A topic that cannot be is refused with the reason."""
    wrong: list[Any] = [
        "",
        "a/+",
        "#",
        "a\x00b",
        "x" * 70_000,
        "/".join("x" * 200),
        7,
        b"t",
        "\udfff",
    ]
    for topic in wrong:
        for call in (mesh.publish, mesh.request, mesh.gather, mesh.retained.put):
            with pytest.raises((BadOption, Refused)):
                await call(topic, b"x")
        with pytest.raises((BadOption, Refused)):
            await mesh.publish_batch([topic], [b"x"])
    await mesh.flush()
    assert mesh.state.state == "open"


@under_each
async def test_no_name_ends_the_mesh(mesh: Mesh) -> None:
    """Of queues, streams, groups and filters: some cannot be, and then that is said."""
    wrong: list[Any] = ["", "a/+", "a/#/b", "a\x00b", "x" * 70_000, 7, b"\xff", "\udfff"]
    for name in wrong:
        for call in (
            mesh.queue(name).declare,
            mesh.queue(name).describe,
            mesh.queue("q").consume(declare=True).__aenter__,
            mesh.queue(name).consume().__aenter__,
            mesh.stream(name).append,
            mesh.stream(name).declare,
            mesh.stream(name).follow().__aenter__,
            mesh.stream(name).group("g").follow().__aenter__,
            mesh.stream("s").group(name).declare,
            mesh.serve(name).__aenter__,
            mesh.subscribe(name).__aenter__,
            mesh.subscribe("t", group=name).__aenter__,
        ):
            with suppress(BadOption, Refused):
                await call()
    with pytest.raises(BadOption, match="1,024 values, not 1,025"):
        await mesh.stream("s").append_batch([b"x"] * 1025)
    with pytest.raises(BadOption, match="256 keys, not 300"):
        await mesh.stream("s").append_batch([b"x"], expected={str(n): 0 for n in range(300)})
    headers = {str(number): "x" for number in range(200)}
    with pytest.raises(BadOption, match="must be of one type"):
        await mesh.stream("s").append_batch([b"x", {}] * 512, headers=headers)
    await mesh.flush()
    assert mesh.state.state == "open"


@under_each
async def test_a_message_too_large_for_the_node_is_refused_here(mesh: Mesh) -> None:
    """Sent, it would end the connection, and be sent again on the next one."""
    limit = mesh.greeting["limits"]["frame_max_bytes"]
    with pytest.raises(BadOption, match=f"the node takes {limit:,}"):
        await mesh.publish("t", bytes(limit))
    link = mesh._session.link
    assert link is not None
    link.frame_max_bytes = 100_000
    for call in publishing_calls(mesh, message_id="m" * 100_000).values():
        with pytest.raises(BadOption, match="the node takes 100,000"):
            await call()
    assert len(mesh._session.outbox) == 0


@under_each
async def test_a_topic_of_the_node_is_not_for_us(mesh: Mesh) -> None:
    """What the rules forbid raises `NotAuthorised`, with the stable code and the rule."""
    with pytest.raises(NotAuthorised, match="belong to the node") as caught:
        await mesh.publish("$SYS/uptime", b"0")
    assert caught.value.code == "not_allowed"


@under_each
async def test_a_full_queue_says_so(mesh: Mesh) -> None:
    """`QueueFull`, also by `send` of the queue."""
    await mesh.queue("q").declare(bindings=["t"], max_messages=1)
    assert await mesh.publish("t", b"x") == Receipt(0, 1, 0)
    for call in (mesh.publish("t", b"x"), mesh.queue("q").send(b"x")):
        with pytest.raises(QueueFull, match="q") as caught:
            await call
        assert caught.value.code == "full"


@under_each
async def test_a_delayed_message_waits_in_its_queue(mesh: Mesh) -> None:
    """A queue gives it out after `delay_s`."""
    queue = mesh.queue("q")
    await queue.declare(bindings=["t"])
    await mesh.publish("t", b"late", delay_s=0.05)
    assert (await queue.describe()).statistics["delayed"] == 1
    async with queue.consume() as jobs:
        assert (await anext(jobs)).payload == b"late"


@under_each
async def test_a_confirmation_that_does_not_come_times_out(mesh: Mesh) -> None:
    """After `timeout_s` that is `TimedOut`, and nothing is kept of the publish."""
    calls: tuple[Callable[[], Awaitable[Receipt]], ...] = (
        lambda: mesh.publish("t", b"x", timeout_s=0.01),
        lambda: mesh.publish_batch("t", [b"x"], timeout_s=0.01),
        lambda: mesh.queue("q").send(b"x", timeout_s=0.01),
    )
    with stuck(mesh):
        for call in calls:
            with pytest.raises(TimedOut, match=r"not confirmed within 0\.01 s"):
                await call()
    assert len(mesh._session.outbox) == 0


@under_each
async def test_send_does_not_wait_and_counts_what_it_drops(mesh: Mesh) -> None:
    """It arrives while there is a connection; without one it is dropped and counted."""
    async with mesh.subscribe("t") as messages:
        await mesh.send("t", "a", key="k")
        message = await anext(messages)
        assert (message.payload, message.key) == (b"a", "k")
        session = mesh._session
        link, session.link = session.link, None
        await mesh.send("t", "b")
        await mesh.send("t", "c")
        session.link = link
        assert mesh.dropped == 2
        await mesh.send("t", "d")
        assert (await anext(messages)).payload == b"d"


@under_each
async def test_send_waits_while_much_waits_to_be_sent(mesh: Mesh) -> None:
    """What is not sent yet is bounded: about a mebibyte and the last message."""
    link = mesh._session.link
    assert link is not None
    most = 0
    async with mesh.subscribe("none"):
        for _ in range(200):
            await mesh.send("t", bytes(50_000))
            most = max(most, link._output_bytes)
    assert 900_000 < most < 1_200_000


@under_each
async def test_a_batch_is_published_as_one(mesh: Mesh) -> None:
    """One topic or one each; options hold for all of them; the counts are sums."""
    async with mesh.subscribe("#") as messages:
        assert await mesh.publish_batch("t", [], key="k") == Receipt(0, 0, 0)
        values: list[Any] = [b"bytes", "text", {"a": 1}]
        assert await mesh.publish_batch("t", values, key="k") == Receipt(3, 0, 0)
        got = [await anext(messages) for _ in values]
        assert [each.payload for each in got] == [b"bytes", b"text", b'{"a":1}']
        assert [each.content_type for each in got] == [None, None, "application/json"]
        assert [each.key for each in got] == ["k"] * 3
        await mesh.publish_batch(["a", "b"], [b"1", b"2"])
        assert [(m.topic, m.payload) for m in [await anext(messages) for _ in "ab"]] == [
            ("a", b"1"),
            ("b", b"2"),
        ]
        with pytest.raises(BadOption, match="2 values and 1 topics"):
            await mesh.publish_batch(["a"], [b"1", b"2"])


@under_each
async def test_a_batch_may_be_larger_than_a_frame(mesh: Mesh) -> None:
    """More than the node takes at once goes in several frames, by their number and their bytes."""
    await mesh.queue("q").declare(bindings=["t"])
    assert await mesh.publish_batch("t", [b"x"] * 1100) == Receipt(0, 1100, 0)
    headers = {str(number): "x" for number in range(240)}
    assert await mesh.publish_batch("u", [b"x", {}] * 140, headers=headers) == Receipt(0, 0, 0)
    link = mesh._session.link
    assert link is not None
    link.frame_max_bytes = 100_000
    assert await mesh.publish_batch("t", [bytes(30_000)] * 7) == Receipt(0, 7, 0)


@under_each
async def test_a_batch_says_which_was_refused(mesh: Mesh) -> None:
    """`details["index"]` is the place in the values; of those judged with it none is published."""
    async with mesh.subscribe("#") as messages:
        with pytest.raises(NotAuthorised) as caught:
            await mesh.publish_batch(["a", "b", "$SYS/x", "c"], [b"1", b"2", b"3", b"4"])
        assert caught.value.details["index"] == 2
        topics = ["a"] * 1100
        topics[1050] = "$SYS/x"
        with pytest.raises(NotAuthorised) as caught:
            await mesh.publish_batch(topics, [b"y"] * 1100)
        assert caught.value.details["index"] == 1050
        await mesh.publish("end", b"")
        got = [await anext(messages) for _ in range(1025)]
    assert [each.topic for each in got] == ["a"] * 1024 + ["end"]


@under_each
async def test_a_publisher_has_many_on_the_way(mesh: Mesh) -> None:
    """It waits only when as many are on the way as may be, and leaving waits for all."""
    await mesh.queue("q").declare(bindings=["t"])
    async with mesh.publisher(in_flight=10) as publisher:
        for number in range(100):
            await publisher.publish("t", str(number), key="k")
            assert len(mesh._session.outbox) <= 10
        await publisher.flush()
        assert publisher.confirmed == 100
        await publisher.publish("t", b"last")
    assert publisher.confirmed == 101
    found = await mesh.queue("q").browse(count=200)
    assert [each.text for each in found] == [*map(str, range(100)), "last"]
    assert found[0].key == "k"
    with pytest.raises(BadOption, match="in_flight must be 1 or more, not 0"):
        mesh.publisher(in_flight=0)


@under_each
async def test_a_publisher_ends_with_the_first_that_is_refused(mesh: Mesh) -> None:
    """The next publish raises it, so do a flush and leaving; those before it are published."""
    async with mesh.subscribe("#") as messages:
        with pytest.raises(NotAuthorised):  # noqa: PT012 - that leaving raises is what is tried
            async with mesh.publisher() as publisher:
                await publisher.publish("a", b"1")
                await publisher.publish("$SYS/x", b"2")
        assert (await anext(messages)).payload == b"1"
    refused = mesh.publisher(in_flight=1)
    await refused.publish("$SYS/x", b"2")
    with pytest.raises(NotAuthorised):
        await refused.publish("a", b"3")
    with pytest.raises(NotAuthorised):
        await refused.flush()
    assert len(mesh._session.outbox) == 0


@under_each
async def test_a_publisher_left_by_an_error_waits_for_nothing(mesh: Mesh) -> None:
    """The error comes out as it is, and nothing is sent again on a next connection."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the error is the one of the body
        async with mesh.publisher() as publisher:
            await publisher.publish("a", b"1")
            raise ZeroDivisionError
    assert len(mesh._session.outbox) == 0
    with pytest.raises(Closed, match="this publisher was left"):
        await publisher.publish("a", b"1")


@under_each
async def test_what_waits_for_a_confirmation_is_bounded(broker: RunningBroker) -> None:
    """With `publishes_max` on the way who publishes more waits until one is confirmed."""
    async with connect(broker.native_url, publishes_max=3) as mesh:
        most = 0

        async def publish() -> None:
            nonlocal most
            await mesh.publish("t", b"x")
            most = max(most, len(mesh._session.outbox))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(publish)
            await eventually(lambda: len(mesh._session.outbox) > 0)
            most = max(most, len(mesh._session.outbox))
        assert most <= 3
        assert len(mesh._session.outbox) == 0


@under_each
async def test_who_waits_when_the_mesh_is_closed_is_told(broker: RunningBroker) -> None:
    """A publish, a request and a call that have no answer raise `Closed`; so do new ones."""
    told: list[ClientError] = []

    async def call(waiting: Any) -> None:
        try:
            await waiting
        except ClientError as error:
            told.append(error)

    async with (
        anyio.create_task_group() as tasks,
        connect(broker.native_url) as mesh,
        mesh.serve("slow"),
    ):
        link = mesh._session.link
        assert link is not None
        tasks.start_soon(call, mesh.request("slow", b""))
        await eventually(lambda: len(link.calls) == 1)
        with stuck(mesh):
            tasks.start_soon(call, mesh.publish("t", b""))
            tasks.start_soon(call, mesh.queue("q").describe())
            await eventually(lambda: len(link.calls) == 3)
            mesh._session.fail(Closed("the mesh was closed"))
    assert [type(each) for each in told] == [Closed] * 3
    for name, again in publishing_calls(mesh).items():
        if name != "publisher":
            with pytest.raises(Closed):
                await again()
    for channel in (mesh.subscribe("t"), mesh.serve("t"), mesh.queue("q").consume()):
        with pytest.raises(Closed):
            async with channel:
                pass
