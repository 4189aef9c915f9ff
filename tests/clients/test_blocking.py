"""The synchronous face: the same as the asynchronous one, from threads."""

import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import ganglion
from ganglion.clients import blocking, mesh, publishing, queues, requests, retained, streams
from ganglion.clients.errors import (
    BadOption,
    Closed,
    ConnectionLost,
    LeaseLost,
    NoResponders,
    NotFound,
    QueueFull,
    Refused,
    ResponderFailed,
    TimedOut,
    Unreachable,
)
from ganglion.clients.handlers import Retry
from ganglion.clients.loop_thread import LoopThread
from ganglion.clients.messages import Message, Receipt
from ganglion.clients.tracing import TraceContext, continuing, current_trace
from ganglion.testing import RunningBroker

DEADLINE_S = 10.0


@dataclass
class Order:
    """A payload."""

    number: int


@pytest.fixture(name="mesh")
def connected(broker: RunningBroker) -> Iterator[blocking.Mesh]:
    """A mesh of the synchronous face."""
    with ganglion.sync.connect(broker.native_url) as found:
        yield found


def until(condition: Callable[[], bool]) -> None:
    """Wait until this is so, which other threads see to."""
    ticks = threading.Event()
    for _ in range(int(DEADLINE_S / 0.001)):
        if condition():
            return
        ticks.wait(0.001)
    raise AssertionError("it did not come true")


# -- the two faces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("face", "behind"),
    [
        (blocking.Mesh, mesh.Mesh),
        (blocking.Queue, queues.Queue),
        (blocking.Job, queues.Job),
        (blocking.Stream, streams.Stream),
        (blocking.StreamGroup, streams.StreamGroup),
        (blocking.GroupRecord, streams.GroupRecord),
        (blocking.Retained, retained.Retained),
        (blocking.Publisher, publishing.Publisher),
    ],
)
def test_every_name_is_there_in_both(face: type, behind: type) -> None:
    """What the asynchronous face has for programs the synchronous one has, too, and documented."""
    internal = {"session", "publish_elements", "at", "lease"}
    wanted = {name for name in dir(behind) if not name.startswith("_")} - internal
    assert wanted - set(dir(face)) == set()
    for name in wanted - set(getattr(behind, "__struct_fields__", ())):
        assert inspect.getdoc(inspect.getattr_static(face, name)), name


def test_a_request_has_all_but_waiting() -> None:
    """`Request.unwanted` waits beside the work, for which a thread has no use."""
    missing = set(dir(requests.Request)) - set(dir(blocking.Request))
    assert {each for each in missing if not each.startswith("_")} == {"unwanted", "call"}


def test_connect_has_the_same_parameters() -> None:
    """They are those of the asynchronous one, to be seen by `help` and by editors."""
    found = inspect.signature(ganglion.sync.connect).parameters
    assert list(found) == list(inspect.signature(ganglion.connect).parameters)


# -- topics ----------------------------------------------------------------------------------------


def test_messages_come_to_a_loop(mesh: blocking.Mesh) -> None:
    """`for` gives what was published, in order; closing it from another thread ends it."""
    with mesh.subscribe("a/#") as messages, ThreadPoolExecutor() as threads:
        assert mesh.publish("a/b", {"x": 1}, key="k").subscribers == 1
        first = next(messages)
        assert (first.topic, first.decode(), first.key) == ("a/b", {"x": 1}, "k")
        seen: list[int] = []
        rest = threads.submit(lambda: seen.extend(each.decode(Order).number for each in messages))
        mesh.publish_batch("a/c", [Order(number) for number in range(1000)])
        until(lambda: len(seen) == 1000)
        messages.close()
        rest.result(DEADLINE_S)
        assert seen == list(range(1000))


def test_get_and_take_have_deadlines(mesh: blocking.Mesh) -> None:
    """One waits for an item and raises in the end, the other gives those that are here."""
    with mesh.subscribe("a") as messages:
        with pytest.raises(TimedOut, match=r"nothing came within 0\.01 s"):
            messages.get(timeout_s=0.01)
        assert messages.take(10, timeout_s=0) == []
        mesh.publish_batch("a", [b"1", b"2", b"3"])
        assert messages.get(timeout_s=DEADLINE_S).payload == b"1"
        assert [each.payload for each in messages.take(10, timeout_s=DEADLINE_S)] == [b"2", b"3"]
        with pytest.raises(BadOption, match="count_max"):
            messages.take(0)
    with pytest.raises(Closed):
        messages.get(timeout_s=0)


