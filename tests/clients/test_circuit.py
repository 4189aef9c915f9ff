"""The circuit breaker: its table of states on a clock of our own, and on requests to a node."""

import anyio
import pytest

from ganglion.clients.circuit import CircuitBreaker, CircuitState
from ganglion.clients.errors import (
    BadOption,
    CircuitOpen,
    NoResponders,
    ResponderFailed,
    TimedOut,
)
from ganglion.clients.mesh import connect
from ganglion.testing import RunningBroker
from tests.clients.backends import under_each


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


def end(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """Let one request through, which ends so."""
    breaker.ended(breaker.admit(), error)


def state_of(breaker: CircuitBreaker) -> CircuitState:
    """What it does with the next request: a call, for type checkers take properties as fixed."""
    return breaker.state


def opened(clock: Clock) -> CircuitBreaker:
    """A breaker that is open for 10 s."""
    breaker = CircuitBreaker(failures_in_a_row=1, cool_down_s=10, clock=clock)
    end(breaker, TimedOut("no answer"))
    assert state_of(breaker) is CircuitState.OPEN
    return breaker


def test_failures_in_a_row_open_it() -> None:
    """A success in between begins the row anew; the last of the row opens it."""
    breaker = CircuitBreaker(failures_in_a_row=3, clock=Clock())
    for outcome in (TimedOut(""), TimedOut(""), None, TimedOut(""), TimedOut("")):
        end(breaker, outcome)
        assert state_of(breaker) is CircuitState.CLOSED
    end(breaker, NoResponders("no_responders", "nobody"))
    assert state_of(breaker) is CircuitState.OPEN


def test_open_it_lets_nothing_through_and_says_until_when() -> None:
    """The error has the seconds that are left, and so has its text; it is counted."""
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 7.5
    with pytest.raises(CircuitOpen, match=r"the next attempt is in 2\.5 s") as refused:
        breaker.admit()
    assert refused.value.wait_s == 2.5
    assert breaker.statistics().refused == 1


def test_one_probe_closes_it() -> None:
    """After the cool-down one request is let through and others are not; its success closes it."""
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10
    assert state_of(breaker) is CircuitState.HALF_OPEN
    with breaker.attempt(), pytest.raises(CircuitOpen, match="an attempt is under way"):
        breaker.admit()
    assert state_of(breaker) is CircuitState.CLOSED
    end(breaker)


def test_a_probe_that_fails_opens_it_for_another_cool_down() -> None:
    """The time counts from the end of the probe."""
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 25
    end(breaker, TimedOut("again"))
    assert state_of(breaker) is CircuitState.OPEN
    clock.now_s += 9.9
    assert state_of(breaker) is CircuitState.OPEN
    clock.now_s += 0.1
    assert state_of(breaker) is CircuitState.HALF_OPEN
    assert breaker.statistics().opened == 2


def test_a_cancelled_probe_says_nothing() -> None:
    """The next request is the probe then."""
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 10
    end(breaker, KeyboardInterrupt())
    assert state_of(breaker) is CircuitState.HALF_OPEN
    end(breaker)
    assert state_of(breaker) is CircuitState.CLOSED


def test_what_was_asked_before_it_opened_counts_for_nothing_after() -> None:
    """Neither does a late failure fail the probe, nor a late success close the circuit."""
    clock = Clock()
    breaker = CircuitBreaker(failures_in_a_row=1, cool_down_s=10, clock=clock)
    early, late = breaker.admit(), breaker.admit()
    breaker.ended(early, TimedOut(""))
    clock.now_s += 10
    assert state_of(breaker) is CircuitState.HALF_OPEN
    breaker.ended(late, None)
    assert state_of(breaker) is CircuitState.HALF_OPEN
    probe = breaker.admit()
    breaker.ended(early, TimedOut(""))
    breaker.ended(probe, None)
    assert state_of(breaker) is CircuitState.CLOSED


def test_a_share_of_failures_opens_it() -> None:
    """More than half of the last ten, however they are spread; not before there were ten."""
    breaker = CircuitBreaker(
        failures_in_a_row=None, failure_share=0.5, requests_min=10, clock=Clock()
    )
    for _ in range(5):
        end(breaker, TimedOut(""))
        end(breaker)
    assert state_of(breaker) is CircuitState.CLOSED
    end(breaker, TimedOut(""))
    assert state_of(breaker) is CircuitState.OPEN


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """Failures of long ago are no reason to open, and take no memory."""
    clock = Clock()
    breaker = CircuitBreaker(
        failures_in_a_row=None, failure_share=0.5, requests_min=4, window_s=10, clock=clock
    )
    for _ in range(3):
        end(breaker, TimedOut(""))
    for _ in range(100):
        clock.now_s += 1
        end(breaker)
    assert len(breaker._window) <= 10
    for _ in range(10):
        end(breaker, TimedOut(""))
        assert state_of(breaker) is CircuitState.CLOSED
    end(breaker, TimedOut(""))
    assert state_of(breaker) is CircuitState.OPEN


def test_an_answer_with_an_error_is_an_answer() -> None:
    """ResponderFailed counts as a success by default, and as a failure for who wants that."""
    failed = ResponderFailed("responder_failed", "sold out")
    breaker = CircuitBreaker(failures_in_a_row=1)
    end(breaker, failed)
    assert state_of(breaker) is CircuitState.CLOSED
    breaker = CircuitBreaker(failures_in_a_row=1, failures=(ResponderFailed,))
    end(breaker, failed)
    assert state_of(breaker) is CircuitState.OPEN


def test_statistics_say_what_it_has_seen() -> None:
    """Ends by kind, requests that were refused, and the state."""
    breaker = CircuitBreaker(failures_in_a_row=2, clock=Clock())
    for outcome in (None, TimedOut(""), TimedOut("")):
        end(breaker, outcome)
    with pytest.raises(CircuitOpen):
        breaker.admit()
    found = breaker.statistics()
    assert (found.state, found.succeeded, found.failed) == (CircuitState.OPEN, 1, 2)
    assert (found.refused, found.opened) == (1, 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"failures_in_a_row": None}, "failure_share"),
        ({"failures_in_a_row": 0}, "failures_in_a_row"),
        ({"failure_share": 1.0}, "failure_share"),
        ({"requests_min": 0}, "requests_min"),
        ({"window_s": 0}, "window_s"),
        ({"cool_down_s": float("nan")}, "cool_down_s"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, float | None], named: str) -> None:
    """A breaker that would never open, or never close, is a mistake."""
    with pytest.raises(BadOption, match=named):
        CircuitBreaker(**options)  # type: ignore[arg-type] # each has the type of its option


@under_each
async def test_requests_to_nobody_open_it(broker: RunningBroker) -> None:
    """Once it is open the node is not asked; when somebody serves again, the probe closes it."""
    clock = Clock()
    breaker = CircuitBreaker(failures_in_a_row=2, cool_down_s=5, clock=clock)
    async with connect(broker.native_url) as mesh:
        for _ in range(2):
            with pytest.raises(NoResponders):
                await mesh.request("pricing/quote", breaker=breaker)
        with pytest.raises(CircuitOpen):
            await mesh.request("pricing/quote", breaker=breaker)
        clock.now_s += 5
        async with mesh.serve("pricing/quote") as requests, anyio.create_task_group() as tasks:
            tasks.start_soon(mesh.request, "pricing/quote")
            answered = await anext(requests)
            await answered.reply()

            async def ask() -> None:
                reply = await mesh.request("pricing/quote", breaker=breaker)
                assert reply.payload == b"12"

            tasks.start_soon(ask)
            await (await anext(requests)).reply(b"12")
        assert state_of(breaker) is CircuitState.CLOSED
