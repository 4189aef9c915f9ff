"""The measurement of the Python client: every program of every library does what it says."""

from pathlib import Path

import pytest

from bench import client_programs
from bench.client import LOOPS, measure_all

pytestmark = [pytest.mark.interop, pytest.mark.slow]


def test_every_figure(tmp_path: Path) -> None:
    """Three libraries, every loop that they run under, and no figure is nothing."""
    found = measure_all(tmp_path, runs=1, share=0.02)
    pairs = [(library, loop) for library, loops in LOOPS.items() for loop in loops]
    assert set(found) == {(*pair, what) for pair in pairs for what in client_programs.MEASURES}
    assert all(figure > 0 for figure in found.values())
