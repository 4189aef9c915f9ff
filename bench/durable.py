"""How fast Ganglion is with what it keeps: `make bench-durable`, or ``python -m bench.durable``.

Beside it in the same minutes: NATS JetStream, once with its default (it syncs every two minutes)
and once with a sync before every acknowledgement, which is what Ganglion does, and RabbitMQ with
persistent messages and confirms. What is asked of transient messages is that keeping others costs
them nothing: they are held against a version from before, run from a worktree of its own.

Each figure is the median of several runs, in turn with what it is compared with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import ganglion
from bench import load
from bench.backlog import measure_backlog
from bench.brokers import (
    DURABLE_BROKERS,
    BenchmarkError,
    Broker,
    raise_file_limit,
    start,
    versions,
)
from bench.table import render_table
from ganglion.broker.store import Kind
from ganglion.broker.store.rocksdb import RocksStore

__all__ = ["SCENARIOS", "Figure", "Plan", "at_least", "at_most", "render"]

BASE_COMMIT = "468f650"
"""The last version without queues and streams: what transient messages cost then."""

_ROOT = Path(__file__).parent.parent
_SYNCS = 300
_SYNC_BYTES = 300  # about what one message adds to a log
_QUEUE = ("--queues", "--qos", "1", "--size", "256", "--outstanding", "5000")
_MANY = (*_QUEUE, "--pubs", "10", "--window", "100", "--batch", "10")
_TRANSIENT = ("--outstanding", "200")
"""One publisher to one subscriber as fast as it goes, with so few on the way that the latency is
what the node takes and not how long the row in front is."""
_SLOW_S = 6.0  # JetStream with a sync a message takes more than a second for what is on the way
_SESSIONS = 1000
_BEFORE = {
    "QoS 0, 1 to 1": (),
    "QoS 0, 1 to 100": ("--subs", "100"),
    "QoS 0, 100 to 100": ("--pubs", "100", "--subs", "100", "--topics", "100"),
    "QoS 1, 10 to 10": (
        *("--pubs", "10", "--subs", "10", "--topics", "10", "--window", "20", "--qos", "1"),
    ),
}
_TITLES = {
    "jetstream": "JetStream",
    "jetstream-always": "JetStream, sync always",
    "rabbitmq": "RabbitMQ",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    title: str
    goal: str
    value: str
    against: str
    """What it is compared with, as it was measured; empty: nothing."""
    ratio: float | None
    reached: bool | None
    """None: nothing is asked of it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    brokers: tuple[str, ...]
    rounds: int
    duration_s: float
    backlog: int
    """How many messages wait in a long backlog."""
    base: bool
    """Whether to compare with `BASE_COMMIT`."""


def at_least(title: str, value: float, factor: float, name: str, other: float | None) -> Figure:
    """A rate that has to be so many times that of another; None: that one was not measured."""
    goal = f">= {factor:g}x {name}"
    if not other:
        return Figure(title, goal, f"{value:,.0f} /s", "", None, None)
    ratio = value / other
    return Figure(title, goal, f"{value:,.0f} /s", f"{other:,.0f} /s", ratio, ratio >= factor)


def at_most(title: str, value: float, bound: float, unit: str, against: str = "") -> Figure:
    """Something of which there may be so much."""
    goal = f"<= {bound:,.0f} {unit}"
    return Figure(title, goal, f"{value:,.0f} {unit}", against, None, value <= bound)


def _faster(title: str, value: float, bound: float) -> Figure:
    return Figure(title, f">= {bound:,.0f} /s", f"{value:,.0f} /s", "", None, value >= bound)


def render(figures: Sequence[Figure]) -> str:
    """The table as aligned Markdown."""
    head = ["what", "figure to reach", "Ganglion", "beside it", "ratio", "reached"]
    body = [
        [
            each.title,
            each.goal,
            each.value,
            each.against,
            "" if each.ratio is None else f"{each.ratio:.2f}",
            {None: "", True: "yes", False: "NO"}[each.reached],
        ]
        for each in figures
    ]
    return render_table(head, body, [False, False, True, True, True, False])


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(broker: Broker, options: Sequence[str], plan: Plan, duration_s: float = 0.0) -> load.Run:
    run = load.run(broker, options, duration_s=duration_s or plan.duration_s)
    _tell(
        f"  {broker.name:<22} {run.published_per_s:>9,.0f} in/s "
        f"{run.delivered_per_s:>9,.0f} out/s  "
        f"p50 {run.p50_us:,.0f} us, p99 {run.p99_us:,.0f} us, acknowledged p50 "
        f"{run.ack_p50_us:,.0f} us, broker {run.broker_cpu:.2f} cores, load {run.load_cpu:.2f}"
    )
    if run.disordered or run.refused or (run.lost and "1" in options and "--qos" in options):
        raise BenchmarkError(
            f"{broker.name}: {run.lost} lost, {run.disordered} out of order or twice, "
            f"{run.refused} refused"
        )
    return run


