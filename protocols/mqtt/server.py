"""What all MQTT connections of a node share: its settings and how users are authenticated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ganglion.broker.core.authentication import Mechanism, PasswordCheck
from ganglion.broker.core.node import Node

__all__ = ["MqttServer", "MqttSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """What a node offers over MQTT; what it does not, CONNACK announces (MQTT 5.0, 3.2.2.3)."""

    maximum_qos: int = 2
    """A PUBLISH above is refused with 0x9B; subscriptions are granted at most this."""
    retain_available: bool = True
    wildcard_subscriptions: bool = True
    subscription_identifiers: bool = True
    shared_subscriptions: bool = True
    check_payload_format: bool = False
    """Refuse a payload that says it is UTF-8 text and is not, with 0x99."""
    certificate_is_user: bool = False
    """The common name of a verified client certificate is the user; no password is asked for."""


class MqttServer:
    """Makes the protocol side of connections. Attributes may be replaced at any time (reload)."""

    def __init__(
        self,
        node: Node,
        settings: MqttSettings | None = None,
        authenticator: PasswordCheck | None = None,
        mechanisms: Mapping[str, Callable[[], Mechanism]] | None = None,
    ) -> None:
        """Without `authenticator` nobody needs a password; `mechanisms` for AUTH are by name."""
        self.node = node
        self.settings = settings or MqttSettings()
        self.authenticator = authenticator
        self.mechanisms = mechanisms or {}
