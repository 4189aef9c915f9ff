"""The load program, `load.c` and its parts: built when needed, run, its answer read."""

import json
import os
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.brokers import BenchmarkError, Broker

__all__ = ["Run", "build", "command", "hold", "run"]

_SOURCES = sorted(Path(__file__).parent.glob("load*.[ch]"))
_BINARY = Path(__file__).parent.parent / "build" / "bench" / "load"
_SILENCE_S = 30
"""How long a run may take beyond the time that it was asked for: connecting, and waiting for
deliveries that are still on their way."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the load program measured."""

    delivered_per_s: float
    """Deliveries to all subscribers together."""
    published_per_s: float
    p50_us: float
    p99_us: float
    acked_per_s: float
    ack_p50_us: float
    """From sending a message until its acknowledgement."""
    ack_p99_us: float
    late_p99_us: float
    """With a fixed rate: how late messages were sent, a measure of the machine's noise."""
    lost: int
    """Deliveries that were owed and never came."""
    disordered: int
    """Deliveries that came twice or behind a later one."""
    refused: int
    messages: int
    """How many were published, also before and after what is measured."""
    load_cpu: float
    """The load program's share of one core; near 1 it was the limit itself."""
    broker_cpu: float
    """The broker's share of one core (more than 1: of several)."""
    broker_us: float
    """Processor time that the broker spent per delivery."""


def build() -> Path:
    """Compile the program unless that was done since it changed. Raises `BenchmarkError`."""
    changed = max(source.stat().st_mtime for source in _SOURCES)
    if _BINARY.exists() and _BINARY.stat().st_mtime >= changed:
        return _BINARY
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchmarkError("no C compiler here; on Debian: apt install gcc libc6-dev libssl-dev")
    _BINARY.parent.mkdir(parents=True, exist_ok=True)
    fresh = _BINARY.with_name(f"load-{os.getpid()}")  # two may build at the same time
    words = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(fresh)]
    words += [str(source) for source in _SOURCES if source.suffix == ".c"]
    words += ["-lssl", "-lcrypto"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"load.c does not compile (libssl-dev is needed):\n{done.stderr}")
    fresh.replace(_BINARY)
    return _BINARY


def command(broker: Broker, options: Sequence[str], *, tls: bool = False) -> list[str]:
    """The command that loads this broker."""
    spoken = next((each for each in ("web", "native") if f"--{each}" in options), broker.protocol)
    port = broker.ports["tls" if tls else spoken]
    words = [str(build()), "--host", "127.0.0.1", "--port", str(port), *options]
    if broker.protocol != "mqtt":
        words.append(f"--{broker.protocol}")
    if tls:
        words += ["--tls", "--ca", str(broker.authority)]
    if broker.user is not None:
        words += ["--user", broker.user, "--password", broker.password]
    return words


def run(
    broker: Broker,
    options: Sequence[str],
    *,
    duration_s: float,
    warmup_s: float = 0.4,
    tls: bool = False,
    core: int | None = None,
) -> Run:
    """Load a broker once, for `duration_s` after `warmup_s` that do not count.

    `core` ties the load program to one core. Raises `BenchmarkError` with what the program said
    when the run failed.
    """
    words = command(broker, options, tls=tls)
    words += ["--duration", str(duration_s), "--warmup", str(warmup_s), "--watch", str(broker.pid)]
    if core is not None:
        words = ["taskset", "--cpu-list", str(core), *words]
    try:
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            timeout=duration_s + warmup_s + _SILENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{broker.name}: the load program did not come to an end") from None
    if done.returncode:
        raise BenchmarkError(f"{broker.name}: {done.stderr.strip() or done.returncode}")
    answer: dict[str, float] = json.loads(done.stdout)
    return Run(
        delivered_per_s=answer["recv_s"],
        published_per_s=answer["pub_s"],
        p50_us=answer["p50_us"],
        p99_us=answer["p99_us"],
        acked_per_s=answer["ack_s"],
        ack_p50_us=answer["ack_p50_us"],
        ack_p99_us=answer["ack_p99_us"],
        late_p99_us=answer["late_p99_us"],
        lost=int(answer["lost"]),
        disordered=int(answer["disordered"]),
        refused=int(answer["refused"]),
        messages=int(answer["messages"]),
        load_cpu=answer["load_cpu"],
        broker_cpu=answer["broker_cpu"],
        broker_us=answer["broker_cpu"] * 1e6 / max(1, answer["recv_s"]),
    )


@contextmanager
def hold(broker: Broker, options: Sequence[str]) -> Generator[dict[str, float]]:
    """Make connections that only stay, such as ``--idle 10000``, and cut them at the end.

    They may be ``--subs`` too, so as to leave sessions behind that are ``--durable``.

    Yields what the load program told when all were made: their number, and how long it took in
    seconds. Raises `BenchmarkError` when they could not be made, or did not all stay.
    """
    words = command(broker, ("--pubs", "0", "--subs", "0", *options))
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if line:
            yield json.loads(line)
        process.stdin.close()
        told = process.stderr.read().strip()
        if process.wait() or not line:
            raise BenchmarkError(f"{broker.name}: {told or 'idle connections did not stay'}")
