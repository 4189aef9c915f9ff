"""The reactor under trio: deadlines, calls from elsewhere, draining, running out of descriptors."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ganglion.broker.net.listener import Listener
from tests.broker.net.hand_driven import Echo, HandDriven, Talker

ROOT = Path(__file__).resolve().parents[3]


@asynccontextmanager
async def running(hand: HandDriven) -> AsyncIterator[trio.Nursery]:
    """The reactor runs, beside trio's other tasks."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hand.reactor.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def connect(listener: Listener) -> trio.SocketStream:
    """A client."""
    return await trio.open_tcp_stream(listener.address.host, listener.address.port)


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    """Exactly so many bytes."""
    found = b""
    while len(found) < size:
        data = await stream.receive_some(size - len(found))
        assert data, "the connection ended early"
        found += data
    return found


async def until(condition: Callable[[], object]) -> None:
    """Let the reactor work until the condition is true; `running` bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await trio.sleep(0.001)


async def test_echo() -> None:
    """Many clients are served beside each other."""
    with HandDriven() as hand:
        listener = hand.listen(Echo)
        async with running(hand):

            async def talk(number: int) -> None:
                stream = await connect(listener)
                async with stream:
                    for turn in range(20):
                        data = b"%d %d" % (number, turn)
                        await stream.send_all(data)
                        assert await receive(stream, len(data)) == data

            async with trio.open_nursery() as clients:
                for number in range(20):
                    clients.start_soon(talk, number)


async def test_other_tasks_have_their_turns() -> None:
    """A reactor that always has work to do lets trio's other tasks go on."""
    with HandDriven() as hand:
        listener = hand.listen(Echo)
        turns = 0
        async with running(hand):
            stream = await connect(listener)

            async def pump() -> None:
                while True:
                    await stream.send_all(b"x" * 65_536)

            async def drink() -> None:
                while True:
                    await stream.receive_some(1 << 20)

            async with trio.open_nursery() as clients:
                clients.start_soon(pump)
                clients.start_soon(drink)
                while hand.statistics.bytes_received < 5_000_000:
                    await trio.lowlevel.checkpoint()
                    turns += 1
                clients.cancel_scope.cancel()
            await stream.aclose()
        assert turns > 20


async def test_a_deadline_set_before_the_start() -> None:
    """A timer that was set before `run` comes although nobody ever connects."""
    with HandDriven() as hand:
        called = trio.Event()
        hand.timers.after(0.01, lambda _: called.set())
        async with running(hand):
            await called.wait()


async def test_deadlines_one_after_the_other() -> None:
    """Deadlines come in order, without input, at about their time."""
    with HandDriven() as hand:
        seen: list[tuple[int, float]] = []
        done = trio.Event()
        started = time.monotonic()
        for number in (3, 1, 2):
            hand.timers.at(started + number / 50, lambda now, n=number: seen.append((n, now)))  # type: ignore[misc]  # binds n
        hand.timers.at(started + 0.08, lambda _: done.set())
        async with running(hand):
            await done.wait()
        assert [number for number, _ in seen] == [1, 2, 3]
        for number, now in seen:
            assert number / 50 <= now - started < number / 50 + 0.5


async def test_a_deadline_set_by_a_callback() -> None:
    """A callback may set the next deadline, again and again, as periodic work does."""
    with HandDriven() as hand:
        done = trio.Event()
        count = 0

        def again(now: float) -> None:
            nonlocal count
            count += 1
            if count == 10:
                done.set()
            else:
                hand.timers.at(now + 0.002, again)

        hand.timers.after(0.0, again)
        async with running(hand):
            await done.wait()


async def test_an_earlier_deadline_set_by_a_connection() -> None:
    """A deadline that input sets is kept although a later one was waited for already."""
    with HandDriven() as hand:
        fired = trio.Event()

        class Sets(Talker):
            def receive(self, data: bytes, now: float) -> None:
                super().receive(data, now)
                hand.timers.at(now + 0.01, lambda _: fired.set())

        hand.timers.after(3600, lambda _: None)
        listener = hand.listen(Sets)
        async with running(hand), await connect(listener) as stream:
            await stream.send_all(b"x")
            await fired.wait()