def _queue(plan: Plan, directory: Path) -> list[Figure]:
    """Ten publishers into a queue, and ten consumers out of it; then nobody takes anything."""
    figures: list[Figure] = []
    for title, consumers in (("durable queue, in and out", "10"), ("the same, in only", "0")):
        _tell(f" {title}:")
        rates: dict[str, list[float]] = {which: [] for which in plan.brokers}
        with ExitStack() as stack:
            place = directory / f"consumers-{consumers}"
            brokers = {
                which: stack.enter_context(start(which, place / which)) for which in plan.brokers
            }
            options = (*_MANY, "--subs", consumers)
            for number in range(plan.rounds):
                for which in plan.brokers[:: -1 if number % 2 else 1]:
                    longer_s = _SLOW_S if which == "jetstream-always" else 0.0
                    run = _run(brokers[which], options, plan, longer_s)
                    rate = run.delivered_per_s if consumers != "0" else run.acked_per_s
                    rates[which].append(rate)
        middle = {which: statistics.median(found) for which, found in rates.items()}
        for which, factor in (("jetstream-always", 10), ("jetstream", 1), ("rabbitmq", 10)):
            if consumers == "0" and which != "jetstream-always":
                continue  # a queue of which nobody takes anything is asked for once
            own = middle["ganglion"]
            figures.append(at_least(title, own, factor, _TITLES[which], middle.get(which)))
    return figures


def _beside(plan: Plan, directory: Path) -> list[Figure]:
    """The durable queue alone, and beside transient messages that leave the node no rest."""
    options = (*_MANY, "--subs", "10")
    alone: list[float] = []
    beside: list[float] = []
    transient: list[load.Run] = []
    with start("ganglion", directory / "beside") as broker, ThreadPoolExecutor() as pool:
        for _ in range(plan.rounds):
            alone.append(_run(broker, options, plan).delivered_per_s)
            # the transient load begins before and ends after what is measured
            other = pool.submit(_run, broker, _TRANSIENT, plan, plan.duration_s + 0.6)
            beside.append(_run(broker, options, plan).delivered_per_s)
            transient.append(other.result())
    rate = statistics.median([run.delivered_per_s for run in transient])
    p99_us = statistics.median([run.p99_us for run in transient])
    title = "durable queue beside transient load"
    return [
        at_least(title, statistics.median(beside), 0.3, "alone", statistics.median(alone)),
        at_most("the transient load's p99", p99_us, 10_000, "us", f"{rate:,.0f} /s"),
    ]


