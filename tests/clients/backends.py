"""How a test of the client runs under trio and under asyncio.

pytest-trio takes every coroutine function for one of trio's. `under_each` makes an ordinary test of
one, which runs its loop by itself, once for each backend. A test that names ``mesh`` gets one that
is connected to its broker, and ``other`` is a second client of the same broker.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

import anyio
import pytest

from ganglion.clients.mesh import Mesh, connect
from ganglion.testing import RunningBroker

__all__ = ["BACKENDS", "eventually", "run", "stuck", "under_each"]

BACKENDS: Final = ("asyncio", "trio")

_MESHES: Final = ("mesh", "other")
_DEADLINE_S: Final = 20.0  # a test that hangs fails; none that works comes near


def run(backend: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run this in a loop of its own, for a limited time."""

    async def limited() -> Any:
        with anyio.fail_after(_DEADLINE_S):
            return await main()

    if backend == "asyncio":  # as programs do that know nothing of anyio
        return asyncio.run(limited())
    return anyio.run(limited, backend=backend)


def under_each(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: one under each backend, with a broker of its own."""
    wanted = inspect.signature(test).parameters
    meshes = [name for name in wanted if name in _MESHES]

    def running(*, backend: str, broker: RunningBroker, **given: Any) -> None:
        if "broker" in wanted:
            given["broker"] = broker
        if "backend" in wanted:
            given["backend"] = backend

        async def main() -> None:
            async with AsyncExitStack() as stack:
                for name in meshes:
                    url = broker.native_url
                    mesh: Mesh = await stack.enter_async_context(connect(url, client=name))
                    given[name] = mesh
                await test(**given)

        run(backend, main)

    fixtures = [name for name in wanted if name not in (*_MESHES, "backend", "broker")]
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    running.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # pytest reads it for the fixtures
        [inspect.Parameter(name, keyword_only) for name in ("backend", "broker", *fixtures)]
    )
    running.__name__ = test.__name__
    running.__doc__ = test.__doc__
    running.__module__ = test.__module__
    running.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined] # marks below us
    parametrized: Callable[..., None] = pytest.mark.parametrize("backend", BACKENDS)(running)
    return parametrized


@contextmanager
def stuck(mesh: Mesh) -> Generator[None, None, None]:
    """A network that takes nothing from this mesh for a time, and loses nothing."""
    link = mesh._session.link
    assert link is not None
    released, send = anyio.Event(), link._transport.send

    async def waiting(data: bytes) -> None:
        await released.wait()
        await send(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(link._transport), "send_now", lambda _transport, _data: 0)
        patch.setattr(link._transport, "send", waiting)
        yield
    released.set()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until this is so, which others see to; the test's deadline is the limit."""
    while not condition():  # noqa: ASYNC110 - a condition of others has no event
        await anyio.sleep(0.001)
