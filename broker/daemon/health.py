"""``ganglion health``: does a broker answer? For container and load balancer checks."""

from collections.abc import Callable

from ganglion import GanglionError
from ganglion.broker.daemon.banner import near
from ganglion.broker.daemon.client import (
    ClientError,
    MqttClient,
    Refused,
    Target,
    tls_context,
)
from ganglion.broker.daemon.config import Configuration, Listener
from ganglion.protocols.mqtt.reasons import Reason

__all__ = ["HealthError", "check_health"]

_WANTS_A_PASSWORD = frozenset({Reason.BAD_USER_NAME_OR_PASSWORD, Reason.NOT_AUTHORIZED})


class HealthError(GanglionError):
    """The broker is not well; the message says how."""


def check_health(url: str | None, load: Callable[[], Configuration], timeout_s: float) -> str:
    """Connect and ping, and say in a sentence what answered. Raises `HealthError`.

    Without ``url`` the first listener of the configuration that ``load`` gives is asked. The
    broker's certificate is not checked: whether it serves is asked, not who it is, and the name in
    it is seldom this machine's own. A refusal for want of a password is an answer, too.
    """
    try:
        target = Target.parse(url) if url else _target_of(load().listeners[0])
    except ClientError as error:
        raise HealthError(str(error)) from error
    try:
        tls = tls_context(ca=None, certificate=None, key=None, verify=False) if target.tls else None
        with MqttClient(target, timeout_s=timeout_s, tls=tls) as client:
            client.ping()
    except Refused as refusal:
        if refusal.reason in _WANTS_A_PASSWORD:
            return f"{target} answers (and wants a password)"
        raise HealthError(str(refusal)) from refusal
    except ClientError as error:
        raise HealthError(str(error)) from error
    return f"{target} answers"


def _target_of(listener: Listener) -> Target:
    address = listener.address
    if address.path is not None:
        return Target(path=address.path)
    address = near(address)
    return Target(host=address.host, port=address.port, tls=listener.scheme == "mqtts")
