"""A long backlog: how soon a node with it is there, what it costs, how fast it is consumed.

The queue is filled in this process, through the same core and store that a daemon has, since over
the network ten million messages would take the longest part of the benchmark.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from struct import Struct

import structlog

from bench import load
from bench.brokers import BenchmarkError, Broker, resident_bytes, start
from ganglion.broker.core.access import Access
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.node import Node
from ganglion.broker.core.timers import Timers
from ganglion.broker.store.rocksdb import RocksStore
from ganglion.protocols.mqtt.codec import encode
from ganglion.protocols.mqtt.packets import V311, Connect, Subscribe, SubscriptionRequest

__all__ = ["Backlog", "fill", "measure_backlog"]

QUEUE = "$queue/bench0"  # that of the load program
_SIZE_BYTES = 256
_HEAD = Struct("=QII")  # what the load program expects: time, publisher, sequence
_COMMIT_MESSAGES = 10_000
_DRAIN_S = 5.0
_FIRST_S = 60.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What was measured of a node with a long backlog."""

    first_s: float
    """From the start of the process until a consumer had the first message, log-in included."""
    memory_bytes: int
    """The most that was resident, while it was consumed too."""
    consumed_per_s: float
    faults: int
    """Messages out of order or twice."""


def fill(directory: Path, messages: int) -> None:
    """Put so many messages into `QUEUE` of a new store, synced as a daemon does it."""
    calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
    failures: list[str] = []
    store = RocksStore(directory, in_core=calls.put, fatal=failures.append)
    node = Node(
        limits=Limits(),
        access=Access.open(),
        store=store,
        timers=Timers(0.0),
        log=structlog.get_logger(),
        sys_interval_s=0.0,
        wall_clock_offset_s=time.time(),
    )
    node.sources.make(QUEUE)
    taker = node.router.route(QUEUE).taker
    assert taker is not None
    rest = bytes(_SIZE_BYTES - _HEAD.size)
    for first in range(1, messages + 1, _COMMIT_MESSAGES):
        numbers = range(first, min(first + _COMMIT_MESSAGES, messages + 1))
        taker.deliver_run(QUEUE, [_HEAD.pack(0, 0, number) + rest for number in numbers], 1)
        done: list[bool] = []
        node.journal.commits.after_commit(lambda: done.append(True))  # noqa: B023 - run at once
        node.flush()
        while not done:
            calls.get()()
            if failures:
                raise BenchmarkError(failures[0])
    node.close()
    store.close()


def measure_backlog(directory: Path, messages: int) -> Backlog:
    """Fill a store, start a node on it, and consume from it for some seconds."""
    fill(directory / "data" / "store", messages)
    with start("ganglion", directory / "node", data=directory / "data") as broker:
        first_s = _first_delivery(broker) - broker.started_s
        words = ["--queues", "--qos", "1", "--pubs", "0", "--subs", "1", "--owed", str(messages)]
        words += ["--size", str(_SIZE_BYTES)]
        run = load.run(broker, words, duration_s=_DRAIN_S, warmup_s=0.0)
        memory = resident_bytes(broker.pid, peak=True)
        return Backlog(first_s, memory, run.delivered_per_s, run.disordered)


def _first_delivery(broker: Broker) -> float:
    """Subscribe, and say by the monotonic clock when the first message came."""
    assert broker.user is not None
    hello = Connect(V311, "first", username=broker.user, password=broker.password.encode())
    wanted = Subscribe(1, [SubscriptionRequest(QUEUE, 1)])
    address = ("127.0.0.1", broker.ports["mqtt"])
    with socket.create_connection(address, timeout=_FIRST_S) as connection:
        connection.sendall(encode(hello, V311))
        if connection.recv(4)[3:] != b"\0":
            raise BenchmarkError("the node refused to connect")
        connection.sendall(encode(wanted, V311))
        got = 0
        while got < _SIZE_BYTES:  # SUBACK is much smaller than the message
            data = connection.recv(65_536)
            if not data:
                raise BenchmarkError("the node closed the connection")
            got += len(data)
        return time.monotonic()
