"""Ganglion side by side with Mosquitto and NATS: `make bench`, or ``python -m bench.compare``.

Every scenario is run on all brokers in turn, several times, in alternating order, so that whatever
else happens on the machine strikes all of them. What counts is each one's median: a closed loop
settles now into large batches and now into small ones, so that its best run is luck. Each figure to
reach is a ratio between two brokers (or two variants of Ganglion) that were measured within the
same seconds; absolute rates say more about the machine.

The load comes from one thread (`load.c`). Where it used up its own core, the rate is marked: there
the load was the limit, and the broker may be faster than shown.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import ganglion
from bench import load
from bench.brokers import (
    BROKERS,
    BenchmarkError,
    Broker,
    raise_file_limit,
    resident_bytes,
    start,
    versions,
)
from bench.table import render_table

__all__ = [
    "SCENARIOS",
    "Goal",
    "Result",
    "Row",
    "Scenario",
    "Variant",
    "middle",
    "render",
    "rows",
    "turns",
]

Measure: TypeAlias = Literal["rate", "latency", "memory"]

UNITS: Mapping[Measure, str] = {"rate": "/s", "latency": "us", "memory": "B"}

COLUMNS: Mapping[str, str] = {
    "ganglion": "Ganglion",
    "mosquitto": "Mosquitto",
    "mosquitto-acl": "with ACL",
    "nats-mqtt": "NATS, MQTT",
    "nats": "NATS",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that Ganglion must reach in a variant.

    With `against`, `factor` is a ratio to that broker in the scenario's first variant: at least
    that for rates, at most that otherwise. Without, it is an absolute bound.
    """

    factor: float
    against: str | None
    name: str
    """How the table calls what it is measured against, or the unit of an absolute bound."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of load: what is asked of the load program, and of whom."""

    title: str
    options: tuple[str, ...]
    brokers: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """Variants that are measured in turn, within the same seconds."""

    name: str
    measure: Measure
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What came out of one run: the figure that is compared, and what else should be seen."""

    value: float | None
    """None when the run did not come to its end."""
    at_limit: bool = False
    """The load program had used up its core."""
    faults: tuple[str, ...] = ()
    """What a broker must not do: lose acknowledged messages, deliver twice, or out of order."""
    details: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. The ratio is None where there is nothing to compare with."""

    title: str
    goal: str
    values: Mapping[str, str]
    ratio: float | None
    reached: bool | None


Results: TypeAlias = Mapping[tuple[int, str], Sequence[Result]]
"""The runs of a scenario by the variant's index and the broker."""


_MQTT = ("ganglion", "mosquitto", "mosquitto-acl", "nats-mqtt")
_ALL = (*_MQTT, "nats")


def _both_versions(
    name: str,
    title: str,
    options: Sequence[str],
    brokers: tuple[str, ...],
    goals: tuple[Goal, ...],
    measure: Measure = "rate",
) -> Scenario:
    """A scenario with MQTT 3.1.1 clients, and the same with MQTT 5 clients on Ganglion."""
    v5 = Goal(0.8 if measure == "rate" else 1 / 0.8, "ganglion", "3.1.1")
    return Scenario(
        name,
        measure,
        (
            Variant(title, tuple(options), brokers, goals),
            Variant(f"{title}, MQTT 5", (*options, "--v5"), ("ganglion", "mosquitto"), (v5,)),
        ),
    )


def _mosquitto(factor: float) -> Goal:
    return Goal(factor, "mosquitto", "Mosquitto")


_PAIRS = ("--pubs", "100", "--subs", "100", "--topics", "100")
_TEN = ("--pubs", "10", "--subs", "10", "--topics", "10", "--window", "20")
_FILTERS = ("--filters", "100000", "--filter-connections", "10")

