"""One test under trio and under asyncio."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

DEADLINE_S = 10.0
"""What a test may wait for before it has failed."""


def under_both(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test out of an async function: it is run by anyio, once under each of the two."""

    def run(*, backend: str, **fixtures: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(DEADLINE_S):
                await scenario(**fixtures)

        anyio.run(main, backend=backend)

    signature = inspect.signature(scenario)
    backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined] # pytest reads it there
        parameters=[*signature.parameters.values(), backend]
    )
    run.__name__, run.__doc__ = scenario.__name__, scenario.__doc__
    run.__module__, run.__qualname__ = scenario.__module__, scenario.__qualname__
    both: Callable[..., None] = pytest.mark.parametrize("backend", ["trio", "asyncio"])(run)
    return both


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true, for as long as a test may."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - any condition, of any thread, has no event
            await anyio.sleep(0.001)