async def test_output_of_a_timer_is_sent() -> None:
    """What a timer's callback writes leaves at the end of its tick."""
    with HandDriven() as hand:
        listener = hand.listen()
        async with running(hand), await connect(listener) as stream:
            await until(lambda: hand.protocols)
            endpoint = hand.protocols[0].endpoint

            def set_a_timer() -> None:
                hand.timers.after(0.01, lambda _: endpoint.write(b"tick"))

            hand.reactor.call_soon(set_a_timer)
            assert await receive(stream, 4) == b"tick"


async def test_calls_from_a_thread() -> None:
    """`call_soon` from any thread is called in a tick, in order, in the reactor's thread."""
    with HandDriven() as hand:
        seen: list[tuple[int, int]] = []
        done = trio.Event()

        def work() -> None:
            for number in range(100):
                hand.reactor.call_soon(lambda n=number: seen.append((n, threading.get_ident())))  # type: ignore[misc]  # binds n
            hand.reactor.call_soon(done.set)

        async with running(hand):
            await trio.to_thread.run_sync(work)
            await done.wait()
        assert seen == [(number, threading.get_ident()) for number in range(100)]


async def test_drain() -> None:
    """`drain` ends when the last connection has."""
    with HandDriven() as hand:
        listener = hand.listen()
        async with running(hand):
            assert await hand.reactor.drain(1.0), "nobody is there"
            streams = [await connect(listener) for _ in range(3)]
            await until(lambda: len(hand.protocols) == 3)
            for protocol in hand.protocols:
                protocol.endpoint.write(b"bye")
                protocol.endpoint.close("drained")
            assert await hand.reactor.drain(5.0)
            for stream in streams:
                assert await receive(stream, 3) == b"bye"
                assert await stream.receive_some(1) == b""
                await stream.aclose()


async def test_drain_is_bounded() -> None:
    """A peer that does not go does not keep the node from stopping."""
    with HandDriven() as hand:
        listener = hand.listen()
        async with running(hand), await connect(listener):
            await until(lambda: hand.protocols)
            started = time.monotonic()
            assert not await hand.reactor.drain(0.05)
            assert time.monotonic() - started < 2


async def test_cancelling() -> None:
    """A cancelled reactor can be closed, and its connections end."""
    with HandDriven() as hand:
        listener = hand.listen(Echo)
        async with running(hand):
            stream = await connect(listener)
            await stream.send_all(b"x")
            assert await receive(stream, 1) == b"x"
    async with stream:
        assert await stream.receive_some(1) == b""


async def test_an_idle_reactor_sleeps() -> None:
    """Without input and deadlines nothing is done: a second of idling costs no ticks."""
    with HandDriven() as hand:
        hand.listen()
        async with running(hand):
            await trio.testing.wait_all_tasks_blocked(0.05)
            ticks = hand.ticks_ended
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert hand.ticks_ended == ticks


PROGRAM = """
import os, resource, sys, time
import trio
from tests.broker.net.hand_driven import Echo, HandDriven

async def main():
    with HandDriven() as hand:
        listener = hand.listen(Echo)

        def watch():
            for line in sys.stdin:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hand.reactor.run)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
            began = time.process_time()
            print(listener.address.port, flush=True)
            await trio.to_thread.run_sync(watch)
            spent = time.process_time() - began
            pauses = [event for event, _ in hand.log.events if "cannot accept" in event]
            print(len(hand.protocols), len(pauses), round(spent, 3), flush=True)
            nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.slow
async def test_running_out_of_descriptors() -> None:
    """Out of descriptors the reactor neither spins nor stops: it accepts again when it can."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        with trio.fail_after(30):
            port = int(await process.stdout.receive_some(100))  # one short line, one write
            waiting = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(30)]
            for stream in waiting:
                await stream.send_all(b"x")
            served = 0
            while waiting:
                # those in front are served: when they go, the next ones are
                stream = waiting.pop(0)
                assert await receive(stream, 1) == b"x"
                await stream.aclose()
                served += 1
            assert served == 30
            await process.stdin.aclose()
            report = b"".join([each async for each in process.stdout]).decode().split()
            await process.wait()
    accepted, pauses, cpu_s = int(report[0]), int(report[1]), float(report[2])
    assert accepted == 30
    assert 1 <= pauses < 20
    assert cpu_s < 1.5
    assert process.returncode == 0
