# ruff: noqa: ARG001 - a handler names what it wants, also where a test does not look at it
"""Workers: what their handlers get, what becomes of it, and how they end."""

import logging
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ganglion.clients.errors import BadOption, NotFound, Refused, ResponderFailed
from ganglion.clients.handlers import Retry
from ganglion.clients.mesh import Mesh, connect
from ganglion.clients.messages import Message
from ganglion.clients.queues import Job
from ganglion.clients.requests import Request
from ganglion.clients.streams import GroupRecord
from ganglion.clients.tracing import TraceContext, continuing, current_trace
from ganglion.clients.workers import Worker
from ganglion.testing import RunningBroker
from tests.clients.backends import eventually, under_each

AT_ONCE = Retry(attempts=3, backoff_s=0)


@dataclass
class Order:
    """A payload."""

    number: int


@asynccontextmanager
async def running(worker: Worker, mesh: Mesh | None = None) -> AsyncGenerator[None]:
    """The worker works inside; at the end it is stopped, and has ended."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run, mesh)
        yield
        worker.stop()


def of(worker: Worker) -> tuple[int, int, int]:
    """Done, retried and failed of the one handler that it has."""
    (found,) = worker.statistics().handlers
    return found.done, found.retried, found.failed


@under_each
async def test_jobs_are_acknowledged_when_the_handler_returns(
    broker: RunningBroker,
) -> None:
    """They come decoded, and are gone from the queue."""
    seen: list[Order] = []
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.queue("billing", declare=True)
        async def bill(order: Order) -> None:
            seen.append(order)

        async with running(worker):
            for number in range(20):
                await mesh.queue("billing").send(Order(number))
            await eventually(lambda: of(worker) == (20, 0, 0))
        assert sorted(each.number for each in seen) == list(range(20))
        assert (await mesh.queue("billing").describe()).statistics["messages"] == 0


@under_each
async def test_a_job_that_fails_is_tried_again_and_then_set_aside(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """As often as the policy says; the dead letter has the error as its reason, the log has it."""
    attempts: list[int] = []
    async with connect(broker.native_url) as mesh:
        await mesh.queue("billing").declare(dead_letter="billing-dead")
        worker = mesh.worker()

        @worker.queue("billing", retry=AT_ONCE)
        async def bill(order: Order, job: Job) -> None:
            attempts.append(job.attempts)
            raise ConnectionError("the bank is away")

        with caplog.at_level(logging.WARNING, "ganglion.worker"):
            async with running(worker):
                await mesh.queue("billing").send(Order(7))
                await eventually(lambda: of(worker) == (0, 2, 1))
        async with mesh.queue("billing-dead").consume() as dead:
            letter = await anext(aiter(dead))
            assert letter.decode(Order) == Order(7)
            assert letter.headers["x-dead-letter-reason"] == "ConnectionError: the bank is away"
    assert attempts == [0, 1, 2]
    assert [each.levelname for each in caplog.records] == ["WARNING", "WARNING", "ERROR"]
    assert all("queue billing" in each.message and each.exc_info for each in caplog.records)


@under_each
async def test_errors_that_no_try_mends_are_set_aside_at_once(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that the policy does not name, and a payload that is not what the handler wants.

    The log has both reasons, and a traceback where it leads into the handler.
    """
    async with connect(broker.native_url) as mesh:
        await mesh.queue("billing").declare(dead_letter="billing-dead")
        worker = mesh.worker()

        @worker.queue("billing", retry=Retry(on=(OSError,)), concurrency=1)
        async def bill(order: Order) -> None:
            raise ValueError("there is no such customer")

        async with running(worker):
            await mesh.queue("billing").send(Order(7))
            await mesh.queue("billing").send({"number": "seven"})
            await eventually(lambda: of(worker) == (0, 0, 2))
        async with mesh.queue("billing-dead").consume() as dead:
            reasons = [(await anext(dead)).headers["x-dead-letter-reason"] for _ in range(2)]
        assert reasons[0] == "ValueError: there is no such customer"
        assert "cannot read the payload" in reasons[1]
    assert all(reason in each.message for reason, each in zip(reasons, caplog.records, strict=True))
    assert [bool(each.exc_info) for each in caplog.records] == [True, False]


