"""The broker that the tests of behaviour talk to: one for each module."""

from collections.abc import Iterator

import pytest

from tests.conformance.exchanges import WITH_MOSQUITTO
from tests.support import BrokerProcess, mosquitto, start_daemon


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    """The broker that all tests of this module talk to."""
    with mosquitto() if WITH_MOSQUITTO else start_daemon() as process:
        yield process


@pytest.fixture
def port(broker: BrokerProcess) -> int:
    """Where it speaks MQTT."""
    return broker.ports["mqtt"]
