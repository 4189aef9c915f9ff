"""Programs as users write them, with three client libraries: what `bench.client` measures.

    python -m bench.client_programs LIBRARY LOOP MEASURE SHARE PORT FEED_PORT [USER PASSWORD]

runs one of them and prints one number: something a second, or microseconds. Each library does the
same thing in the way that its own documentation shows. What feeds a subscriber is a process that
writes ready-made bytes and never runs more than a window ahead of it, so that nothing is dropped.
"""

import asyncio
import multiprocessing
import os
import socket
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import anyio

__all__ = ["LIBRARIES", "MEASURES", "Program", "run"]

PAYLOAD: Final = bytes(64)
IN_FLIGHT: Final = 1000
MESSAGES: Final = {
    "publish": 300_000,
    "confirmed": 60_000,
    "consume": 60_000,
    "subscribe": 200_000,
    "request": 3000,
}
"""How many a measurement takes; those of the slower libraries are fewer (`Program.share`)."""
_FEED_WINDOW: Final = 10_000
_READY_S: Final = 30
_FEED_BLOCK: Final = 200
_FEED_PAUSE_S: Final = 0.0002


class Program(ABC):
    """One library; each method gives the time that the thing took, in seconds."""

    share = 1.0
    """Of `MESSAGES`: enough for a second or two."""

    def __init__(self, port: int, feed_port: int, user: str | None, password: str) -> None:
        self.port = port
        self.feed_port = feed_port
        self.user = user
        self.password = password

    @abstractmethod
    async def publish(self, count: int) -> float:
        """Publish without confirmation, until the broker has read all of it."""

    @abstractmethod
    async def confirmed(self, count: int) -> float:
        """Publish to what is durable, `IN_FLIGHT` at a time, until all are confirmed."""

    @abstractmethod
    async def fill(self, count: int) -> None:
        """Put so many into a durable queue, to be consumed by `consume`."""

    @abstractmethod
    async def consume(self, count: int) -> float:
        """Consume and acknowledge so many."""

    @abstractmethod
    async def subscribe(self, count: int, on_each: Callable[[], None], on_open: Any) -> float:
        """Receive so many, telling of each; ``on_open`` is called when they may come."""

    @abstractmethod
    async def request(self, count: int) -> list[float]:
        """Ask, one at a time; how long each answer took."""

    @abstractmethod
    async def respond(self, on_open: Any) -> None:
        """Answer what is asked, for ever."""

    @abstractmethod
    def feed(self, stream: socket.socket) -> bytes:
        """Greet the broker on this connection; the bytes of one message to what is subscribed."""


class Ganglion(Program):
    """The client of this project."""

    def _connect(self) -> Any:
        from ganglion.clients.mesh import connect  # noqa: PLC0415 - a program loads one library

        url = f"ganglion://127.0.0.1:{self.port}"
        return connect(url, user=self.user, password=self.password or None)

    async def publish(self, count: int) -> float:
        async with self._connect() as mesh:
            began = time.perf_counter()
            for _ in range(count):
                await mesh.send("bench/none", PAYLOAD)
            await mesh.flush(timeout_s=60)
            return time.perf_counter() - began

    async def confirmed(self, count: int) -> float:
        async with self._connect() as mesh:
            await mesh.queue("bench").declare(bindings=["bench/kept"])
            began = time.perf_counter()
            async with mesh.publisher(in_flight=IN_FLIGHT) as publisher:
                for _ in range(count):
                    await publisher.publish("bench/kept", PAYLOAD)
            elapsed = time.perf_counter() - began
            await mesh.queue("bench").purge()
            return elapsed

    async def fill(self, count: int) -> None:
        async with self._connect() as mesh:
            await mesh.queue("bench").declare(bindings=["bench/kept"])
            async with mesh.publisher() as publisher:
                for _ in range(count):
                    await publisher.publish("bench/kept", PAYLOAD)

    async def consume(self, count: int) -> float:
        async with self._connect() as mesh:
            left = count
            began = time.perf_counter()
            async with mesh.queue("bench").consume(prefetch=IN_FLIGHT) as jobs:
                async for job in jobs:
                    async with job:
                        left -= 1
                    if not left:
                        break
            return time.perf_counter() - began

    async def subscribe(self, count: int, on_each: Callable[[], None], on_open: Any) -> float:
        async with (
            self._connect() as mesh,
            mesh.subscribe("bench/fed", buffer=2 * _FEED_WINDOW) as messages,
        ):
            on_open()
            began = time.perf_counter()
            async for _ in messages:
                on_each()
                count -= 1
                if not count:
                    break
            return time.perf_counter() - began

    async def request(self, count: int) -> list[float]:
        times: list[float] = []
        async with self._connect() as mesh:
            for _ in range(count):
                began = time.perf_counter()
                await mesh.request("bench/ask", PAYLOAD)
                times.append(time.perf_counter() - began)
        return times

    async def respond(self, on_open: Any) -> None:
        async with self._connect() as mesh, mesh.serve("bench/ask") as requests:
            on_open()
            async for request in requests:
                await request.reply(PAYLOAD)

    def feed(self, stream: socket.socket) -> bytes:
        return _greet_mqtt(stream, self.user, self.password)


