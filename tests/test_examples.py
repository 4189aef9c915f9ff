"""Every example is run as its head says, and prints what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {
    "embedded.py": [
        "plant/a/temperature 21.5",
        "plant/b/temperature 19.0",
        "plant/c/temperature 23.25",
    ],
    "queue_worker.py": [
        "done: rename (1 times)",
        "done: resize (1 times)",
        "done: send (1 times)",
        "failed: impossible (3 times)",
        "set aside: impossible",
    ],
    "stream_follow.py": [
        "1: plant/a/temperature 21.5",
        "2: plant/b/temperature 19.0",
        "3: plant/control pause",
        "back again",
        "4: plant/a/temperature 22.5",
        "another one, behind number 1",
        "2: plant/b/temperature 19.0",
    ],
    "device.py": [
        "status: online",
        "status: offline",
        "status: online",
        "command that waited: start",
    ],
    "request_reply.py": [
        "start: nobody answers there",
        "start: start at half speed: done",
        "stop: stop at once: done",
        "overload: error responder-left: the responder went away",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example_prints_what_it_promises(name: str) -> None:
    """An example runs to its end by itself."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTS[name]


def test_every_example_is_run() -> None:
    """No example is left to rot."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)