def test_every_thread_with_a_deadline_gets_its_own(mesh: blocking.Mesh) -> None:
    """One that waits for the batch does not hold up another whose time is over."""
    with mesh.subscribe("a") as messages, ThreadPoolExecutor() as threads:
        patient = threads.submit(messages.get)
        until(lambda: messages._is_fetching)
        assert messages.take(1, timeout_s=0.01) == []
        mesh.publish("a", b"x")
        assert patient.result(DEADLINE_S).payload == b"x"


def test_what_is_sent_without_confirmation_keeps_its_order(mesh: blocking.Mesh) -> None:
    """Among what is published, too; and an error of it is raised at once."""
    with mesh.subscribe("#", buffer=3000) as messages:
        for number in range(2000):
            mesh.send("a", number)
        mesh.publish("b", 2000)
        found = [messages.get(timeout_s=DEADLINE_S).decode() for _ in range(2001)]
        assert found == list(range(2001))
    with pytest.raises(BadOption, match="no option kei"):
        mesh.send("a", kei="x")  # type: ignore[call-arg] # a mistake
    assert mesh.dropped == 0


def test_a_publisher_has_many_on_the_way(mesh: blocking.Mesh) -> None:
    """All are confirmed when it is left, and in order."""
    mesh.queue("q").declare(bindings=["orders"])
    with mesh.publisher(in_flight=100) as publisher:
        for number in range(3000):
            publisher.publish("orders", number)
    assert publisher.confirmed == 3000
    with mesh.queue("q").consume(prefetch=3000) as jobs:
        found = [jobs.get(timeout_s=DEADLINE_S).decode() for _ in range(3000)]
    assert found == list(range(3000))
    with pytest.raises(Closed):
        publisher.publish("orders")


def test_a_publisher_ends_with_the_first_that_is_refused(mesh: blocking.Mesh) -> None:
    """Its error is raised by a later publish or on leaving, once and as it is."""
    mesh.queue("q").declare(bindings=["orders"], max_messages=5)
    publisher = mesh.publisher()

    def publish() -> None:
        with publisher:
            for number in range(5000):
                publisher.publish("orders", number)

    with pytest.raises(QueueFull):
        publish()
    assert publisher.confirmed == 5


