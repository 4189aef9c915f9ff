"""Every key of the configuration, in one place: its name, its kind, its flag and what it is for.

A key is written ``table.name``, as in the TOML file. The same key has an environment variable,
``GANGLION_TABLE_NAME``, and some have a flag of ``ganglion serve``. `KEYS` is the only list:
`config` reads and checks by it, ``ganglion check`` prints by it, and a test holds
``docs/configuration.md`` to it.

A *kind* is a function from a raw value to the value the program uses. It raises `BadValue` with
the rule that the raw value breaks, worded so that it follows the key's name.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from ganglion import GanglionError
from ganglion.broker.core.limits import Limits
from ganglion.broker.net.addresses import Address, InvalidAddress, Networks

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_PORTS",
    "KEYS",
    "TABLES",
    "TLS_SCHEMES",
    "BadValue",
    "Key",
    "Raw",
    "parse_listener",
    "variable_of",
]

CONFIG_VARIABLE = "GANGLION_CONFIG"
"""The environment variable that names the configuration file when no ``--config`` does."""

DEFAULT_PORTS = {
    "mqtt": 1883,
    "mqtts": 8883,
    "native": 7883,
    "natives": 7884,
    "web": 8080,
    "webs": 8443,
}
"""What a listener can be for (its scheme), in the order of listening, and the port of each."""

TLS_SCHEMES = frozenset({"mqtts", "natives", "webs"})


_NODE_URL = re.compile(r"(ganglions?|wss?)://[^/\s?#@]+(/[^\s?#]*)?")
_ORIGIN = re.compile(r"https?://[^/\s?#@]+", re.IGNORECASE)


class BadValue(GanglionError):
    """A raw value breaks the rule of its key; the text is the rule, such as 'must be a number'."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A value as it was found, before its key's kind has looked at it."""

    value: object
    source: str
    """Where it was found, for people: ``file /etc/ganglion.toml``, ``flag --mqtt``, ``default``."""
    directory: Path
    """What a relative path in it is relative to: the file's directory, or the current one."""
    textual: bool = False
    """Whether it comes from the environment or a flag, where every value is a text."""


