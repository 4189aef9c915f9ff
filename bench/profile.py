"""Where Ganglion spends its time under a scenario's load: ``python -m bench.profile qos0``.

With py-spy (``pip install py-spy``) the broker runs at full speed and is looked at some hundred
times a second: the shares are true, and lines are told apart. Without it, or with ``--exact``,
it runs under cProfile, which counts every call but slows small functions down far more than large
ones: good for counts, bad for shares.
"""

import argparse
import pstats
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.brokers import BenchmarkError, raise_file_limit, start
from bench.compare import SCENARIOS, Variant

__all__ = ["Shares", "fold"]

_WARMUP_S = 1.0


@dataclass(frozen=True, slots=True)
class Shares:
    """How many samples fell on what."""

    total: int
    functions: Counter[str]
    """On the function itself, not on what it called."""
    inclusive: Counter[str]
    """On the function or anything that it called."""
    lines: Counter[str]


def fold(stacks: Iterable[str]) -> Shares:
    """Sum up stacks as py-spy writes them: ``outer (file:1);inner (file:2) 17`` on each line."""
    functions: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    total = 0
    for stack in stacks:
        text, _, number = stack.strip().rpartition(" ")
        if not text:
            continue
        count = int(number)
        frames = text.split(";")
        names = [_without_line(frame) for frame in frames]
        total += count
        lines[frames[-1]] += count
        functions[names[-1]] += count
        for name in set(names):  # a function that calls itself is counted once
            inclusive[name] += count
    return Shares(total, functions, inclusive, lines)


def _without_line(frame: str) -> str:
    head, colon, tail = frame.rpartition(":")
    return f"{head})" if colon and tail.rstrip(")").isdigit() else frame


def _print_shares(shares: Shares, top: int) -> None:
    for title, counts in (
        ("functions themselves", shares.functions),
        ("functions with what they call", shares.inclusive),
        ("lines", shares.lines),
    ):
        print(f"\n{title}:")
        for name, count in counts.most_common(top):
            print(f"  {100 * count / max(1, shares.total):5.1f}%  {name}")


def _sample(variant: Variant, spy: str, seconds: float, *, native: bool) -> Shares:
    with tempfile.TemporaryDirectory(prefix="ganglion-profile-") as place:
        directory = Path(place)
        with start("ganglion", directory / "ganglion") as broker:
            stacks = directory / "stacks"
            load.run(broker, (), duration_s=0.1)  # the slow part of the first log-in is over then
            words = [spy, "record", "--pid", str(broker.pid), "--format", "raw", "--rate", "250"]
            words += ["--duration", str(max(1, int(seconds))), "--output", str(stacks)]
            if native:
                words.append("--native")
            with subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as spying:
                run = load.run(
                    broker,
                    variant.options,
                    duration_s=seconds + 1,
                    warmup_s=_WARMUP_S,
                    tls=variant.tls,
                )
                _, told = spying.communicate()
            if spying.returncode:
                raise BenchmarkError(f"py-spy: {told}")
            _print_run(variant, run)
            return fold(stacks.read_text().splitlines())


def _count(variant: Variant, seconds: float, top: int) -> None:
    with tempfile.TemporaryDirectory(prefix="ganglion-profile-") as place:
        directory = Path(place)
        found = directory / "profile"
        wrapper = [sys.executable, "-m", "cProfile", "-o", str(found)]
        with start("ganglion", directory / "ganglion", wrapper=wrapper) as broker:
            run = load.run(
                broker, variant.options, duration_s=seconds, warmup_s=_WARMUP_S, tls=variant.tls
            )
        _print_run(variant, run)
        pstats.Stats(str(found)).strip_dirs().sort_stats("tottime").print_stats(top)


def _print_run(variant: Variant, run: load.Run) -> None:
    print(
        f"{variant.title}: {run.delivered_per_s:,.0f} deliveries/s, p50 {run.p50_us:,.0f} us, "
        f"{run.broker_us:.2f} us of the broker's time a delivery, load {run.load_cpu:.2f} cores"
    )


def main(arguments: Sequence[str]) -> int:
    """Profile as the command line says."""
    scenarios = {each.name: each for each in SCENARIOS if each.measure != "memory"}
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("scenario", choices=sorted(scenarios))
    parser.add_argument(
        "--variant", type=int, default=0, metavar="N", help="0: the first; 1: mostly MQTT 5"
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--top", type=int, default=30, help="how many lines of each list")
    parser.add_argument("--exact", action="store_true", help="cProfile even when py-spy is here")
    parser.add_argument("--native", action="store_true", help="with frames of C code (py-spy)")
    wanted = parser.parse_args(arguments)
    name: str = wanted.scenario
    index: int = wanted.variant
    variants = scenarios[name].variants
    if not 0 <= index < len(variants):
        parser.error(f"{name} has the variants 0 to {len(variants) - 1}")
    variant = variants[index]
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    raise_file_limit()
    try:
        if spy is None or wanted.exact:
            _count(variant, wanted.seconds, wanted.top)
        else:
            shares = _sample(variant, spy, wanted.seconds, native=wanted.native)
            _print_shares(shares, wanted.top)
    except BenchmarkError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
