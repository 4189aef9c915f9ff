"""How fast the Python client is: ``python -m bench.client``.

The same programs with three libraries, each against a server of its own kind on this machine: our
client and a node, nats-py and NATS with JetStream (its default: synced every two minutes, where the
node syncs before every confirmation), aiomqtt and Mosquitto. Under asyncio, uvloop and, where a
library can, trio. `bench.client_programs` has the programs; each run is a process of its own, the
libraries take turns, and a figure is the median of several runs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.brokers import BenchmarkError, Broker, start
from bench.client_programs import MEASURES
from bench.table import render_table

__all__ = ["LOOPS", "NAMES", "measure", "measure_all"]

LOOPS: Final[Mapping[str, Sequence[str]]] = {
    "ganglion": ("asyncio", "uvloop", "trio"),
    "nats-py": ("asyncio", "uvloop"),
    "aiomqtt": ("asyncio", "uvloop"),
}
NAMES: Final = {
    "publish": "publish, unconfirmed, messages/s",
    "confirmed": "publish, durable, 1,000 in flight, messages/s",
    "consume": "consume and acknowledge, messages/s",
    "subscribe": "subscribe, messages/s",
    "request": "request and reply, one at a time, p50 in µs",
}
_SERVERS: Final = {"ganglion": "ganglion", "nats-py": "nats", "aiomqtt": "mosquitto"}
_PORTS: Final = {
    "ganglion": ("native", "mqtt"),
    "nats-py": ("nats", "nats"),
    "aiomqtt": ("mqtt", "mqtt"),
}
_RUN_S: Final = 120


def measure(broker: Broker, library: str, loop: str, what: str, share: float = 1) -> float:
    """One run of one program, with a share of the usual count. Raises `BenchmarkError`."""
    ports = [str(broker.ports[name]) for name in _PORTS[library]]
    login = [] if broker.user is None else [broker.user, broker.password]
    words = [sys.executable, "-m", "bench.client_programs", library, loop, what]
    words += [str(share), *ports, *login]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_RUN_S, check=True)
        return float(done.stdout)
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"{library}, {loop}, {what}:\n{error.stderr[-3000:]}") from None
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{library}, {loop}, {what}: not done in {_RUN_S} s") from None


def measure_all(
    directory: Path,
    *,
    runs: int,
    only: Sequence[str] = MEASURES,
    loops: Sequence[str] = (),
    share: float = 1,
) -> dict[tuple[str, str, str], float]:
    """Every figure by library, loop and measure; all loops, and whole counts, if left out."""
    found: dict[tuple[str, str, str], float] = {}
    with ExitStack() as stack:
        brokers = {
            library: stack.enter_context(start(server, directory / library))
            for library, server in _SERVERS.items()
        }
        for what in only:
            seen: dict[tuple[str, str], list[float]] = {}
            for _ in range(runs):
                for library, broker in brokers.items():
                    for loop in LOOPS[library]:
                        if not loops or loop in loops:
                            figure = measure(broker, library, loop, what, share)
                            seen.setdefault((library, loop), []).append(figure)
            for (library, loop), figures in seen.items():
                found[library, loop, what] = statistics.median(figures)
    return found


def _render(found: Mapping[tuple[str, str, str], float]) -> str:
    columns = list(dict.fromkeys((library, loop) for library, loop, _ in found))
    rows = [
        [NAMES[what], *(f"{found[library, loop, what]:,.0f}" for library, loop in columns)]
        for what in dict.fromkeys(what for _, _, what in found)
    ]
    head = ["", *(f"{library}, {loop}" for library, loop in columns)]
    return render_table(head, rows, [False, *(True for _ in columns)])


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each kind (3)")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--loops", nargs="+", choices=LOOPS["ganglion"], default=())
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as directory:
            found = measure_all(
                Path(directory), runs=options.runs, only=options.only, loops=options.loops
            )
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    print(_render(found))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
