"""What Ganglion adds to pytest: ``ganglion_broker``, ``ganglion_mesh``, ``ganglion_connect``.

pytest loads this module at every start once Ganglion is installed, with the node or without, so it
imports nothing of the broker before a test asks for one.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from ganglion import BrokerNotInstalled

if TYPE_CHECKING:
    from ganglion import connect, sync
    from ganglion.testing import RunningBroker

__all__ = ["ganglion_broker", "ganglion_connect", "ganglion_mesh"]


@pytest.fixture
def ganglion_broker() -> "Iterator[RunningBroker]":
    """A broker of this test's own on a free port of 127.0.0.1: ``.host``, ``.port``, ``.url``.

    It runs in a thread, so tests of any kind can use it: plain, trio and asyncio. It needs
    ``ganglion[broker]``; without it the test that asks for a broker fails, and says so.
    """
    try:
        from ganglion.testing import broker_thread
    except BrokerNotInstalled as error:
        pytest.fail(str(error), pytrace=False)

    with broker_thread() as broker:
        yield broker


@pytest.fixture
def ganglion_mesh(ganglion_broker: "RunningBroker") -> "Iterator[sync.Mesh]":
    """A synchronous client of the test's own broker, connected."""
    from ganglion import sync

    with sync.connect(ganglion_broker.native_url) as mesh:
        yield mesh


@pytest.fixture
def ganglion_connect(ganglion_broker: "RunningBroker") -> "Callable[..., connect]":
    """What connects to the broker of the test, in ``async with``, and gives a mesh.

    It works under pytest-trio, pytest-asyncio and anyio's plugin alike; options are those of
    `ganglion.connect`.
    """
    from functools import partial

    from ganglion import connect

    return partial(connect, ganglion_broker.native_url)
