"""What Ganglion adds to pytest: the fixture ``ganglion_broker``.

pytest loads this module at every start once Ganglion is installed, with the node or without, so it
imports nothing of the broker before a test asks for one.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ganglion import BrokerNotInstalled

if TYPE_CHECKING:
    from ganglion.testing import RunningBroker

__all__ = ["ganglion_broker"]


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