Kind = Callable[[Raw], Any]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration."""

    name: str
    kind: Kind
    why: str
    """What the key decides, as one sentence without its full stop."""
    flag: str | None = None
    reloads: bool = False
    """Whether SIGHUP brings a new value into force; a start is needed for the others."""


def variable_of(key: str) -> str:
    """The environment variable of a key: ``log.level`` is ``GANGLION_LOG_LEVEL``."""
    return "GANGLION_" + key.upper().replace(".", "_")


def parse_listener(text: str, scheme: str) -> Address:
    """The address that ``text`` names for a listener of ``scheme``, a key of `DEFAULT_PORTS`.

    See `Address.parse`; the scheme's port is meant when there is none. Raises `BadValue`.
    """
    try:
        return Address.parse(text, DEFAULT_PORTS[scheme])
    except InvalidAddress as error:
        raise BadValue(f"has a wrong address: {error}") from None


def _text(raw: Raw) -> str:
    if not isinstance(raw.value, str) or not raw.value.strip():
        raise BadValue("must be a text that is not empty")
    if "\0" in raw.value:
        raise BadValue("must not contain a zero character")
    return raw.value


def _boolean(raw: Raw) -> bool:
    if isinstance(raw.value, bool):
        return raw.value
    if raw.textual and isinstance(raw.value, str):
        match raw.value.strip().lower():
            case "true" | "yes" | "on" | "1":
                return True
            case "false" | "no" | "off" | "0":
                return False
            case _:
                pass
    raise BadValue("must be true or false")


def _path(raw: Raw) -> Path:
    text = _text(raw)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadValue(f"names a home directory that is not known: {error}") from None
    return path if path.is_absolute() else raw.directory / path


def _choice(*choices: str) -> Kind:
    def kind(raw: Raw) -> str:
        if isinstance(raw.value, str) and raw.value.strip().lower() in choices:
            return raw.value.strip().lower()
        raise BadValue(f"must be one of {', '.join(choices)}")

    return kind


def _number(least: float, most: float, *, whole: bool) -> Kind:
    wanted = f"must be a {'whole ' if whole else ''}number from {least} to {most}"

    def kind(raw: Raw) -> int | float:
        value: object = raw.value
        if raw.textual and isinstance(value, str):
            try:
                value = int(value) if whole else float(value)
            except ValueError:
                raise BadValue(wanted) from None
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise BadValue(wanted)
        if not least <= value <= most:
            raise BadValue(f"is {value}; it {wanted}")
        return value

    return kind


def _listeners(scheme: str) -> Kind:
    def kind(raw: Raw) -> tuple[Address, ...]:
        value: object = raw.value
        if isinstance(value, str) and raw.textual:
            items: list[object] = [each for part in value.split(",") if (each := part.strip())]
        elif isinstance(value, list | tuple):
            items = list(cast("list[object]", value))
        else:
            raise BadValue("must be a list of addresses")
        addresses: list[Address] = []
        for item in items:
            if not isinstance(item, str):
                raise BadValue("must be a list of addresses, each a text")
            address = parse_listener(item.strip(), scheme)
            if address in addresses and (address.port or address.path):
                raise BadValue(f"names {address} twice")
            addresses.append(address)
        return tuple(addresses)

    return kind


def _texts(raw: Raw) -> tuple[str, ...]:
    value: object = raw.value
    if isinstance(value, str) and raw.textual:
        return tuple(text for part in value.split(",") if (text := part.strip()))
    if not isinstance(value, list):
        raise BadValue("must be a list of texts")
    items = cast("list[object]", value)
    if not all(isinstance(item, str) for item in items):
        raise BadValue("must be a list of texts")
    return tuple(cast("list[str]", items))


def _networks(raw: Raw) -> tuple[str, ...]:
    networks = _texts(raw)
    try:
        Networks(networks)
    except InvalidAddress as error:
        raise BadValue(f"has a wrong address: {error}") from None
    return networks


def _schemes(raw: Raw) -> tuple[str, ...]:
    schemes = _texts(raw)
    for scheme in schemes:
        if scheme not in DEFAULT_PORTS:
            known = ", ".join(DEFAULT_PORTS)
            raise BadValue(f"has {scheme!r}, which is none of the listeners {known}")
    return schemes


def _origins(raw: Raw) -> tuple[str, ...]:
    origins = _texts(raw)
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise BadValue(
                f"has {origin!r}; an origin is written https://example.com or "
                "http://example.com:8080, without a path"
            )
    return origins


def _node_urls(raw: Raw) -> tuple[str, ...]:
    urls = _texts(raw)
    for url in urls:
        if not _NODE_URL.fullmatch(url):
            raise BadValue(
                f"has {url!r}; the address of a node is written ganglion://host:port, or "
                "ganglions://, ws:// or wss://"
            )
    return urls


def _tables(name: str) -> Kind:
    def kind(raw: Raw) -> tuple[Mapping[str, object], ...]:
        value: object = raw.value
        if raw.textual and isinstance(value, str):
            try:
                value = tomllib.loads(f"{name} = {value}").get(name)
            except tomllib.TOMLDecodeError as error:
                raise BadValue(f"must be a TOML list of inline tables: {error}") from None
        items = cast("list[object]", value) if isinstance(value, list) else [None]
        if not all(isinstance(item, dict) for item in items):
            raise BadValue(f"must be a list of tables, each written [[{name}]]")
        return tuple(cast("list[dict[str, object]]", items))

    return kind


def _limit_keys() -> list[Key]:
    keys: list[Key] = []
    for each in fields(Limits):
        kind = _number(each.metadata["least"], each.metadata["most"], whole=each.type is int)
        keys.append(Key(f"limits.{each.name}", kind, each.metadata["why"], "--limit", reloads=True))
    return keys


_ALL = [
    Key("node.name", _text, "how the node calls itself in its logs and to its peers"),
    Key(
        "listeners.mqtt", _listeners("mqtt"), "addresses that speak MQTT over TCP or Unix", "--mqtt"
    ),
    Key("listeners.mqtts", _listeners("mqtts"), "addresses that speak MQTT over TLS", "--mqtts"),
    Key(
        "listeners.native",
        _listeners("native"),
        "addresses that speak the native protocol over TCP or Unix",
        "--native",
    ),
    Key(
        "listeners.natives",
        _listeners("natives"),
        "addresses that speak the native protocol over TLS",
        "--natives",
    ),
    Key(
        "listeners.web",
        _listeners("web"),
        "addresses that speak HTTP and WebSocket: health, metrics, MQTT for browsers",
        "--web",
    ),
    Key("listeners.webs", _listeners("webs"), "addresses that speak the same over TLS", "--webs"),
    Key(
        "tls.certificate",
        _path,
        "PEM file with the server's certificate and its chain",
        "--tls-cert",
        reloads=True,
    ),
    Key(
        "tls.key",
        _path,
        "PEM file with the private key, when the certificate's file does not hold it",
        "--tls-key",
        reloads=True,
    ),
    Key(
        "tls.client_ca",
        _path,
        "PEM file with the authorities that may sign client certificates",
        "--tls-client-ca",
        reloads=True,
    ),
    Key(
        "tls.client_certificates",
        _choice("no", "optional", "required"),
        "whether a client over TLS is asked for a certificate, and must have one",
        reloads=True,
    ),
    Key(
        "tls.use_certificate_as_user",
        _boolean,
        "take the common name of a client's certificate as its user, without a password",
    ),
    Key("data.directory", _path, "where the node keeps what must survive a restart", "--data"),
    Key(
        "access.users",
        _path,
        "file with the users and their password hashes, as ganglion passwd writes it",
        "--users",
        reloads=True,
    ),
    Key(
        "access.token_key",
        _path,
        "file with the key that signs tokens, as ganglion token makes it",
        reloads=True,
    ),
    Key(
        "access.anonymous",
        _boolean,
        "let clients without a user name connect although there are users",
        reloads=True,
    ),
    Key(
        "access.insecure",
        _boolean,
        "allow an open node (one without users) to be reached from other machines",
        "--insecure",
        reloads=True,
    ),
    Key(
        "rules",
        _tables("rules"),
        "ordered rules that say who may do what: the first match decides",
        None,
        True,
    ),
    Key("queues", _tables("queues"), "queues that there are to be", reloads=True),
    Key("streams", _tables("streams"), "streams that there are to be", reloads=True),
    Key(
        "log.level",
        _choice("debug", "info", "warning", "error"),
        "the least severe messages to log",
        "--log-level",
        reloads=True,
    ),
    Key(
        "log.format",
        _choice("auto", "human", "json"),
        "human lines, JSON lines, or auto: human on a terminal and JSON otherwise",
        "--log-format",
    ),
    Key(
        "mqtt.sys_interval_s",
        _number(0, 86_400, whole=False),
        "seconds between two updates of $SYS/broker topics; 0: they are not published",
    ),
    Key(
        "mqtt.maximum_qos",
        _number(0, 2, whole=True),
        "the highest QoS that clients may use; a higher PUBLISH is refused with 0x9B",
    ),
    Key("mqtt.retain_available", _boolean, "whether clients may publish retained messages"),
    Key("mqtt.wildcard_subscriptions", _boolean, "whether filters may have + and #"),
    Key("mqtt.subscription_identifiers", _boolean, "whether MQTT 5 subscription identifiers work"),
    Key("mqtt.shared_subscriptions", _boolean, "whether clients may use $share/group/filter"),
    Key(
        "mqtt.check_payload_format",
        _boolean,
        "refuse a payload that says it is UTF-8 text and is not, with 0x99",
    ),
    Key(
        "native.addresses",
        _node_urls,
        "other nodes that native clients may turn to when this one stops, such as "
        "ganglion://b.example.com:7883",
    ),
    Key(
        "web.origins",
        _origins,
        "origins whose pages may use this node beside its own, such as https://shop.example.com",
    ),
    Key(
        "web.compression",
        _boolean,
        "agree to permessage-deflate on WebSockets: less traffic for more processor time",
    ),
    Key(
        "proxy.trusted",
        _networks,
        "addresses of proxies that may say whom they speak for, such as 10.0.0.0/8 or unix",
    ),
    Key(
        "proxy.listeners",
        _schemes,
        "listeners, such as mqtt, where trusted proxies begin with a PROXY v2 header",
    ),
]

KEYS: Mapping[str, Key] = {key.name: key for key in [*_ALL, *_limit_keys()]}
"""All keys by name, in the order in which they are shown."""

TABLES = tuple(dict.fromkeys(name.partition(".")[0] for name in KEYS if "." in name))
"""The names of the tables that a configuration file may have, but for lists of tables."""