def test_an_error_in_the_body_leaves_a_publisher_at_once(mesh: blocking.Mesh) -> None:
    """Nothing is waited for, and the error is the one that comes out."""

    def publish() -> None:
        with mesh.publisher(in_flight=1) as publisher:
            for _ in range(100):
                publisher.publish("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish()


# -- requests --------------------------------------------------------------------------------------


def test_requests_are_asked_and_answered(mesh: blocking.Mesh) -> None:
    """From and in threads; an error in the block is told to who asks."""

    def serve() -> None:
        for request in service:
            try:
                with request:
                    request.reply(Order(10 // request.decode(Order).number))
            except ZeroDivisionError:
                pass

    with mesh.serve("tenth") as service, ThreadPoolExecutor() as threads:
        threads.submit(serve)
        assert mesh.request("tenth", Order(5)).decode(Order) == Order(2)
        with pytest.raises(ResponderFailed, match="ZeroDivisionError"):
            mesh.request("tenth", Order(0))
        assert [each.decode(Order) for each in mesh.gather("tenth", Order(2))] == [Order(5)]
        service.close()
    with pytest.raises(NoResponders):
        mesh.request("tenth", Order(1))


def test_a_breaker_may_be_shared_by_threads(mesh: blocking.Mesh) -> None:
    """Requests of all threads go through it in the one loop."""
    breaker = ganglion.CircuitBreaker(failures_in_a_row=3, cool_down_s=1000)

    def ask(_number: int) -> type[Exception]:
        with pytest.raises((NoResponders, ganglion.CircuitOpen)) as told:
            mesh.request("nobody", breaker=breaker)
        return told.type

    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(ask, range(32)))
    assert breaker.state is ganglion.CircuitState.OPEN
    found = breaker.statistics()
    assert (found.failed, found.refused) == (ends.count(NoResponders), 32 - found.failed)


# -- queues and streams ----------------------------------------------------------------------------


def test_jobs_are_settled_by_their_block(mesh: blocking.Mesh) -> None:
    """Left without an error it is done; left by one it comes again; or as it says by itself."""
    queue = mesh.queue("q")
    queue.declare(backoff_s=0, dead_letter="dead")
    queue.send(b"1")
    with queue.consume() as jobs:
        with pytest.raises(ZeroDivisionError), jobs.get(timeout_s=DEADLINE_S):
            raise ZeroDivisionError
        with jobs.get(timeout_s=DEADLINE_S) as job:
            assert (job.payload, job.attempts, job.is_held) == (b"1", 1, True)
        until(lambda: not job.is_held)
        queue.send(b"2")
        with jobs.get(timeout_s=DEADLINE_S) as job:
            job.extend(100)
            job.reject("nobody can")
        queue.send(b"3")
        job = jobs.get(timeout_s=DEADLINE_S)
        job.ack(confirmed=True)
        with pytest.raises(LeaseLost):
            job.ack(confirmed=True)
        assert jobs.prefetch == 10
        jobs.set_prefetch(0)
        queue.send(b"4")
        assert jobs.take(1, timeout_s=0.02) == []
    with mesh.queue("dead").consume() as dead:
        assert dead.get(timeout_s=DEADLINE_S).headers["x-dead-letter-reason"] == "nobody can"
    assert queue.describe().statistics["messages"] == 1
    assert [each["name"] for each in mesh.queues()] == ["dead", "q"]


def test_many_threads_share_a_consumer(mesh: blocking.Mesh) -> None:
    """Each job goes to one of them, and none waits while there is something to do."""
    queue = mesh.queue("q")
    queue.declare()
    together = threading.Barrier(4)
    seen: list[int] = []

    def work() -> None:
        first = True
        for job in jobs:
            with job:
                if first:
                    together.wait(DEADLINE_S)  # only when all four have one
                    first = False
                seen.append(job.decode())

    with queue.consume(prefetch=500) as jobs, ThreadPoolExecutor() as threads:
        ends = [threads.submit(work) for _ in range(4)]
        mesh.publish_batch("$queue/q", list(range(1000)))
        until(lambda: len(seen) == 1000)
        jobs.close()
        for end in ends:
            end.result(DEADLINE_S)
    assert sorted(seen) == list(range(1000))
    assert queue.describe().statistics["messages"] == 0


def test_jobs_of_a_lost_connection_are_not_given_out(mesh: blocking.Mesh) -> None:
    """What had come over and nobody had taken is somebody else's by then, and comes again."""
    queue = mesh.queue("q")
    queue.declare()
    mesh.publish_batch("$queue/q", [b"1", b"2"])
    with queue.consume() as jobs:
        first = jobs.get(timeout_s=DEADLINE_S)
        until(lambda: len(jobs._here) == 1 or bool(jobs._behind._buffer))
        link = mesh.behind.session.link
        assert link is not None
        mesh.loop.post(link._end, ConnectionLost("cut"))
        until(lambda: not first.is_held)
        found = sorted(jobs.get(timeout_s=DEADLINE_S).payload for _ in range(2))
        assert found == [b"1", b"2"]


def test_streams_are_appended_read_and_followed(mesh: blocking.Mesh) -> None:
    """A follower knows where it is."""
    stream = mesh.stream("orders")
    stream.declare(keyed=True)
    assert stream.append(b"1", key="k", expected=0) == 1
    assert stream.append_batch([b"2", b"3"]).last == 3
    assert [each.payload for each in stream.read()] == [b"1", b"2", b"3"]
    assert stream.version("k") == 1
    with stream.follow(after=0) as records:
        assert next(records).payload == b"1"
        assert records.position == 1
    group = stream.group("audit")
    group.declare(after=0)
    with group.follow() as members:
        with members.get(timeout_s=DEADLINE_S) as record:
            assert (record.sequence, record.payload) == (1, b"1")
        second = members.get(timeout_s=DEADLINE_S)
        second.nack(0)
        again = [members.get(timeout_s=DEADLINE_S) for _ in range(2)]
        assert sorted(each.sequence for each in again) == [2, 3]
        for each in again:
            each.ack(confirmed=True)
    assert group.declare() == 3
    assert [each["name"] for each in mesh.streams()] == ["orders"]


def test_last_values(mesh: blocking.Mesh) -> None:
    """Put, got, listed and deleted."""
    mesh.retained.put("a/b", 7)
    found = mesh.retained.get("a/b")
    assert found is not None
    assert found.decode() == 7
    assert [each.topic for each in mesh.retained.list("a/#")] == ["a/b"]
    mesh.retained.delete("a/b")
    assert mesh.retained.get("a/b") is None


def test_what_a_thread_sends_continues_what_it_deals_with(mesh: blocking.Mesh) -> None:
    """The trace is that of the thread: in `with job:`, and for everything that is sent there."""
    root = TraceContext.new("process-7")
    queue = mesh.queue("q")
    queue.declare()
    with continuing(root.headers()):
        queue.send(b"x")
    with mesh.subscribe("#") as messages, queue.consume() as jobs:
        with jobs.get(timeout_s=DEADLINE_S):
            mesh.publish("a")
            mesh.send("b")
            with mesh.publisher() as publisher:
                publisher.publish("c")
        mesh.publish("d")
        assert current_trace() is None
        found = {}
        for _ in range(4):
            message = messages.get(timeout_s=DEADLINE_S)
            found[message.topic] = TraceContext.from_headers(message.headers)
    assert found.pop("d") is None
    assert {each.trace_id for each in found.values() if each} == {root.trace_id}
    assert len(found) == 3


# -- workers ---------------------------------------------------------------------------------------


def test_a_worker_runs_plain_functions(mesh: blocking.Mesh) -> None:
    """With items of this face, in threads that may use the mesh."""
    queue = mesh.queue("q")
    queue.declare(dead_letter="dead")
    worker = mesh.worker(concurrency=2)

    @worker.queue("q", retry=Retry(attempts=2, backoff_s=0))
    def work(order: Order, job: blocking.Job) -> None:
        if order.number == 13:
            job.reject("unlucky")
        elif order.number == 14:
            raise OSError("no paper")
        else:
            mesh.publish("done", order)

    @worker.request("double")
    def double(order: Order) -> Order:
        return Order(order.number * 2)

    with mesh.subscribe("done") as done, ThreadPoolExecutor() as threads, ExitStack() as stack:
        end = threads.submit(worker.run)
        stack.callback(worker.stop)  # or the executor would wait for ever after a failure
        for number in (7, 13, 14):
            queue.send(Order(number))
        assert done.get(timeout_s=DEADLINE_S).decode(Order) == Order(7)
        with mesh.queue("dead").consume() as dead:
            reasons = {dead.get(timeout_s=DEADLINE_S).headers["x-dead-letter-reason"] for _ in "12"}
        assert reasons == {"unlucky", "OSError: no paper"}
        until(lambda: worker.statistics().is_running)
        assert mesh.request("double", Order(4)).decode(Order) == Order(8)
        worker.stop()
        end.result(DEADLINE_S)
    assert not worker.statistics().is_running


def test_a_worker_says_why_it_has_ended(mesh: blocking.Mesh) -> None:
    """The errors are those of the asynchronous worker."""
    worker = mesh.worker()

    @worker.queue("nowhere")
    def work(message: Message) -> None: ...

    with pytest.raises(NotFound):
        worker.run()


# -- the thread, its end, and signals --------------------------------------------------------------


def test_entering_fails_as_the_asynchronous_one_does() -> None:
    """And leaves no thread behind."""
    before = threading.active_count()
    with (
        pytest.raises(Unreachable),
        ganglion.sync.connect("ganglion://127.0.0.1:1", connect_timeout_s=1),
    ):
        pass
    until(lambda: threading.active_count() == before)


def test_leaving_ends_what_other_threads_wait_for(broker: RunningBroker) -> None:
    """Each of them gets `Closed`, and so does who comes later."""
    with ThreadPoolExecutor() as threads:
        with ganglion.sync.connect(broker.native_url) as mesh:
            messages = mesh.subscribe("a").__enter__()
            waiting = [threads.submit(messages.get) for _ in range(3)]
            until(lambda: messages._is_fetching)
        for each in waiting:
            with pytest.raises(Closed):
                each.result(DEADLINE_S)
    with pytest.raises(Closed):
        mesh.publish("a")
    with pytest.raises(Closed):
        mesh.send("a")
    messages.close()


def test_states_are_told(broker: RunningBroker) -> None:
    """A loop over them ends with the mesh."""
    with ThreadPoolExecutor() as threads:
        with ganglion.sync.connect(broker.native_url) as mesh:
            assert mesh.state.state == "open"
            assert mesh.greeting["limits"]
            seen = threads.submit(list, mesh.states())
        assert [each.state for each in seen.result(DEADLINE_S)][-1:] == ["closed"]


def test_what_is_not_entered_says_so(mesh: blocking.Mesh) -> None:
    """And twice is once too often."""
    messages = mesh.subscribe("a")
    with pytest.raises(BadOption, match="enter it first"):
        next(messages)
    with messages, pytest.raises(BadOption, match="entered already"):
        messages.__enter__()
    with pytest.raises(Refused), mesh.queue("nowhere").consume():
        pass


def test_an_interrupt_leaves_cleanly(mesh: blocking.Mesh) -> None:
    """Ctrl-C in a wait raises there; what was waited for is cancelled, and nothing is lost."""
    with mesh.subscribe("a") as messages:
        before = signal.signal(signal.SIGUSR1, _interrupt)
        try:
            timer = threading.Thread(target=_interrupt_when, args=(lambda: messages._is_fetching,))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                messages.get(timeout_s=DEADLINE_S)
            timer.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        until(lambda: not mesh.loop._started)
        mesh.publish("a", b"still here")
        assert messages.get(timeout_s=DEADLINE_S).payload == b"still here"


def _interrupt_when(condition: Callable[[], bool]) -> None:
    until(condition)
    os.kill(os.getpid(), signal.SIGUSR1)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


FORKING = """
import os, sys
import ganglion
with ganglion.sync.connect(sys.argv[1]) as mesh:
    child = os.fork()
    if child == 0:
        for use in (lambda: mesh.publish("a"), lambda: mesh.send("a")):
            try:
                use()
            except ganglion.Closed as error:
                print(error, flush=True)
    else:
        os.waitpid(child, 0)
        print(mesh.publish("a").subscribers, flush=True)
"""


@pytest.mark.slow
def test_a_forked_child_is_told_to_connect(broker: RunningBroker) -> None:
    """It has no thread of its parent: every use says so at once, leaving does no harm to it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, broker.native_url],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    *child, parent = done.stdout.splitlines()
    assert [each.endswith("connect in the child") for each in child] == [True, True]
    assert parent == "0"
    assert done.stderr == ""


WORKING = """
import sys
import ganglion
with ganglion.sync.connect(sys.argv[1]) as mesh:
    worker = mesh.worker()
    @worker.topic("a")
    def see(payload: bytes) -> None: ...
    with mesh.subscribe("ready") as ready:
        pass
    import threading, os, signal
    def later() -> None:
        while not worker.statistics().is_running: threading.Event().wait(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=later).start()
    worker.run()
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_signal_ends_a_worker_of_a_script(broker: RunningBroker) -> None:
    """SIGTERM to a program whose main thread runs the worker is a graceful end of it."""
    done = subprocess.run(
        [sys.executable, "-c", WORKING, broker.native_url],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("ended\n", "")


@pytest.mark.slow
def test_a_script_ends_although_its_mesh_was_not_closed(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """The thread does not keep the program: a mesh for the life of a process needs no closing."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, ganglion\n"
        "connection = ganglion.sync.connect(sys.argv[1])\n"
        "print(connection.__enter__().publish('a').subscribers)\n"
    )
    done = subprocess.run(
        [sys.executable, script, broker.native_url],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_posts_keep_their_order_and_come_before_calls() -> None:
    """Also when more are put than may wait; and the loop itself may not wait for itself."""
    seen: list[int] = []
    refused: list[Closed] = []

    async def look() -> int:
        try:
            loop.call(anyio.sleep, 0)
        except Closed as error:
            refused.append(error)
        return len(seen)

    with LoopThread() as loop:
        for number in range(5000):
            loop.post(seen.append, number)
        assert loop.call(look) == 5000
    assert seen == list(range(5000))
    assert "cannot wait for itself" in str(refused[0])
    with pytest.raises(Closed):
        loop.post(seen.append, 1)


def test_a_receipt_is_what_publish_gives(mesh: blocking.Mesh) -> None:
    """By its type, and the statistics of the node are there."""
    assert mesh.publish("a") == Receipt(0, 0, 0)
    assert mesh.statistics()