SCENARIOS = (
    _both_versions("qos0", "QoS 0, 1 to 1", (), _ALL, (_mosquitto(2),)),
    _both_versions(
        "fanout",
        "QoS 0, 1 to 100",
        ("--subs", "100"),
        _ALL,
        (_mosquitto(10), Goal(3, "nats-mqtt", "NATS, MQTT"), Goal(3, "nats", "NATS")),
    ),
    _both_versions("pairs", "QoS 0, 100 to 100", _PAIRS, _ALL, (_mosquitto(1.5),)),
    _both_versions("qos1", "QoS 1, 10 to 10", (*_TEN, "--qos", "1"), _MQTT, (_mosquitto(2),)),
    _both_versions(
        "qos2",
        "QoS 2, 10 to 10",
        (*_TEN, "--qos", "2"),
        ("ganglion", "mosquitto", "mosquitto-acl"),
        (_mosquitto(2),),
    ),
    _both_versions(
        "latency",
        "p50 at 5,000/s, 100 pairs",
        (*_PAIRS, "--rate", "5000"),
        _ALL,
        (_mosquitto(2),),
        "latency",
    ),
    Scenario(
        "tls",
        "rate",
        (
            Variant(
                "TLS, QoS 0, 1 to 1",
                (),
                ("ganglion", "mosquitto", "mosquitto-acl"),
                (_mosquitto(1),),
                tls=True,
            ),
        ),
    ),
    Scenario(
        "web",
        "rate",
        (
            Variant(
                "WebSocket, QoS 0, 1 to 1",
                ("--web",),
                ("ganglion", "mosquitto"),
                (Goal(40_000, None, "/s"),),
            ),
            Variant(
                "WebSocket, QoS 0, 1 to 100",
                ("--web", "--subs", "100"),
                ("ganglion", "mosquitto"),
                (Goal(200_000, None, "/s"),),
            ),
        ),
    ),
    Scenario(
        "filters",
        "rate",
        (
            Variant("QoS 0, 1 to 1, no filters", (), ("ganglion", "mosquitto")),
            Variant(
                "beside 100,000 filters",
                _FILTERS,
                ("ganglion", "mosquitto"),
                (Goal(0.7, "ganglion", "empty"),),
            ),
            Variant(
                "to 1,000 of 100,000 filters",
                (*_FILTERS, "--subs", "0", "--match", "--spread", "1000"),
                ("ganglion", "mosquitto"),
                (Goal(0.7, "ganglion", "empty"),),
            ),
        ),
    ),
    Scenario(
        "idle",
        "memory",
        (
            Variant(
                "memory per idle connection of 10,000",
                ("--idle", "10000"),
                _ALL,
                (Goal(3000, None, "B"),),
            ),
        ),
    ),
)


