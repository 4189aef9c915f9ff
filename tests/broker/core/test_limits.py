"""Every bound of a node: its range, its reason."""

from dataclasses import fields, replace

import pytest

from ganglion.broker.core.limits import InvalidLimit, Limits, describe_limits

NAMES = [each.name for each in fields(Limits)]


@pytest.mark.parametrize("name", NAMES)
def test_ranges(name: str) -> None:
    """Each limit takes both ends of its range and nothing beyond; the error names it."""
    metadata = Limits.__dataclass_fields__[name].metadata
    for value in (metadata["least"], metadata["most"]):
        assert getattr(replace(Limits(), **{name: value}), name) == value
    for value in (metadata["least"] - 1, metadata["most"] + 1):
        with pytest.raises(InvalidLimit, match=name):
            replace(Limits(), **{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_names_end_in_their_unit(name: str) -> None:
    """A limit is called after what it counts: a maximum, seconds or bytes."""
    assert name.endswith(("_max", "_bytes", "_s"))


def test_each_has_a_reason() -> None:
    """`describe_limits` gives name, value and a reason for every limit, in order."""
    limits = Limits(receive_max=7)
    described = describe_limits(limits)
    assert [name for name, _, _ in described] == NAMES
    assert ("receive_max", 7) in [(name, value) for name, value, _ in described]
    assert all(len(why) > 10 for _, _, why in described)


def test_they_do_not_change() -> None:
    """Limits are values: a reload replaces the whole object."""
    with pytest.raises(AttributeError):
        Limits().receive_max = 3  # type: ignore[misc]  # that is what is tested