class Nats(Program):
    """nats-py, with JetStream for what is durable."""

    async def _connect(self) -> Any:
        import nats  # noqa: PLC0415 - a program loads one library

        return await nats.connect(f"nats://127.0.0.1:{self.port}")

    async def publish(self, count: int) -> float:
        client = await self._connect()
        began = time.perf_counter()
        for _ in range(count):
            await client.publish("bench.none", PAYLOAD)
        await client.flush(60)
        elapsed = time.perf_counter() - began
        await client.close()
        return elapsed

    async def confirmed(self, count: int) -> float:
        client = await self._connect()
        await _make_jetstream(client)
        stream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
        began = time.perf_counter()
        for _ in range(count):
            await stream.publish_async("kept.1", PAYLOAD)
        await stream.publish_async_completed()
        elapsed = time.perf_counter() - began
        await client.jetstream().purge_stream("kept")
        await client.close()
        return elapsed

    async def fill(self, count: int) -> None:
        client = await self._connect()
        await _make_jetstream(client)
        stream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
        for _ in range(count):
            await stream.publish_async("kept.1", PAYLOAD)
        await stream.publish_async_completed()
        await client.close()

    async def consume(self, count: int) -> float:
        client = await self._connect()
        pull = await client.jetstream().pull_subscribe("kept.1", durable="bench")
        began = time.perf_counter()
        while count > 0:
            for message in await pull.fetch(min(IN_FLIGHT, count)):
                await message.ack()
                count -= 1
        await client.flush(60)
        elapsed = time.perf_counter() - began
        await client.close()
        return elapsed

    async def subscribe(self, count: int, on_each: Callable[[], None], on_open: Any) -> float:
        client = await self._connect()
        subscription = await client.subscribe("bench.fed")
        await client.flush()
        on_open()
        began = time.perf_counter()
        async for _ in subscription.messages:
            on_each()
            count -= 1
            if not count:
                break
        elapsed = time.perf_counter() - began
        await client.close()
        return elapsed

    async def request(self, count: int) -> list[float]:
        client = await self._connect()
        times: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await client.request("bench.ask", PAYLOAD)
            times.append(time.perf_counter() - began)
        await client.close()
        return times

    async def respond(self, on_open: Any) -> None:
        client = await self._connect()
        subscription = await client.subscribe("bench.ask")
        await client.flush()
        on_open()
        async for message in subscription.messages:
            await message.respond(PAYLOAD)

    def feed(self, stream: socket.socket) -> bytes:
        stream.recv(4096)
        stream.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
        return b"PUB bench.fed %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD)


class Aiomqtt(Program):
    """aiomqtt (on paho-mqtt), with a session of QoS 1 for what is durable."""

    share = 0.1

    def _connect(self, **options: Any) -> Any:
        import aiomqtt  # noqa: PLC0415 - a program loads one library

        return aiomqtt.Client(
            "127.0.0.1",
            self.port,
            max_concurrent_outgoing_calls=IN_FLIGHT,
            max_inflight_messages=IN_FLIGHT,
            **options,
        )

    async def publish(self, count: int) -> float:
        async with self._connect() as client:
            began = time.perf_counter()
            for _ in range(count):
                await client.publish("bench/none", PAYLOAD)
            await client.publish("bench/none", PAYLOAD, qos=1)
            return time.perf_counter() - began

    async def confirmed(self, count: int) -> float:
        limit = anyio.Semaphore(IN_FLIGHT)
        async with self._connect() as client:

            async def one() -> None:
                await client.publish("bench/none", PAYLOAD, qos=1, timeout=60)
                limit.release()

            began = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for _ in range(count):
                    await limit.acquire()
                    tasks.start_soon(one)
            return time.perf_counter() - began

    async def fill(self, count: int) -> None:
        async with self._connect(identifier="bench", clean_session=False) as client:
            await client.subscribe("bench/kept", qos=1)
        async with self._connect() as client:
            for _ in range(count):
                await client.publish("bench/kept", PAYLOAD, qos=1)

    async def consume(self, count: int) -> float:
        began = time.perf_counter()
        async with self._connect(identifier="bench", clean_session=False) as client:
            async for _ in client.messages:
                count -= 1
                if not count:
                    break
            return time.perf_counter() - began

    async def subscribe(self, count: int, on_each: Callable[[], None], on_open: Any) -> float:
        async with self._connect() as client:
            await client.subscribe("bench/fed")
            on_open()
            began = time.perf_counter()
            async for _ in client.messages:
                on_each()
                count -= 1
                if not count:
                    break
            return time.perf_counter() - began

    async def request(self, count: int) -> list[float]:
        times: list[float] = []
        async with self._connect() as client:
            await client.subscribe("bench/reply")
            for _ in range(count):
                began = time.perf_counter()
                await client.publish("bench/ask", PAYLOAD)
                await anext(client.messages)
                times.append(time.perf_counter() - began)
        return times

    async def respond(self, on_open: Any) -> None:
        async with self._connect() as client:
            await client.subscribe("bench/ask")
            on_open()
            async for _ in client.messages:
                await client.publish("bench/reply", PAYLOAD)

    def feed(self, stream: socket.socket) -> bytes:
        return _greet_mqtt(stream, self.user, self.password)


