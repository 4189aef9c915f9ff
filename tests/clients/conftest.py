"""The broker that each test of the client has to itself."""

from collections.abc import Iterator

import pytest

from ganglion.testing import RunningBroker, broker_thread


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    """A broker in a thread; it is there in 2 ms."""
    with broker_thread() as running:
        yield running
