"""How fast the native protocol is: ``python -m bench.native``.

Messages beside MQTT on the same node, with the same load program, in turn. Streams and requests,
of which MQTT has no like, with small clients of this module: one that appends batches made before,
several under way, one that follows, one that asks, and a process that answers. Everything durable
is synced before it is acknowledged.

Each figure is the median of several runs.
"""

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event as EventType
from pathlib import Path
from typing import Any

import msgpack

from bench import load
from bench.brokers import BenchmarkError, Broker, raise_file_limit, start
from bench.table import render_table
from ganglion.protocols.native.operations import Operation

__all__ = ["Client", "Figure", "measure"]

_MESSAGES: dict[str, tuple[str, ...]] = {
    "unconfirmed, 1 to 1": (),
    "unconfirmed, 1 to 1, 64 a write": ("--batch", "64"),
    "unconfirmed, 1 to 100": ("--subs", "100"),
    "confirmed, 10 to 10": ("--pubs", "10", "--subs", "10", "--topics", "10", "--qos", "1"),
    "confirmed into a queue, window 1000": (
        *("--queues", "--qos", "1", "--window", "1000", "--subs", "0"),
    ),
}
_BATCH = 1000
_RECORD = bytes(100)
_BATCHES_UNDER_WAY = 8
_IN_FLIGHT = 64
_SETTLE_S = 0.3
_READY_S = 10
_READ_BYTES = 64 * 1024  # more is slower: Python reserves all of it for each read


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, in which unit, and the same over MQTT where it has that."""

    name: str
    unit: str
    native: float
    mqtt: float | None = None


class Client:
    """A client that blocks: as little as a measurement needs."""

    def __init__(self, broker: Broker) -> None:
        self.socket = socket.create_connection(("127.0.0.1", broker.ports["native"]))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=2**30)
        options = {"keep_alive_s": 0, "user": broker.user, "password": broker.password}
        self.call([Operation.HELLO, 1, 1, options])

    def call(self, frame: Sequence[Any]) -> Any:
        """Send a request, and wait for its answer."""
        self.socket.sendall(msgpack.packb(frame))
        answer = self.next()
        if answer[0] == Operation.ERROR:
            raise BenchmarkError(f"{frame[:3]}: {answer[2:]}")
        return answer

    def next(self) -> tuple[Any, ...]:
        """The next frame."""
        while True:
            for frame in self.unpacker:
                found: tuple[Any, ...] = frame
                return found
            self.read()

    def read(self) -> None:
        """Wait for more."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise BenchmarkError("the node closed the connection")
        self.unpacker.feed(data)

    def close(self) -> None:
        """Cut the connection."""
        self.socket.close()


