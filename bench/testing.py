"""How long a test waits for its broker: ``python -m bench.testing``.

From the call until the broker accepts connections, as `ganglion.testing` starts it: in a thread,
under trio, and with a mesh that is connected to it. The first start of a process stands beside the
median, for it pays for what later ones find made. Imports are not in it: `python -m bench.install`
has those.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import trio

from bench.table import render_table
from ganglion import sync, testing

__all__ = ["FIGURE_MS", "STARTS", "measure"]

FIGURE_MS = 50.0
"""What a start may take."""


def _in_a_thread() -> float:
    began = time.perf_counter()
    with testing.broker_thread():
        return time.perf_counter() - began


def _under_trio() -> float:
    async def main() -> float:
        began = time.perf_counter()
        async with testing.broker():
            return time.perf_counter() - began

    return trio.run(main)


def _with_a_mesh() -> float:
    began = time.perf_counter()
    with testing.broker_thread() as broker, sync.connect(broker.native_url):
        return time.perf_counter() - began


STARTS: dict[str, Callable[[], float]] = {
    "a broker in a thread": _in_a_thread,
    "a broker under trio": _under_trio,
    "a broker in a thread, and a mesh": _with_a_mesh,
}


def measure(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each start, in the order in which they were."""
    return {name: [start() * 1e3 for _ in range(rounds)] for name, start in STARTS.items()}


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="of each kind (20)")
    times = measure(parser.parse_args().rounds)
    body = [
        [name, f"{each[0]:.1f} ms", f"{statistics.median(each):.1f} ms", f"{max(each):.1f} ms"]
        for name, each in times.items()
    ]
    print(render_table(("", "first", "median", "longest"), body, (False, True, True, True)))
    return int(any(statistics.median(each) > FIGURE_MS for each in times.values()))


if __name__ == "__main__":
    sys.exit(_main())