@under_each
async def test_a_handler_may_settle_by_itself(broker: RunningBroker) -> None:
    """What it rejected is not acknowledged after it."""
    async with connect(broker.native_url) as mesh:
        await mesh.queue("billing").declare(dead_letter="billing-dead")
        worker = mesh.worker()

        @worker.queue("billing")
        async def bill(job: Job) -> None:
            await job.reject("nobody knows the customer")

        async with running(worker):
            await mesh.queue("billing").send(b"x")
            await eventually(lambda: of(worker) == (1, 0, 0))
        async with mesh.queue("billing-dead").consume() as dead:
            reason = (await anext(dead)).headers["x-dead-letter-reason"]
        assert reason == "nobody knows the customer"


@under_each
async def test_what_a_handler_returns_is_the_reply(broker: RunningBroker) -> None:
    """Values by the codec; None is an empty payload; a plain function replies from its thread."""
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.request("double", group="doubling")
        async def double(order: Order) -> Order:
            return Order(order.number * 2)

        @worker.request("halve")
        def halve(order: Order) -> Order:
            return Order(order.number // 2)

        @worker.request("note")
        async def note(order: Order) -> None: ...

        async with running(worker):
            assert (await mesh.request("double", Order(4))).decode(Order) == Order(8)
            assert (await mesh.request("halve", Order(4))).decode(Order) == Order(2)
            assert (await mesh.request("note", Order(4))).payload == b""


@under_each
async def test_a_request_that_fails_is_answered_with_the_error(
    broker: RunningBroker,
) -> None:
    """Of the handler, of the payload, or of a reply that cannot be written; and life goes on."""
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.request("quote")
        async def quote(order: Order) -> object:
            if order.number == 0:
                raise KeyError("zero")
            return object() if order.number == 1 else order

        async with running(worker):
            for payload, text, code in (
                (Order(0), "KeyError: 'zero'", "error"),
                (Order(1), "a payload cannot be", "error"),
                ("none", "cannot read the payload", "not_decodable"),
            ):
                with pytest.raises(ResponderFailed, match=text) as told:
                    await mesh.request("quote", payload)
                assert told.value.details["code"] == code
            assert (await mesh.request("quote", Order(2))).decode(Order) == Order(2)
        assert of(worker) == (1, 0, 3)


@under_each
async def test_a_handler_may_answer_by_itself(broker: RunningBroker) -> None:
    """What it returns then is nothing to anybody."""
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.request("quote")
        async def quote(request: Request) -> str:
            await request.reply(b"early")
            return "late"

        async with running(worker):
            assert (await mesh.request("quote")).payload == b"early"
            await eventually(lambda: of(worker) == (1, 0, 0))


@under_each
async def test_topics_have_handlers(broker: RunningBroker) -> None:
    """One that raises is counted and gets the next message all the same; groups share."""
    seen: list[tuple[str, int]] = []
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.topic("sensors/#", group="readers", concurrency=1)
        async def read(value: int, message: Message) -> None:
            if value < 0:
                raise ValueError("below zero")
            seen.append((message.topic, value))

        async with running(worker):
            for value in (1, -1, 2):
                await mesh.publish(f"sensors/{value}", value)
            await eventually(lambda: of(worker) == (2, 0, 1))
    assert seen == [("sensors/1", 1), ("sensors/2", 2)]


@under_each
async def test_records_are_tried_again_in_their_order(broker: RunningBroker) -> None:
    """With one at a time no later record comes before a failed one is done."""
    seen: list[int] = []
    failures = [OSError("away"), OSError("still away")]
    async with connect(broker.native_url) as mesh:
        stream = mesh.stream("orders")
        await stream.declare()
        await stream.group("audit").declare(after=0)
        worker = mesh.worker(concurrency=1)

        @worker.stream("orders", group="audit", retry=AT_ONCE)
        async def audit(order: Order, record: GroupRecord) -> None:
            if order.number == 1 and failures:
                raise failures.pop()
            seen.append(record.sequence)

        async with running(worker):
            await stream.append_batch([Order(0), Order(1), Order(2)])
            await eventually(lambda: of(worker) == (3, 2, 0))
    assert seen == [1, 2, 3]


@under_each
async def test_a_record_that_nobody_can_use_goes_to_a_queue(
    broker: RunningBroker,
) -> None:
    """With where it was and why; the position of the group goes on."""
    async with connect(broker.native_url) as mesh:
        stream = mesh.stream("orders")
        await stream.declare()
        await mesh.queue("orders-dead").declare()
        await stream.group("audit").declare(after=0)
        worker = mesh.worker()

        @worker.stream("orders", group="audit", retry=AT_ONCE, dead_letter="orders-dead")
        async def audit(order: Order) -> None:
            raise OSError("no paper")

        async with running(worker):
            await stream.append(Order(7), key="order-7", headers={"tenant": "a"})
            await eventually(lambda: of(worker) == (0, 2, 1))
            async with mesh.queue("orders-dead").consume() as dead:
                letter = await anext(dead)
        assert letter.decode(Order) == Order(7)
        assert letter.key == "order-7"
        assert letter.headers == {
            "tenant": "a",
            "x-dead-letter-stream": "orders",
            "x-dead-letter-group": "audit",
            "x-dead-letter-sequence": "1",
            "x-dead-letter-topic": "$stream/orders",
            "x-dead-letter-reason": "OSError: no paper",
            "x-dead-letter-count": "3",
        }
        assert await stream.group("audit").declare() == 1


@under_each
async def test_no_more_than_concurrency_run_at_a_time(broker: RunningBroker) -> None:
    """Per handler, and exactly as many when there is enough to do."""
    most = now = 0
    full = anyio.Event()
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker(concurrency=3)

        @worker.queue("billing", declare=True)
        async def bill(job: Job) -> None:
            nonlocal most, now
            now += 1
            most = max(most, now)
            if now == 3:
                full.set()
            await full.wait()
            await checkpoint()
            now -= 1

        async with running(worker):
            for _ in range(30):
                await mesh.queue("billing").send(b"x")
            await eventually(lambda: of(worker) == (30, 0, 0))
    assert most == 3


@under_each
async def test_stopping_lets_what_runs_end(broker: RunningBroker) -> None:
    """Nothing new is begun; what had come and was not begun is there for others at once."""
    async with connect(broker.native_url) as mesh:
        queue = mesh.queue("billing")
        worker = mesh.worker(concurrency=1)
        may_end = anyio.Event()

        @worker.queue("billing", declare=True, prefetch=10)
        async def bill(job: Job) -> None:
            await may_end.wait()

        async with running(worker):
            for _ in range(5):
                await queue.send(b"x")
            await eventually(lambda: worker.statistics().handlers[0].running == 1)
            worker.stop()
            assert worker.statistics().is_stopping
            may_end.set()
        assert of(worker) == (1, 0, 0)
        assert not worker.statistics().is_running
        async with queue.consume(prefetch=10) as jobs:
            assert len([await anext(jobs) for _ in range(4)]) == 4


@under_each
async def test_what_does_not_end_in_time_is_given_back(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """After the grace it is cancelled, and somebody else gets the job at once."""
    async with connect(broker.native_url) as mesh:
        queue = mesh.queue("billing")
        worker = mesh.worker(grace_s=0.01)

        @worker.queue("billing", declare=True)
        async def bill(job: Job) -> None:
            await anyio.sleep_forever()

        async with running(worker):
            await queue.send(b"x")
            await eventually(lambda: worker.statistics().handlers[0].running == 1)
        assert "1 still ran after 0.01 s" in caplog.text
        async with queue.consume() as jobs:
            assert (await anext(jobs)).payload == b"x"


@under_each
async def test_a_pause_before_another_try_ends_with_the_worker(
    broker: RunningBroker,
) -> None:
    """A record that waits to be tried again is given back, and does not hold up the end."""
    async with connect(broker.native_url) as mesh:
        stream = mesh.stream("orders")
        await stream.declare()
        await stream.group("audit").declare(after=0)
        worker = mesh.worker(grace_s=1000)

        @worker.stream("orders", group="audit", retry=Retry(backoff_s=1000, backoff_max_s=1000))
        async def audit(order: Order) -> None:
            raise OSError("no paper")

        async with running(worker):
            await stream.append(Order(7))
            await eventually(lambda: of(worker) == (0, 1, 0))
        async with stream.group("audit").follow() as records:
            assert (await anext(records)).decode(Order) == Order(7)


@under_each
async def test_the_end_of_a_source_ends_the_worker(broker: RunningBroker) -> None:
    """When its queue is deleted there is nothing to do: run says so, and ends the others too."""
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.queue("billing", declare=True)
        async def bill(job: Job) -> None: ...

        @worker.topic("a/#")
        async def see(message: Message) -> None: ...

        with pytest.RaisesGroup(Refused) as told:
            async with anyio.create_task_group() as tasks:
                await tasks.start(worker.run)
                await mesh.queue("billing").delete()
        (error,) = told.value.exceptions
        assert isinstance(error, Refused)
        assert error.code == "not_found"
        assert not worker.statistics().is_running


@under_each
async def test_a_source_that_is_not_there_is_told_at_the_start(
    broker: RunningBroker,
) -> None:
    """Run raises what the node refused, and nothing stays subscribed."""
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.queue("nowhere")
        async def bill(job: Job) -> None: ...

        with pytest.raises(NotFound):
            await worker.run()
        assert not worker.statistics().is_running


@under_each
async def test_the_end_of_the_mesh_ends_the_worker(broker: RunningBroker) -> None:
    """A worker whose mesh is closed by the program ends without an error."""
    worker = Worker()

    @worker.topic("a/#")
    async def see(message: Message) -> None: ...

    async with anyio.create_task_group() as tasks, connect(broker.native_url) as mesh:
        await tasks.start(worker.run, mesh)
    assert not worker.statistics().is_running


@under_each
async def test_a_signal_stops_it(broker: RunningBroker) -> None:
    """SIGTERM lets what runs end; a second one does not wait for it."""
    async with connect(broker.native_url) as mesh:
        queue = mesh.queue("billing")
        worker = mesh.worker()
        has_ended = False

        @worker.queue("billing", declare=True, retry=AT_ONCE)
        async def bill(job: Job) -> None:
            nonlocal has_ended
            os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: worker.statistics().is_stopping)
            if job.attempts:
                os.kill(os.getpid(), signal.SIGTERM)
                await anyio.sleep_forever()
            has_ended = True
            raise OSError("again")

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                await tasks.start(worker.run)
                if not has_ended:
                    await queue.send(b"x", delay_s=0)
        assert has_ended
        assert of(worker) == (0, 1, 0)


@under_each
async def test_a_signal_stops_all_workers_of_a_program(broker: RunningBroker) -> None:
    """Whichever was started first, and also when the one that listened has ended before."""
    async with connect(broker.native_url) as mesh, anyio.create_task_group() as tasks:
        workers = [mesh.worker() for _ in range(4)]
        for worker in workers:
            worker.topic("a/#")(_see)
            await tasks.start(worker.run)

        def running() -> list[bool]:
            return [each.statistics().is_running for each in workers]

        workers[0].stop()
        await eventually(lambda: running() == [False, True, True, True])
        workers[3].stop()
        await eventually(lambda: running() == [False, True, True, False])
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: not any(running()))