def _append(broker: Broker, seconds: float) -> float:
    """Records a second that one client appends."""
    client = Client(broker)
    client.call([Operation.STREAM_DECLARE, 2, "bench"])
    head = msgpack.packb([_BATCH] * _BATCH)[:3]  # an array of so many
    body = msgpack.packb("bench") + head + msgpack.packb(_RECORD) * _BATCH

    def frame(number: int) -> bytes:
        return bytes((0x94, Operation.APPEND_BATCH)) + msgpack.packb(number) + body

    number = done = 0
    for number in range(1, _BATCHES_UNDER_WAY + 1):
        client.socket.sendall(frame(number))
    began, until = time.perf_counter(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        answer = client.next()
        if answer[0] != Operation.OK:
            raise BenchmarkError(f"an append failed: {answer}")
        done += 1
        number += 1
        client.socket.sendall(frame(number))
    elapsed = time.perf_counter() - began
    client.close()
    return done * _BATCH / elapsed


def _follow(broker: Broker, _seconds: float) -> float:
    """Records a second that one client gets of what is there."""
    client = Client(broker)
    *_, result = client.call([Operation.FOLLOW, 2, "bench", {"after": 0}])
    last, seen = result["last"], 0
    began = time.perf_counter()
    while seen < last:
        frame = client.next()
        seen = frame[2] + len(frame[5]) - 1
    elapsed = time.perf_counter() - began
    client.close()
    return float(last) / elapsed


def _answer(broker: Broker, is_ready: EventType) -> None:
    """Answer what is asked, until the node ends or the process is."""
    client = Client(broker)
    client.call([Operation.SERVE, 2, "bench/+", {"credit": 1000}])
    is_ready.set()
    pack = msgpack.Packer().pack
    while True:
        client.read()
        answers = [pack((Operation.ANSWER, 0, 2, frame[2], b"answer")) for frame in client.unpacker]
        client.socket.sendall(b"".join(answers))


def _latency(broker: Broker, seconds: float) -> float:
    """Microseconds from a request to its answer, one at a time, the median."""
    client = Client(broker)
    times: list[float] = []
    until = time.perf_counter() + seconds
    number = 2
    while time.perf_counter() < until:
        number += 1
        began = time.perf_counter()
        client.socket.sendall(msgpack.packb((Operation.REQUEST, number, "bench/ask", b"question")))
        answer = client.next()
        times.append(time.perf_counter() - began)
        if answer[0] != Operation.REPLY:
            raise BenchmarkError(f"a request failed: {answer}")
    client.close()
    return statistics.median(times) * 1e6


def _requests(broker: Broker, seconds: float) -> float:
    """Requests a second with many under way."""
    client = Client(broker)
    number, done = 2 + _IN_FLIGHT, 0
    pack = msgpack.Packer().pack
    frames = [
        msgpack.packb((Operation.REQUEST, each, "bench/ask", b"question"))
        for each in range(3, number + 1)
    ]
    client.socket.sendall(b"".join(frames))
    began, until = time.perf_counter(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        client.read()
        frames = []
        for answer in client.unpacker:
            if answer[0] != Operation.REPLY:
                raise BenchmarkError(f"a request failed: {answer}")
            number += 1
            frames.append(pack((Operation.REQUEST, number, "bench/ask", b"question")))
        done += len(frames)
        client.socket.sendall(b"".join(frames))
    elapsed = time.perf_counter() - began
    client.close()
    return done / elapsed


def _messages(broker: Broker, words: Sequence[str], seconds: float) -> float:
    run = load.run(broker, words, duration_s=seconds)
    return max(run.delivered_per_s, run.acked_per_s)


def measure(broker: Broker, *, runs: int, seconds: float) -> list[Figure]:
    """Every figure. Raises `BenchmarkError`."""

    def median(one: Callable[[], float]) -> float:
        return statistics.median(one() for _ in range(runs))

    figures: list[Figure] = []
    for name, words in _MESSAGES.items():
        natives: list[float] = []
        others: list[float] = []
        for _ in range(runs):
            others.append(_messages(broker, words, seconds))
            natives.append(_messages(broker, ("--native", *words), seconds))
        unit = "messages/s" if "100" not in name else "deliveries/s"
        figures.append(Figure(name, unit, statistics.median(natives), statistics.median(others)))
    appended = median(lambda: _append(broker, seconds))
    figures.append(Figure("append, 1,000 of 100 B a batch", "records/s", appended))
    time.sleep(_SETTLE_S)
    followed = median(lambda: _follow(broker, seconds))
    figures.append(Figure("follow what is there", "records/s", followed))
    is_ready = multiprocessing.Event()
    answering = multiprocessing.Process(target=_answer, args=(broker, is_ready), daemon=True)
    answering.start()
    try:
        if not is_ready.wait(_READY_S):
            raise BenchmarkError("nobody answers requests")
        microseconds = median(lambda: _latency(broker, seconds))
        many = median(lambda: _requests(broker, seconds))
    finally:
        answering.terminate()
        answering.join()
    figures.append(Figure("request, one at a time, p50", "µs", microseconds))
    figures.append(Figure(f"request, {_IN_FLIGHT} under way", "requests/s", many))
    return figures


def _render(figures: Sequence[Figure]) -> str:
    body = [
        [
            each.name,
            each.unit,
            f"{each.native:,.0f}",
            "" if each.mqtt is None else f"{each.mqtt:,.0f}",
            "" if not each.mqtt else f"{each.native / each.mqtt:.2f}",
        ]
        for each in figures
    ]
    head = ("", "", "native", "MQTT", "native / MQTT")
    return render_table(head, body, (False, False, True, True, True))


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each kind (3)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each run (2)")
    options = parser.parse_args()
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            start("ganglion", Path(directory) / "broker") as broker,
        ):
            print(_render(measure(broker, runs=options.runs, seconds=options.seconds)))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
