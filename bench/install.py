"""How large an installation is and how fast it starts: ``python -m bench.install``.

The wheel is built and installed into two fresh environments, as ``ganglion`` and as
``ganglion[broker]``, without pip in them. A size is what the files of a distribution take up on
disk, compiled modules included. A time is that of a whole process, so it contains the start of
Python itself, which stands beside it. Of several the median is what passed by the clock, and the
least time of the processor is what is judged: other work on the machine changes it little.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.brokers import BenchmarkError
from bench.table import render_table

__all__ = ["Environment", "Figure", "distributions", "measure_times"]

ROOT = Path(__file__).resolve().parent.parent

IMPORT_MS_MAX = 150
"""What importing all of the client may take, with the start of Python (issue 5)."""

_NODE_FOLDERS = ("broker", "bridges", "protocols/http", "protocols/mqtt", "protocols/websocket")
_ALL_NAMES = "import ganglion; [getattr(ganglion, name) for name in ganglion.__all__]"


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment in which something of Ganglion is installed."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, requirement: str) -> "Environment":
        """Make it with this alone. Raises `BenchmarkError` when pip fails."""
        venv.create(directory)
        made = cls(directory)
        _run(sys.executable, "-m", "pip", "--python", made.python, "install", requirement)
        return made

    @property
    def python(self) -> str:
        """The path of its interpreter."""
        return str(self.directory / "bin" / "python")

    @property
    def ganglion(self) -> str:
        """The path of its command."""
        return str(self.directory / "bin" / "ganglion")


@dataclass(frozen=True, slots=True)
class Figure:
    """How long something takes to start."""

    what: str
    median_ms: float
    """By the clock."""
    processor_ms: float
    """At least, of user and system together."""
    limit_ms: float | None = None
    """What the time of the processor has to stay below, if anything."""

    @property
    def is_reached(self) -> bool:
        """Whether it is below its limit, if it has one."""
        return self.limit_ms is None or self.processor_ms < self.limit_ms


def distributions(environment: Environment) -> dict[str, int]:
    """The bytes on disk of each distribution, the largest first.

    Of Ganglion what only a node uses is an entry of its own.
    """
    (site,) = environment.directory.glob("lib/python*/site-packages")
    sizes: dict[str, int] = {}
    for each in metadata.distributions(path=[str(site)]):
        for file in each.files or []:
            path = Path(str(each.locate_file(file)))
            if not path.is_file():
                continue
            name = f"{each.name} {each.version}"
            if each.name == "ganglion" and str(file).startswith(
                tuple(f"ganglion/{folder}/" for folder in _NODE_FOLDERS)
            ):
                name += ", the node's code"
            sizes[name] = sizes.get(name, 0) + path.stat().st_blocks * 512
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def measure_times(client: Environment, node: Environment, rounds: int) -> list[Figure]:
    """How long programs take from their start to their end."""
    python, ganglion = client.python, client.ganglion
    commands: list[tuple[str, list[str], float | None]] = [
        ("Python alone", [python, "-c", "pass"], None),
        ("import ganglion", [python, "-c", "import ganglion"], None),
        ("every public name of the client", [python, "-c", _ALL_NAMES], IMPORT_MS_MAX),
        ("ganglion version", [ganglion, "version"], None),
        ("ganglion --help", [ganglion, "--help"], None),
        ("ganglion pub --help", [ganglion, "pub", "--help"], None),
        ("ganglion serve --help", [node.ganglion, "serve", "--help"], None),
        ("import ganglion.testing", [node.python, "-c", "import ganglion.testing"], None),
    ]
    figures: list[Figure] = []
    for what, command, limit_ms in commands:
        times = [_times_ms(command) for _ in range(rounds)]
        elapsed, processor = zip(*times, strict=True)
        figures.append(Figure(what, statistics.median(elapsed), min(processor), limit_ms))
    return figures


def _times_ms(command: Sequence[str]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _run(*command)
    elapsed, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return elapsed * 1000, processor * 1000


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wheel(directory: Path) -> Path:
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(ROOT))
    (wheel,) = directory.glob("*.whl")
    return wheel


def _size_table(client: dict[str, int], node: dict[str, int]) -> str:
    def cell(sizes: dict[str, int], name: str) -> str:
        return f"{sizes[name] / 1024:,.0f} KiB" if name in sizes else ""

    body = [[name, cell(client, name), cell(node, name)] for name in node]
    totals = [f"{sum(each.values()) / 1024:,.0f} KiB" for each in (client, node)]
    head = ["package", "ganglion", "ganglion[broker]"]
    return render_table(head, [*body, ["together", *totals]], [False, True, True])


def _time_table(figures: Sequence[Figure]) -> str:
    body = [
        [
            each.what,
            f"{each.median_ms:.0f} ms",
            f"{each.processor_ms:.0f} ms",
            "" if each.limit_ms is None else f"< {each.limit_ms:.0f} ms",
            "" if each.limit_ms is None else "yes" if each.is_reached else "NO",
        ]
        for each in figures
    ]
    head = ["process", "median", "processor", "figure to reach", "reached"]
    return render_table(head, body, [False, True, True, False, False])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; 1 when a figure was missed, 2 when something could not be run."""
    parser = argparse.ArgumentParser(prog="python -m bench.install", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="starts of each process (21)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="ganglion-install-") as place:
            wheel = _wheel(Path(place, "dist"))
            client = Environment.make(Path(place, "client"), str(wheel))
            node = Environment.make(Path(place, "node"), f"{wheel}[broker]")
            print(_size_table(distributions(client), distributions(node)), end="\n\n")
            figures = measure_times(client, node, options.rounds)
            print(_time_table(figures))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if all(each.is_reached for each in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
