"""Deadlines on a clock that somebody else owns."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.core.timers import Timer, Timers


def _noting(called: list[tuple[str, float]], name: str) -> Callable[[float], None]:
    return lambda now: called.append((name, now))


def test_callbacks_come_in_order_of_time() -> None:
    """`run` calls what is due, by time and then by order of registration, and nothing else."""
    timers = Timers(100.0)
    called: list[tuple[str, float]] = []
    for name, when in (("c", 103.0), ("a", 101.0), ("b", 101.0), ("d", 104.5)):
        timers.at(when, _noting(called, name))
    timers.run(100.9)
    assert called == []
    timers.run(103.0)
    assert [name for name, _ in called] == ["a", "b", "c"]
    assert {now for _, now in called} == {103.0}
    assert timers.now == 103.0
    timers.run(200.0)
    assert [name for name, _ in called] == ["a", "b", "c", "d"]


def test_after_counts_from_now() -> None:
    """`after` is relative to the time of the current tick."""
    timers = Timers(10.0)
    called: list[tuple[str, float]] = []
    timers.run(20.0)
    timers.after(5.0, _noting(called, "x"))
    assert timers.next_deadline() == 25.0
    timers.run(24.9)
    assert called == []
    timers.run(25.0)
    assert called == [("x", 25.0)]


def test_a_cancelled_timer_does_not_call() -> None:
    """`cancel` keeps the callback from coming; again, or too late, it is harmless."""
    timers = Timers()
    called: list[tuple[str, float]] = []
    first = timers.at(1.0, _noting(called, "first"))
    second = timers.at(2.0, _noting(called, "second"))
    first.cancel()
    first.cancel()
    assert timers.next_deadline() == 2.0
    timers.run(5.0)
    second.cancel()
    assert called == [("second", 5.0)]
    assert timers.next_deadline() is None
    assert len(timers) == 0


def test_callbacks_may_set_and_cancel_timers() -> None:
    """What a callback sets for now runs in the same `run`; what it cancels does not."""
    timers = Timers()
    called: list[str] = []
    victim = timers.at(1.5, lambda _: called.append("victim"))

    def first(now: float) -> None:
        called.append("first")
        victim.cancel()
        timers.at(now, lambda _: called.append("at once"))
        timers.at(now + 1, lambda _: called.append("later"))

    timers.at(1.0, first)
    timers.run(2.0)
    assert called == ["first", "at once"]
    timers.run(3.0)
    assert called == ["first", "at once", "later"]


def test_a_callback_that_raises_costs_only_itself() -> None:
    """The others stay, and come with the next `run`."""
    timers = Timers()
    called: list[str] = []

    def broken(_now: float) -> None:
        raise ValueError("broken")

    timers.at(1.0, broken)
    timers.at(1.0, lambda _: called.append("other"))
    with pytest.raises(ValueError, match="broken"):
        timers.run(1.0)
    assert called == []
    timers.run(1.0)
    assert called == ["other"]
    assert len(timers) == 0


def test_cancelled_timers_do_not_pile_up() -> None:
    """A hundred thousand deadlines that are moved again and again take the room of a few."""
    timers = Timers()
    keep: Timer = timers.at(1e9, lambda _: None)
    for number in range(100_000):
        keep.cancel()
        keep = timers.at(1e9 + number, lambda _: None)
        assert len(timers) < 5000
    assert timers.next_deadline() == 1e9 + 99_999


@given(
    st.lists(
        st.tuples(st.sampled_from(["at", "cancel", "run"]), st.integers(0, 50), st.integers(0, 30)),
        max_size=80,
    )
)
def test_any_sequence(steps: list[tuple[str, int, int]]) -> None:
    """Like a plain list of deadlines, whatever is set, cancelled and run in whatever order."""
    timers = Timers()
    expected: dict[int, float] = {}
    handles: list[Timer] = []
    called: list[int] = []
    now = 0.0
    for step, value, index in steps:
        match step:
            case "at":
                number = len(handles)
                when = now + value - 10
                handles.append(timers.at(when, lambda _, n=number: called.append(n)))  # type: ignore[misc]  # the default binds n
                expected[number] = when
            case "cancel" if handles:
                handles[index % len(handles)].cancel()
                expected.pop(index % len(handles), None)
            case "run":
                now += value
                due = sorted((when, number) for number, when in expected.items() if when <= now)
                timers.run(now)
                assert called == [number for _, number in due]
                called.clear()
                for _, number in due:
                    del expected[number]
            case _:
                pass
        assert timers.next_deadline() == min(expected.values(), default=None)
