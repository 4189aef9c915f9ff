"""``ganglion health``: does a broker answer? For container and load balancer checks."""

import socket
import ssl
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

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

    Without ``url`` the first MQTT listener of the configuration that ``load`` gives is asked, or,
    if it has none, whether the first web listener finds that the node is ready. The broker's
    certificate is not checked: whether it serves is asked, not who it is, and the name in it is
    seldom this machine's own. A refusal for want of a password is an answer, too.
    """
    try:
        if url:
            target = Target.parse(url)
        else:
            listeners = load().listeners
            mqtt = [each for each in listeners if each.scheme in ("mqtt", "mqtts")]
            web = [each for each in listeners if each.scheme in ("web", "webs")]
            if not mqtt and web:
                return _check_web(web[0], timeout_s)
            target = _target_of(listeners[0] if not mqtt else mqtt[0])
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


def _check_web(listener: Listener, timeout_s: float) -> str:
    address = near(listener.address)
    try:
        if address.path is not None:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(timeout_s)
            connected.connect(address.path)
        else:
            connected = socket.create_connection((address.host, address.port), timeout_s)
        with connected:
            if listener.scheme == "webs":
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                connected = context.wrap_socket(connected)
            connection = HTTPConnection("localhost")
            connection.sock = connected
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            answer = response.read().decode()
            connection.close()
    except (OSError, HTTPException) as error:
        raise HealthError(f"{listener.scheme}://{address} does not answer: {error}") from error
    if response.status != 200:
        raise HealthError(f"{listener.scheme}://{address} is not ready: {answer.strip()}")
    return f"{listener.scheme}://{address} is ready"
