"""The program that measures streams measures what it says."""

from pathlib import Path

import pytest

from bench import streams


def test_figures_of_a_small_run(tmp_path: Path) -> None:
    """Every record is appended, synced and read back."""
    figures = streams.measure(tmp_path, records=4000, batch=100, rounds=1)
    assert figures.appended_per_s > 0
    assert figures.read_per_s > 0
    assert figures.commits > 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines: append and read."""
    streams.main(["--records", "2000", "--rounds", "1", "--directory", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["append", "read"]
