"""``ganglion health``: what is asked, and what counts as being well."""

import pytest

from ganglion.broker.daemon.config import Configuration, Flag, load
from ganglion.broker.daemon.health import HealthError, check_health
from ganglion.protocols.mqtt.packets import Connack
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.testing import RunningBroker, broker_thread
from tests.mqtt_client import scripted_broker


def no_configuration() -> Configuration:
    """Stands for the configuration where the URL is given, and it must not be asked for."""
    raise AssertionError("the configuration was asked for")


def test_a_broker_that_serves_is_healthy(ganglion_broker: RunningBroker) -> None:
    """A ping that is answered is health."""
    url = ganglion_broker.url
    assert check_health(url, no_configuration, 5) == f"{url} answers"


def test_a_broker_that_wants_a_password_is_healthy() -> None:
    """The check needs no account: to be refused politely is an answer."""
    with broker_thread(users={"ada": "secret"}) as running:
        assert "wants a password" in check_health(running.url, no_configuration, 5)


def test_other_refusals_are_not_health() -> None:
    """A broker that turns everybody away is not well."""
    with (
        scripted_broker(Connack(False, Reason.SERVER_BUSY)) as target,
        pytest.raises(HealthError, match="server busy"),
    ):
        check_health(str(target), no_configuration, 5)


def test_nobody_is_not_health() -> None:
    """Where nobody listens, nobody is well."""
    with pytest.raises(HealthError, match="cannot connect"):
        check_health("unix:/nonexistent", no_configuration, 5)


def test_a_node_is_asked_over_the_native_protocol() -> None:
    """By its URL, or where it has no other listener; to want a password is health there, too."""
    with broker_thread() as running:
        url = running.native_url
        assert check_health(url, no_configuration, 5) == f"{url} answers"
        flags = [Flag("listeners.native", (f"127.0.0.1:{running.native_port}",), "--native")]
        answer = check_health(None, lambda: load(environment={"HOME": "/"}, flags=flags), 5)
        assert answer == f"{url} answers"
    with broker_thread(users={"ada": "secret"}) as running:
        assert "wants a password" in check_health(running.native_url, no_configuration, 5)
    with pytest.raises(HealthError, match="cannot connect"):
        check_health(running.native_url, no_configuration, 5)


def test_a_node_with_a_web_listener_alone_is_asked_there() -> None:
    """The health check then reads `/readyz`, and says when nobody answers."""
    with broker_thread(web=True) as running:
        flags = [Flag("listeners.web", (f"0.0.0.0:{running.web_port}",), "--web")]
        flags.append(Flag("access.insecure", True, "--insecure"))

        def configuration() -> Configuration:
            return load(environment={"HOME": "/"}, flags=flags)

        answer = check_health(None, configuration, 5)
        assert answer == f"web://127.0.0.1:{running.web_port} is ready"
    with pytest.raises(HealthError, match="does not answer"):
        check_health(None, configuration, 5)


def test_the_first_listener_is_asked_on_this_machine(ganglion_broker: RunningBroker) -> None:
    """Without a URL the configuration says where; a listener on all addresses is near, too."""
    flags = [
        Flag("listeners.mqtt", (f"0.0.0.0:{ganglion_broker.port}",), "--mqtt"),
        Flag("access.insecure", True, "--insecure"),
    ]
    answer = check_health(None, lambda: load(environment={"HOME": "/"}, flags=flags), 5)
    assert answer == f"{ganglion_broker.url} answers"