def _sync_us(directory: Path) -> float:
    """What appending a little to a file and `fdatasync` takes here, in microseconds: the median."""
    times: list[float] = []
    descriptor = os.open(directory / "syncs", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(_SYNCS):
            os.write(descriptor, bytes(_SYNC_BYTES))
            began = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
    return statistics.median(times) * 1e6


def _latency(plan: Plan, directory: Path) -> list[Figure]:
    """One publisher that waits for each acknowledgement, and the bare disk."""
    syncs: list[float] = []
    acks: list[float] = []
    with start("ganglion", directory / "latency") as broker:
        for _ in range(plan.rounds):
            syncs.append(_sync_us(directory))
            run = _run(broker, (*_QUEUE, "--subs", "0", "--window", "1"), plan)
            acks.append(run.ack_p50_us)
    sync_us = statistics.median(syncs)
    bound = 1.5 * sync_us + 100
    text = f"{sync_us:,.0f} us fdatasync"
    return [at_most("one publisher, window 1: p50", statistics.median(acks), bound, "us", text)]


def _long_backlog(plan: Plan, directory: Path) -> list[Figure]:
    """A restart with a long backlog."""
    began = time.monotonic()
    found = measure_backlog(directory / "backlog", plan.backlog)
    _tell(f"  {found} in {time.monotonic() - began:.0f} s")
    if found.faults:
        raise BenchmarkError(f"{found.faults} messages of the backlog came twice or out of order")
    name = f"{plan.backlog:,} messages queued"
    return [
        at_most(f"{name}: first delivery", found.first_s * 1000, 1000, "ms"),
        at_most(f"{name}: memory", found.memory_bytes / 1e6, 300, "MB"),
        _faster(f"{name}: one consumer", found.consumed_per_s, 100_000),
    ]


def _many_sessions(plan: Plan, directory: Path) -> list[Figure]:
    """One publication for a thousand sessions whose clients are away."""
    rates: list[float] = []
    published = 0
    data = directory / "sessions-data"
    data.mkdir()
    with start("ganglion", directory / "sessions", data=data) as broker:
        with load.hold(broker, ("--durable", "--qos", "1", "--subs", str(_SESSIONS))):
            pass
        for _ in range(plan.rounds):
            options = ("--qos", "1", "--subs", "0", "--window", "100", "--size", "256")
            run = _run(broker, options, plan)
            published += run.messages
            rates.append(run.acked_per_s * _SESSIONS)
    stored = _stored_payloads(data / "store")
    title = f"entries of {_SESSIONS:,} durable sessions"
    return [
        _faster(title, statistics.median(rates), 50_000),
        Figure(
            "payloads stored for these",
            "one a message",
            f"{stored:,}",
            f"{published:,} messages",
            stored / published,
            stored == published,
        ),
    ]


def _stored_payloads(directory: Path) -> int:
    store = RocksStore(directory, in_core=lambda call: call(), fatal=_tell, create=False)
    try:
        return sum(1 for _ in store.scan(Kind.PAYLOAD))
    finally:
        store.close()


def _unchanged(plan: Plan, directory: Path) -> list[Figure]:
    """Messages without durable targets, here and in the version from before."""
    if not plan.base:
        return []
    python = _make_base()
    figures: list[Figure] = []
    with (
        start("ganglion", directory / "now", mqtt_only=True) as now,
        start("ganglion", directory / "then", wrapper=(str(python),), mqtt_only=True) as then,
    ):
        for title, options in _BEFORE.items():
            rates: dict[int, list[float]] = {now.pid: [], then.pid: []}
            for number in range(plan.rounds + 2):
                for broker in (now, then)[:: -1 if number % 2 else 1]:
                    rates[broker.pid].append(_run(broker, options, plan).delivered_per_s)
            own, before = (statistics.median(found) for found in rates.values())
            figures.append(at_least(title, own, 0.95, BASE_COMMIT, before))
    return figures


def _make_base() -> Path:
    """A worktree of `BASE_COMMIT` with an environment of its own; its interpreter."""
    place = _ROOT / "build" / "bench" / f"base-{BASE_COMMIT}"
    python = place / ".venv" / "bin" / "python"
    if not (place / ".filled").exists():
        _tell(f"  making {place.relative_to(_ROOT)}")
        commands: list[list[str]] = [
            ["git", "-C", str(_ROOT), "worktree", "prune"],
            ["git", "-C", str(_ROOT), "worktree", "add", "--detach", str(place), BASE_COMMIT],
            [sys.executable, "-m", "venv", str(place / ".venv")],
            [str(python), "-m", "pip", "install", "--quiet", "--editable", str(place)],
        ]
        for words in commands:
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            if done.returncode:
                raise BenchmarkError(f"{' '.join(words)}:\n{done.stderr}")
        (place / ".filled").touch()
    return python


SCENARIOS: Mapping[str, Callable[[Plan, Path], list[Figure]]] = {
    "queue": _queue,
    "beside": _beside,
    "latency": _latency,
    "sessions": _many_sessions,
    "backlog": _long_backlog,
    "unchanged": _unchanged,
}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.durable", description="What is kept, beside JetStream and RabbitMQ."
    )
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument(
        "--only", action="append", choices=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)}"
    )
    parser.add_argument(
        "--brokers",
        type=lambda text: tuple(text.split(",")),
        default=DURABLE_BROKERS,
        metavar="NAME,...",
        help=f"of {', '.join(DURABLE_BROKERS)}",
    )
    parser.add_argument("--rounds", type=int, help="runs of everything (3)")
    parser.add_argument("--duration", type=float, metavar="S", help="of each run (2)")
    parser.add_argument("--backlog", type=int, metavar="N", help="messages (10,000,000)")
    parser.add_argument("--no-base", action="store_true", help=f"do not run {BASE_COMMIT}")
    parser.add_argument("--directory", type=Path, help="where on which disk the stores are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    found = parser.parse_args(arguments)
    unknown = set(found.brokers) - set(DURABLE_BROKERS)
    if unknown or "ganglion" not in found.brokers:
        parser.error(f"brokers are ganglion and of {', '.join(DURABLE_BROKERS)}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure as the command line says. Returns 1 when a figure was not reached."""
    wanted = _parse(arguments)
    quick: bool = wanted.quick
    plan = Plan(
        brokers=wanted.brokers,
        rounds=wanted.rounds or (1 if quick else 3),
        duration_s=wanted.duration or (1.0 if quick else 2.0),
        backlog=wanted.backlog or (500_000 if quick else 10_000_000),
        base=not wanted.no_base,
    )
    began = time.monotonic()
    raise_file_limit()
    figures: list[Figure] = []
    failed = False
    names: Sequence[str] = wanted.only or list(SCENARIOS)
    try:
        load.build()
        machine = versions(wanted.brokers if "queue" in names else ())
    except BenchmarkError as error:
        _tell(f"bench: {error}")
        return 2
    with tempfile.TemporaryDirectory(prefix="ganglion-bench-", dir=wanted.directory) as place:
        for name in names:
            _tell(f"{name}:")
            since = time.monotonic()
            try:
                figures += SCENARIOS[name](plan, Path(place))
            except BenchmarkError as error:  # the others are worth seeing nevertheless
                _tell(f"  FAILED: {error}")
                failed = True
            _tell(f"  took {time.monotonic() - since:.0f} s")
    print(render(figures))
    print(
        f"\nGanglion {ganglion.__version__}, "
        + ", ".join(f"{name} {version}" for name, version in machine.items())
        + f"; median of {plan.rounds} runs of {plan.duration_s:g} s each, "
        f"{time.monotonic() - began:.0f} s in all."
    )
    if wanted.json:
        rendered = {"machine": machine, "figures": [asdict(each) for each in figures]}
        wanted.json.write_text(json.dumps(rendered, indent=1) + "\n")
    if failed:
        return 2
    return 1 if any(each.reached is False for each in figures) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
