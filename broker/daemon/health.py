"""``ganglion health``: does a broker answer? For container and load balancer checks."""

import socket
import ssl
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

from ganglion import GanglionError
from ganglion.broker.daemon.banner import near
from ganglion.broker.daemon.config import Configuration, Listener
from ganglion.broker.daemon.probe import ProbeError, Refused, Target, probe
from ganglion.clients import errors as native
from ganglion.clients.addresses import NodeAddress
from ganglion.clients.addresses import tls_context as native_tls_context
from ganglion.clients.command_line.connection import BlockingClient
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.protocols.native.operations import Code

__all__ = ["HealthError", "check_health"]

_NATIVE_SCHEMES = frozenset({"ganglion", "ganglions", "ws", "wss"})
_WANTS_A_PASSWORD = frozenset({Reason.BAD_USER_NAME_OR_PASSWORD, Reason.NOT_AUTHORIZED})


class HealthError(GanglionError):
    """The broker is not well; the message says how."""


def check_health(url: str | None, load: Callable[[], Configuration], timeout_s: float) -> str:
    """Connect and ping, and say in a sentence what answered. Raises `HealthError`.

    Without ``url`` the first MQTT listener of the configuration that ``load`` gives is asked; if it
    has none, whether the first web listener finds that the node is ready; if it has neither, the
    first native listener. The broker's
    certificate is not checked: whether it serves is asked, not who it is, and the name in it is
    seldom this machine's own. A refusal for want of a password is an answer, too.
    """
    try:
        if url:
            if url.partition("://")[0] in _NATIVE_SCHEMES:
                return _check_native(NodeAddress.parse(url), timeout_s)
            target = Target.parse(url)
        else:
            listeners = load().listeners
            mqtt = [each for each in listeners if each.scheme in ("mqtt", "mqtts")]
            web = [each for each in listeners if each.scheme in ("web", "webs")]
            if not mqtt and web:
                return _check_web(web[0], timeout_s)
            if not mqtt:
                return _check_native(_native_address_of(listeners[0]), timeout_s)
            target = _target_of(mqtt[0])
    except (ProbeError, native.ClientError) as error:
        raise HealthError(str(error)) from error
    try:
        probe(target, timeout_s)
    except Refused as refusal:
        if refusal.reason in _WANTS_A_PASSWORD:
            return f"{target} answers (and wants a password)"
        raise HealthError(str(refusal)) from refusal
    except ProbeError as error:
        raise HealthError(str(error)) from error
    return f"{target} answers"


def _target_of(listener: Listener) -> Target:
    address = listener.address
    if address.path is not None:
        return Target(path=address.path)
    address = near(address)
    return Target(host=address.host, port=address.port, tls=listener.scheme == "mqtts")


def _native_address_of(listener: Listener) -> NodeAddress:
    address = listener.address
    if address.path is not None:
        return NodeAddress(scheme="unix", path=address.path)
    address = near(address)
    scheme = "ganglions" if listener.scheme == "natives" else "ganglion"
    return NodeAddress(scheme=scheme, host=address.host, port=address.port)


def _check_native(address: NodeAddress, timeout_s: float) -> str:
    tls = None
    if address.is_tls:
        tls = native_tls_context(ca=None, certificate=None, key=None, verify=False)
    try:
        with BlockingClient(address, options={}, tls=tls, timeout_s=timeout_s) as client:
            client.ping()
    except native.Refused as refusal:
        if refusal.code in (Code.NOT_AUTHENTICATED, Code.NOT_ALLOWED):
            return f"{address} answers (and wants a password)"
        raise
    return f"{address} answers"


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
