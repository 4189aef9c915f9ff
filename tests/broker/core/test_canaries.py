"""Whose messages are for canaries: by key, or spread by number."""

import pytest

from ganglion.broker.core.canaries import canary_share, is_for_canaries, sharing_options
from ganglion.broker.core.definitions import InvalidDefinition

KEYS = [f"order-{number}" for number in range(10_000)]
OF_THE_FIRST_100 = [f"order-{number}" for number in (20, 41, 48, 49, 65, 88, 97)]
"""Those that are for canaries with a share of a twentieth."""


def chosen(share: float) -> set[str]:
    """The keys that are for canaries."""
    return {key for key in KEYS if is_for_canaries(share, key, 0)}


def test_a_key_is_on_the_same_side_for_ever() -> None:
    """What is chosen does not depend on the process, nor on the number of the message.

    These are what the function says today: a version that says something else would move keys of
    every queue there is.
    """
    first = [key for key in KEYS[:100] if is_for_canaries(0.05, key, 0)]
    assert first == [key for key in KEYS[:100] if is_for_canaries(0.05, key, 99)]
    assert first == OF_THE_FIRST_100


def test_as_many_keys_are_chosen_as_the_share_says() -> None:
    """Within what chance allows for ten thousand keys that differ by a digit or two."""
    for share in (0.01, 0.1, 0.5, 0.9):
        assert len(chosen(share)) == pytest.approx(share * len(KEYS), rel=0.1)


def test_a_share_that_grows_only_adds_keys() -> None:
    """None of them goes back to the others on the way from nothing to everything."""
    shares = [step / 20 for step in range(21)]
    before: set[str] = set()
    for share in shares:
        now = chosen(share)
        assert before <= now
        before = now
    assert chosen(0.0) == set()
    assert before == set(KEYS)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_without_keys_messages_are_spread_evenly(share: float) -> None:
    """Of any two hundred in a row as many are chosen as the share says, but for one or two."""
    numbers = [is_for_canaries(share, None, number) for number in range(1, 3000)]
    for first in range(0, 2800, 50):
        assert abs(sum(numbers[first : first + 200]) - share * 200) <= 2


def test_a_share_that_grows_only_adds_numbers() -> None:
    """A message that is for canaries still is with a larger share."""
    for number in range(1, 1000):
        sides = [is_for_canaries(step / 20, None, number) for step in range(21)]
        assert sides == sorted(sides)
        assert (sides[0], sides[-1]) == (False, True)


def test_the_share_of_a_member() -> None:
    """It is an option in text, with either way to write its name; the last one counts."""
    assert sharing_options([("x", "1")]) == ()
    assert canary_share(()) is None
    for name in ("canary_share", "canary-share"):
        options = sharing_options([("canary_share", "0.5"), ("x", "1"), (name, "0.25")])
        assert options == (("canary_share", "0.25"),)
        assert canary_share(options) == 0.25


@pytest.mark.parametrize("text", ["-0.1", "1.1", "nan", "much", ""])
def test_a_share_that_is_none(text: str) -> None:
    """The answer names the option and what it may be."""
    with pytest.raises(InvalidDefinition, match=r"option canary_share is .* must be"):
        sharing_options([("canary_share", text)])