def turns(scenario: Scenario, brokers: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Who runs when: every variant on every broker in each round, each round the other way."""
    once = [
        (index, broker)
        for index, variant in enumerate(scenario.variants)
        for broker in variant.brokers
        if broker in brokers
    ]
    order: list[tuple[int, str]] = []
    for number in range(rounds):
        order += once[::-1] if number % 2 else once
    return order


def middle(results: Iterable[Result]) -> Result | None:
    """The run with the median value; of two in the middle the lower. None when all failed."""
    ended = sorted((each for each in results if each.value is not None), key=_value)
    return ended[(len(ended) - 1) // 2] if ended else None


def rows(scenario: Scenario, results: Results) -> list[Row]:
    """The lines of the table for a scenario, one for every goal and for variants without one."""
    middles = {key: middle(runs) for key, runs in results.items()}
    lines: list[Row] = []
    for index, variant in enumerate(scenario.variants):
        values = {
            broker: _shown(scenario.measure, middles[index, broker])
            for broker in variant.brokers
            if (index, broker) in middles
        }
        if not values:
            continue
        own = middles.get((index, "ganglion"))
        faulty = any(run.faults for run in results.get((index, "ganglion"), ()))
        for number, goal in enumerate(variant.goals or (None,)):
            ratio, reached = None, None
            if goal is not None and own is not None:
                reference = None if goal.against is None else middles.get((0, goal.against))
                ratio, reached = _judge(scenario.measure, goal, own, reference)
            lines.append(
                Row(
                    variant.title if number == 0 else "",
                    "" if goal is None else _wanted(scenario.measure, goal),
                    values if number == 0 else {},
                    ratio,
                    False if faulty else reached,
                )
            )
    return lines


def _value(result: Result) -> float:
    assert result.value is not None
    return result.value


def _judge(
    measure: Measure, goal: Goal, own: Result, reference: Result | None
) -> tuple[float | None, bool | None]:
    if goal.against is None:
        return None, _satisfies(measure, _value(own), goal.factor)
    if reference is None or not reference.value:
        return None, None
    ratio = _value(own) / reference.value
    return ratio, _satisfies(measure, ratio, goal.factor)


def _satisfies(measure: Measure, value: float, bound: float) -> bool:
    return value >= bound if measure == "rate" else value <= bound


def _wanted(measure: Measure, goal: Goal) -> str:
    sign = ">=" if measure == "rate" else "<="
    if goal.against is None:
        return f"{sign} {goal.factor:,.0f} {goal.name}"
    return f"{sign} {goal.factor:g}x {goal.name}"


def _shown(measure: Measure, result: Result | None) -> str:
    if result is None:
        return "failed"
    mark = ("*" if result.at_limit else "") + ("!" if result.faults else "")
    return f"{result.value:,.0f} {UNITS[measure]}{mark}"


def render(lines: Sequence[Row], brokers: Sequence[str]) -> str:
    """The table as aligned Markdown."""
    shown = [each for each in COLUMNS if each in brokers]
    head = ["scenario", "figure to reach", *(COLUMNS[each] for each in shown), "ratio", "reached"]
    body = [
        [
            line.title,
            line.goal,
            *(line.values.get(each, "") for each in shown),
            "" if line.ratio is None else f"{line.ratio:.2f}",
            {None: "", True: "yes", False: "NO"}[line.reached],
        ]
        for line in lines
    ]
    right = [False, False, *(True for _ in shown), True, False]  # numbers stand to the right
    return render_table(head, body, right)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a comparison is run."""

    brokers: tuple[str, ...]
    rounds: int
    duration_s: float
    load_core: int | None
    """The core of the load program, and the cores of the brokers: all when not tied."""
    broker_cores: tuple[int, ...]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measure_load(broker: Broker, variant: Variant, plan: Plan) -> tuple[load.Run, Result]:
    run = load.run(
        broker, variant.options, duration_s=plan.duration_s, tls=variant.tls, core=plan.load_core
    )
    faults: list[str] = []
    if run.disordered:
        faults.append(f"{run.disordered} deliveries twice or out of order")
    if run.refused:
        faults.append(f"{run.refused} messages refused")
    if run.lost and "--qos" in variant.options:
        faults.append(f"{run.lost} acknowledged messages lost")
    latency = "--rate" in variant.options
    value = run.p50_us if latency else run.delivered_per_s
    return run, Result(value, run.load_cpu >= 0.95, tuple(faults), asdict(run))


def _compare_load(scenario: Scenario, plan: Plan, running: Callable[[str], Broker]) -> Results:
    results: dict[tuple[int, str], list[Result]] = {}
    for index, which in turns(scenario, plan.brokers, plan.rounds):
        variant = scenario.variants[index]
        try:
            run, result = _measure_load(running(which), variant, plan)
        except BenchmarkError as error:
            _tell(f"  {variant.title}: {error}")
            result = Result(None, False, (str(error),))
        else:
            _tell(
                f"  {variant.title:<28} {COLUMNS[which]:<10} "
                f"{_shown(scenario.measure, result):>14}  p50 {run.p50_us:,.0f} us, "
                f"p99 {run.p99_us:,.0f} us, broker {run.broker_us:.2f} us a delivery "
                f"({run.broker_cpu:.2f} cores), load {run.load_cpu:.2f} cores"
                + "".join(f", FAULT: {each}" for each in result.faults)
                + (f", {run.lost} not delivered" if run.lost else "")
            )
        results.setdefault((index, which), []).append(result)
    return results


def _compare_memory(scenario: Scenario, plan: Plan, directory: Path) -> Results:
    """Each broker anew, so that what earlier load has left behind is not counted."""
    results: dict[tuple[int, str], list[Result]] = {}
    for index, which in turns(scenario, plan.brokers, 1):
        variant = scenario.variants[index]
        connections = int(variant.options[variant.options.index("--idle") + 1])
        try:
            with start(which, directory / f"{scenario.name}-{which}") as broker:
                with load.hold(broker, ("--idle", "1")):  # what the first one costs, all have
                    pass
                before = resident_bytes(broker.pid)
                with load.hold(broker, variant.options) as told:
                    each = (resident_bytes(broker.pid) - before) / connections
        except BenchmarkError as error:
            _tell(f"  {variant.title}: {error}")
            results[index, which] = [Result(None, False, (str(error),))]
            continue
        results[index, which] = [Result(each, details=told)]
        _tell(
            f"  {variant.title} {COLUMNS[which]:<10} {each:,.0f} B "
            f"({before / 2**20:.0f} MiB before), connected in {told['connect_s']:.1f} s"
        )
    return results


def compare(names: Sequence[str], plan: Plan) -> tuple[list[Row], list[dict[str, object]]]:
    """Run the scenarios of these names. Returns the table's lines, and every run for a file."""
    lines: list[Row] = []
    record: list[dict[str, object]] = []
    brokers: dict[str, Broker] = {}
    with tempfile.TemporaryDirectory(prefix="ganglion-bench-") as place, ExitStack() as stack:
        directory = Path(place)

        def running(which: str) -> Broker:
            if which not in brokers:
                manager = start(which, directory / which, cores=plan.broker_cores)
                brokers[which] = stack.enter_context(manager)
            return brokers[which]

        for scenario in SCENARIOS:
            if scenario.name not in names:
                continue
            began = time.monotonic()
            _tell(f"{scenario.name}:")
            if scenario.measure == "memory":
                results = _compare_memory(scenario, plan, directory)
            else:
                results = _compare_load(scenario, plan, running)
            _tell(f"  took {time.monotonic() - began:.0f} s")
            lines += rows(scenario, results)
            for (index, which), runs in results.items():
                title = scenario.variants[index].title
                found = [asdict(each) for each in runs]
                record.append(
                    {"scenario": scenario.name, "variant": title, "broker": which, "runs": found}
                )
    return lines, record


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description="Ganglion beside Mosquitto and NATS."
    )
    names = [each.name for each in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--brokers",
        type=lambda text: tuple(text.split(",")),
        default=BROKERS,
        metavar="NAME,...",
        help=f"of {', '.join(BROKERS)}",
    )
    parser.add_argument("--rounds", type=int, help="runs of everything (3)")
    parser.add_argument("--duration", type=float, metavar="S", help="of each run (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument(
        "--pin", action="store_true", help="load on the last core, brokers on the others"
    )
    found = parser.parse_args(arguments)
    unknown = set(found.brokers) - set(BROKERS)
    if unknown:
        parser.error(f"unknown brokers: {', '.join(sorted(unknown))}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Compare as the command line says. Returns 1 when a figure was not reached."""
    wanted = _parse(arguments)
    cores = sorted(os.sched_getaffinity(0))
    pinned = wanted.pin and len(cores) > 1
    plan = Plan(
        brokers=wanted.brokers,
        rounds=wanted.rounds or (1 if wanted.quick else 3),
        duration_s=wanted.duration or (1.0 if wanted.quick else 2.0),
        load_core=cores[-1] if pinned else None,
        broker_cores=tuple(cores[:-1]) if pinned else (),
    )
    began = time.monotonic()
    raise_file_limit()
    try:
        load.build()
        machine = versions(wanted.brokers)
        lines, record = compare(wanted.only or [each.name for each in SCENARIOS], plan)
    except BenchmarkError as error:
        _tell(f"bench: {error}")
        return 2
    print(render(lines, wanted.brokers))
    print(
        f"\nGanglion {ganglion.__version__}, "
        + ", ".join(f"{name} {version}" for name, version in machine.items())
        + f"; median of {plan.rounds} runs of {plan.duration_s:g} s each, "
        f"{time.monotonic() - began:.0f} s in all.\n"
        "* the load program was the limit   ! see the faults above"
    )
    if wanted.json:
        rendered = {"machine": machine, "rows": [asdict(each) for each in lines], "runs": record}
        wanted.json.write_text(json.dumps(rendered, indent=1) + "\n")
    return 1 if any(each.reached is False for each in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
