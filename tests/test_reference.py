"""docs/reference.md is what the docstrings say, and leaves no public name out."""

import pytest

import ganglion
import ganglion.testing
from docs.reference import PAGE, reference

pytestmark = pytest.mark.slow


def test_the_reference_is_what_the_docstrings_say() -> None:
    """The page in the repository is the one that would be written now."""
    assert PAGE.read_text("utf-8") == reference(), "run `make reference`"


@pytest.mark.parametrize("module", [ganglion, ganglion.testing], ids=lambda each: each.__name__)
def test_the_reference_has_every_public_name(module: object) -> None:
    """Each name has an entry of its own, under a heading that can be linked to."""
    lines = PAGE.read_text("utf-8").splitlines()
    names = set(getattr(module, "__all__", ())) - {"__version__", "sync"}
    assert len(names) > 3
    assert {name for name in names if lines.count(f"### {name}") != 1} == set()


def test_links_of_the_reference_lead_somewhere() -> None:
    """Whatever a link within the page names is a heading of the page."""
    page = PAGE.read_text("utf-8")
    headings = {
        line.lstrip("#").strip().lower().replace(".", "")
        for line in page.splitlines()
        if line.startswith("#")
    }
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert len(links) > 60
    assert links - headings == set()
