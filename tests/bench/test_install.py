"""The program that measures installations counts what is there, and times what it starts."""

import sys
from pathlib import Path

import pytest

from bench import install
from bench.brokers import BenchmarkError


def installed(site: Path, name: str, files: dict[str, int]) -> None:
    """Put a distribution there whose files have these sizes in bytes."""
    records = list(files)
    for path, size_bytes in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(b"x" * size_bytes)
    about = site / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in [*records, "gone.py"]))


def test_sizes_are_of_distributions(tmp_path: Path) -> None:
    """Files are counted by who installed them, and what a node alone uses apart."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    installed(site, "other", {"other.py": 400_000})
    installed(
        site,
        "ganglion",
        {
            "ganglion/__init__.py": 20_000,
            "ganglion/broker/core/node.py": 200_000,
            "ganglion/protocols/native/frames.py": 30_000,
            "ganglion/protocols/mqtt/codec.py": 50_000,
        },
    )
    sizes = install.distributions(install.Environment(tmp_path))
    assert list(sizes) == ["other 1.0", "ganglion 1.0, the node's code", "ganglion 1.0"]
    for found, least in zip(sizes.values(), (400_000, 250_000, 50_000), strict=True):
        assert least <= found < least + 20_000  # whole blocks of the file system


@pytest.mark.slow
def test_times_are_of_whole_processes() -> None:
    """What does more takes longer than Python alone, and the limit of issue 5 is judged."""
    here = install.Environment(Path(sys.prefix))
    figures = {each.what: each for each in install.measure_times(here, here, rounds=1)}
    assert figures["Python alone"].processor_ms > 0
    assert figures["import ganglion.testing"].processor_ms > figures["Python alone"].processor_ms
    asked = figures["every public name of the client"]
    assert asked.limit_ms == install.IMPORT_MS_MAX
    assert asked.is_reached == (asked.processor_ms < 150)


@pytest.mark.slow
def test_what_cannot_be_installed_is_told(tmp_path: Path) -> None:
    """A failing pip is an error with its words."""
    with pytest.raises(BenchmarkError, match="no-such-file"):
        install.Environment.make(tmp_path / "venv", str(tmp_path / "no-such-file.whl"))
