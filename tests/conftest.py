"""What holds for every test.

Hypothesis draws new examples on a developer's machine and the same ones in CI, so that a red build
speaks of the change in it. A test that lies in ``interop/`` or ``faults/`` carries the marker of
its folder. The settings of the one who runs the tests (``GANGLION_...``) do not reach them.
"""

import os
from pathlib import Path

import hypothesis
import pytest

_TESTS = Path(__file__).resolve().parent
_MARKED_FOLDERS = ("interop", "faults")

# Two cores are shared by several programs: the time of one example says nothing here.
hypothesis.settings.register_profile("developer", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)


def pytest_configure() -> None:
    """Load the profile of hypothesis and forget the settings of the one who runs the tests."""
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "developer")
    for name in [each for each in os.environ if each.startswith("GANGLION_")]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in a folder that has a marker of its own."""
    for folder in _MARKED_FOLDERS:
        for item in items:
            if item.path.is_relative_to(_TESTS / folder):
                item.add_marker(folder)