LIBRARIES: Final[dict[str, type[Program]]] = {
    "ganglion": Ganglion,
    "nats-py": Nats,
    "aiomqtt": Aiomqtt,
}
MEASURES: Final = ("publish", "confirmed", "consume", "subscribe", "request")


async def _make_jetstream(client: Any) -> None:
    """A stream on disk that forgets what is acknowledged; harmless when repeated."""
    await client.jetstream().add_stream(name="kept", subjects=["kept.>"], retention="workqueue")


def _greet_mqtt(stream: socket.socket, user: str | None, password: str) -> bytes:
    def field(data: bytes) -> bytes:
        return len(data).to_bytes(2, "big") + data

    flags, login = 0x02, b""
    if user is not None:
        flags, login = 0xC2, field(user.encode()) + field(password.encode())
    body = field(b"MQTT") + bytes((4, flags, 0, 0)) + field(b"feeder") + login
    stream.sendall(bytes((0x10, len(body))) + body)
    stream.recv(4)
    body = field(b"bench/fed") + PAYLOAD
    return bytes((0x30, len(body))) + body


def _feed(program: Program, received: Any, is_open: Any) -> None:
    with socket.create_connection(("127.0.0.1", program.feed_port)) as stream:
        block = program.feed(stream) * _FEED_BLOCK
        is_open.wait()
        sent = 0
        while True:
            while sent - received.value > _FEED_WINDOW:
                time.sleep(_FEED_PAUSE_S)
            stream.sendall(block)
            sent += _FEED_BLOCK


def _respond(program: Program, is_open: Any) -> None:
    asyncio.run(program.respond(is_open.set))


async def _measured(
    program: Program, measure: str, share: float, received: Any, is_open: Any
) -> float:
    count = int(MESSAGES[measure] * program.share * share)
    match measure:
        case "publish":
            return count / await program.publish(count)
        case "confirmed":
            return count / await program.confirmed(count)
        case "consume":
            await program.fill(count)
            return count / await program.consume(count)
        case "subscribe":

            def on_each() -> None:
                received.value += 1

            return count / await program.subscribe(count, on_each, is_open.set)
        case _:
            times = await program.request(count)
            return statistics.median(times) * 1e6


def run(program: Program, loop: str, measure: str, *, share: float) -> float:
    """Measure under ``asyncio``, ``uvloop`` or ``trio``; ``share`` of the usual count."""
    received, is_open = multiprocessing.RawValue("Q", 0), multiprocessing.Event()
    other: multiprocessing.Process | None = None
    if measure == "subscribe":
        other = multiprocessing.Process(target=_feed, args=(program, received, is_open))
    elif measure == "request":
        other = multiprocessing.Process(target=_respond, args=(program, is_open))
    if other is not None:
        other.start()  # before there is a loop, of which a child would have a copy
    if measure == "request" and not is_open.wait(_READY_S):
        raise TimeoutError("nobody answers requests")
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    backend = "trio" if loop == "trio" else "asyncio"
    try:
        return anyio.run(
            _measured,
            program,
            measure,
            share,
            received,
            is_open,
            backend=backend,
            backend_options=options,
        )
    finally:
        if other is not None:
            other.kill()
            other.join()


if __name__ == "__main__":
    library, loop_name, what, share, port_text, feed_port_text, *login = sys.argv[1:]
    multiprocessing.set_start_method("fork")
    user_name, secret = login or (None, "")
    chosen = LIBRARIES[library](int(port_text), int(feed_port_text), user_name, secret)
    print(run(chosen, loop_name, what, share=float(share)), flush=True)
    os._exit(0)  # some libraries leave threads that would be waited for