async def _see(message: Message) -> None: ...


@under_each
async def test_handlers_carry_traces_on(broker: RunningBroker) -> None:
    """What a handler sends belongs to the trace and the correlation of what it was called with."""
    root = TraceContext.new("process-7")
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker()

        @worker.queue("billing", declare=True)
        async def bill(job: Job) -> None:
            await mesh.publish("billed", b"x")

        async with running(worker), mesh.subscribe("billed") as messages:
            with continuing(root.headers()):
                await mesh.queue("billing").send(b"x")
            found = TraceContext.from_headers((await anext(messages)).headers)
            assert found is not None
            assert (found.trace_id, found.correlation_id) == (root.trace_id, "process-7")
            assert found.span_id != root.span_id

            await mesh.queue("billing").send(b"x")
            assert (await anext(messages)).headers == {}


@under_each
async def test_a_worker_may_begin_traces(broker: RunningBroker) -> None:
    """Where nothing came along each item is a trace of its own, for plain functions too."""
    traces: list[TraceContext | None] = []
    async with connect(broker.native_url) as mesh:
        worker = mesh.worker(begin_traces=True)

        @worker.topic("a")
        def see(message: Message) -> None:
            traces.append(current_trace())

        async with running(worker):
            await mesh.publish("a")
            await mesh.publish("a")
            await eventually(lambda: of(worker) == (2, 0, 0))
    assert len({each.trace_id for each in traces if each is not None}) == 2


@under_each
async def test_mistakes_are_named(broker: RunningBroker) -> None:
    """Before anything is subscribed."""
    with pytest.raises(BadOption, match="concurrency"):
        Worker(concurrency=0)
    with pytest.raises(BadOption, match="grace_s"):
        Worker(grace_s=-1)
    worker = Worker()
    with pytest.raises(BadOption, match="prefetch"):
        worker.queue("billing", prefetch=0)
    with pytest.raises(BadOption, match="needs a mesh"):
        await worker.run()
    async with connect(broker.native_url) as mesh:
        with pytest.raises(BadOption, match="no handlers"):
            await worker.run(mesh)

        @worker.topic("a")
        async def see(message: Message) -> None: ...

        async with running(worker, mesh):
            with pytest.raises(BadOption, match="runs already"):
                worker.topic("b")(see)
            with pytest.raises(BadOption, match="runs already"):
                await worker.run(mesh)
