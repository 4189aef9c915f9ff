"""The configuration of a node: one TOML file, over it the environment, over that the flags.

`load` reads all three, checks every value and gives a `Configuration`, or raises one
`ConfigurationError` that holds every `Problem` found, so that a user mends them all in one go.
Every value remembers its source. Nothing here opens what a value names, such as the users file or
a certificate: `materials` does that.
"""

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from ganglion import GanglionError
from ganglion.broker.core.access import Rule
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.daemon.definitions import parse_queues, parse_streams
from ganglion.broker.daemon.rules import parse_rules
from ganglion.broker.daemon.settings import (
    CONFIG_VARIABLE,
    DEFAULT_PORTS,
    KEYS,
    TABLES,
    TLS_SCHEMES,
    BadValue,
    Key,
    Raw,
    parse_listener,
    variable_of,
)
from ganglion.broker.net.addresses import Address

__all__ = [
    "TOKEN_KEY",
    "Configuration",
    "ConfigurationError",
    "Flag",
    "Listener",
    "Problem",
    "Tls",
    "load",
    "shown",
]

_T = TypeVar("_T")

_FILE_SIZE_MAX_BYTES = 4 * 1024 * 1024  # a configuration is small: more is a wrong file

TOKEN_KEY = "token.key"  # noqa: S105 - the name of a file
"""The file in the data directory that has the key of tokens, where none is configured."""

_MQTT_DEFAULTS = {
    "maximum_qos": 2,
    "retain_available": True,
    "wildcard_subscriptions": True,
    "subscription_identifiers": True,
    "shared_subscriptions": True,
    "check_payload_format": False,
}

_TOGETHER = (
    "listeners.",
    "tls.",
    "access.",
    "data.",
    "proxy.",
)  # tables that `_contradictions` looks at

_CLIENT_VARIABLES = frozenset(
    f"GANGLION_{name}" for name in ("URL", "CONTEXT", "USER", "PASSWORD", "TOKEN")
)

# Kubernetes and Docker links describe a service called "ganglion" (or "ganglion-…") to every
# container beside it in variables of these forms: they are not the user's settings.
_SERVICE_LINK = re.compile(
    r"GANGLION(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a configuration is not accepted."""

    source: str
    """The file, variable or flag that has to be changed."""
    key: str
    """The key, or empty when the source as a whole cannot be read."""
    rule: str
    """What is wrong and what is right, worded so that it follows the key."""

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.key} {self.rule}" if self.key else f"{self.source}: {self.rule}"
        )


class ConfigurationError(GanglionError):
    """A configuration is not accepted; `problems` holds every reason and is never empty."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Flag:
    """A value given on the command line: for which key, and as which flag it is shown."""

    key: str
    value: object
    flag: str


@dataclass(frozen=True, slots=True)
class Listener:
    """One address to listen on, and for what."""

    scheme: str
    """A key of `DEFAULT_PORTS`, such as ``mqtt``."""
    address: Address
    optional: bool = False
    """Whether the node starts without it when the machine lacks its address family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Where certificates are, and what is asked of clients."""

    certificate: Path
    key: Path | None
    client_ca: Path | None
    client_certificates: str
    """``no``, ``optional`` or ``required``."""
    use_certificate_as_user: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A complete, checked configuration. Immutable: a reload makes a new one."""

    node_name: str
    listeners: tuple[Listener, ...]
    tls: Tls | None
    data_directory: Path
    users_file: Path | None
    """None: nobody has configured users, and there is no ``users`` in the data directory."""
    token_key_file: Path | None
    """None: nobody has configured a key, and there is no `TOKEN_KEY` in the data directory."""
    anonymous: bool
    insecure: bool
    rules: tuple[Rule, ...]
    """In order: the first that matches decides."""
    queues: tuple[QueueDefinition, ...]
    """Behind the queues that their dead letters go to."""
    streams: tuple[StreamDefinition, ...]
    limits: Limits
    log_level: str
    log_format: str
    sys_interval_s: float
    mqtt: Mapping[str, Any]
    """What is offered to MQTT clients: the fields of `MqttSettings` that are keys of ``mqtt``."""
    native_addresses: tuple[str, ...]
    """Other nodes that clients may turn to, as URLs."""
    origins: tuple[str, ...]
    """Whose pages may use the web listener, beside the node's own."""
    compression: bool
    """Whether WebSockets may be compressed."""
    trusted: tuple[str, ...]
    """Networks of proxies that may say whom they speak for."""
    proxied: tuple[str, ...]
    """Schemes of listeners where these proxies begin with a PROXY header."""
    values: Mapping[str, object]
    """The effective value of every key; None for one that has neither value nor default."""
    sources: Mapping[str, str]
    """Where each of `values` comes from, under the same keys."""

    @property
    def has_users(self) -> bool:
        """Whether clients have to say who they are: by the users file or by a certificate."""
        return self.users_file is not None or (
            self.tls is not None and self.tls.use_certificate_as_user
        )

    def changed_beside_reload(self, new: "Configuration") -> list[str]:
        """The keys whose values differ in ``new`` but come into force only at a start."""
        return [
            key.name
            for key in KEYS.values()
            if not key.reloads and self.values[key.name] != new.values[key.name]
        ]


def load(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[Flag] = (),
    directory: Path | None = None,
    serving: bool = True,
) -> Configuration:
    """The configuration from a file, the environment and flags, the later over the earlier.

    Without ``file`` the environment's ``GANGLION_CONFIG`` names it, and without that there is
    none. ``environment`` is the process's own unless given, and ``directory`` (to which relative
    paths of the environment and of flags are relative) the current one. With ``serving`` off the
    configuration is only to be looked at: an open node that others could reach is accepted, so that
    it can get its first user. Raises `ConfigurationError` with everything that is wrong.
    """
    environment = os.environ if environment is None else environment
    directory = Path.cwd() if directory is None else directory
    if file is None and environment.get(CONFIG_VARIABLE):
        file = directory / environment[CONFIG_VARIABLE]
    problems: list[Problem] = []
    raws: dict[str, Raw] = {}
    if file is not None:
        raws.update(_read_file(file, problems))
    raws.update(_read_environment(environment, directory, problems))
    for flag in flags:
        if flag.key in KEYS:
            raws[flag.key] = Raw(flag.value, f"flag {flag.flag}", directory, textual=True)
        else:
            problems.append(Problem(f"flag {flag.flag}", flag.key, _unknown(flag.key)))
    found: dict[str, object] = {}
    for name, raw in raws.items():
        try:
            found[name] = KEYS[name].kind(raw)
        except BadValue as error:
            problems.append(Problem(raw.source, name, str(error)))
    sources = {name: raw.source for name, raw in raws.items()}
    bad = {problem.key for problem in problems}
    complete = _complete(found, sources, bad, environment, problems)
    if serving and not problems:
        problems.extend(_exposure(complete))
    if problems:
        raise ConfigurationError(problems)
    return complete


def _unknown(name: str, candidates: Iterable[str] = KEYS) -> str:
    """The rule that an unknown name breaks, with the known name that was probably meant."""
    table, dot, _ = name.partition(".")
    prefix = table + dot if table in TABLES else ""  # the same table says nothing about likeness
    known = {each.removeprefix(prefix): each for each in candidates if each.startswith(prefix)}
    near = difflib.get_close_matches(name.removeprefix(prefix), known, n=1, cutoff=0.55)
    return "is not a known key" + (f"; did you mean {known[near[0]]}?" if near else "")


def _read_file(file: Path, problems: list[Problem]) -> dict[str, Raw]:
    source = f"file {file}"
    try:
        with file.open("rb") as stream:
            data = stream.read(_FILE_SIZE_MAX_BYTES + 1)
        if len(data) > _FILE_SIZE_MAX_BYTES:
            problems.append(Problem(source, "", "is too large to be a configuration"))
            return {}
        tables = tomllib.loads(data.decode())
    except OSError as error:
        problems.append(Problem(source, "", f"cannot be read: {error.strerror}"))
        return {}
    except UnicodeDecodeError as error:
        problems.append(Problem(source, "", f"is not UTF-8 (byte {error.start})"))
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(source, "", f"is not TOML: {error}"))
        return {}
    raws: dict[str, Raw] = {}
    for name, value in _flatten(tables, source, problems):
        if name in KEYS:
            raws[name] = Raw(value, source, file.absolute().parent)
        else:
            problems.append(Problem(source, name, _unknown(name)))
    return raws


def _flatten(
    tables: Mapping[str, object], source: str, problems: list[Problem]
) -> Iterable[tuple[str, object]]:
    for table, content in tables.items():
        if table in KEYS:
            yield table, content
        elif isinstance(content, dict):
            for name, value in cast("dict[str, object]", content).items():
                yield f"{table}.{name}", value
            if not content and table not in TABLES:
                problems.append(Problem(source, table, _unknown(table, TABLES)))
        elif table in TABLES:
            problems.append(Problem(source, table, f"must be a table, written [{table}]"))
        else:
            problems.append(Problem(source, table, _unknown(table, [*KEYS, *TABLES])))


def _read_environment(
    environment: Mapping[str, str], directory: Path, problems: list[Problem]
) -> dict[str, Raw]:
    names = {variable_of(name): name for name in KEYS}
    raws: dict[str, Raw] = {}
    for variable, value in environment.items():
        if variable in names:
            source = f"environment {variable}"
            raws[names[variable]] = Raw(value, source, directory, textual=True)
        elif (
            variable.startswith("GANGLION_")
            and variable != CONFIG_VARIABLE
            and variable not in _CLIENT_VARIABLES
            and not _SERVICE_LINK.fullmatch(variable)
        ):
            rule = _unknown(variable, [*names, CONFIG_VARIABLE]).replace("key", "variable")
            problems.append(Problem("environment", variable, rule))
    return raws


def _complete(
    found: dict[str, object],
    sources: dict[str, str],
    bad: set[str],
    environment: Mapping[str, str],
    problems: list[Problem],
) -> Configuration:
    """Fill in the defaults and check what keys say together, adding to ``problems``."""

    def default(name: str, value: object, source: str = "default") -> Any:
        if name not in found:
            found[name] = value
            sources.setdefault(name, source)
        return found[name]

    data = cast("Path", default("data.directory", _per_user_directory(environment)))
    default("access.users", data / "users" if (data / "users").is_file() else None)
    default("access.token_key", data / TOKEN_KEY if (data / TOKEN_KEY).is_file() else None)
    default("tls.certificate", None)
    default("tls.key", None)
    default("tls.client_ca", None)
    default("tls.client_certificates", "no" if found["tls.client_ca"] is None else "optional")
    listeners = _listeners(found, sources, default, bad, problems)
    limits = Limits(
        **{each.name: default(f"limits.{each.name}", each.default) for each in fields(Limits)}
    )
    for tables in ("rules", "queues", "streams"):
        default(tables, ())
    mqtt = {name: default(f"mqtt.{name}", value) for name, value in _MQTT_DEFAULTS.items()}
    configuration = Configuration(
        node_name=default("node.name", socket.gethostname()),
        listeners=listeners,
        tls=_tls(found, default),
        data_directory=data,
        users_file=cast("Path | None", found["access.users"]),
        token_key_file=cast("Path | None", found["access.token_key"]),
        anonymous=default("access.anonymous", value=False),
        insecure=default("access.insecure", value=False),
        rules=tuple(_parsed(parse_rules, "rules", found, sources, problems)),
        queues=tuple(_parsed(parse_queues, "queues", found, sources, problems)),
        streams=tuple(_parsed(parse_streams, "streams", found, sources, problems)),
        limits=limits,
        log_level=default("log.level", "info"),
        log_format=default("log.format", "auto"),
        sys_interval_s=default("mqtt.sys_interval_s", 10.0),
        mqtt=mqtt,
        native_addresses=default("native.addresses", ()),
        origins=default("web.origins", ()),
        compression=default("web.compression", value=False),
        trusted=default("proxy.trusted", ()),
        proxied=default("proxy.listeners", ()),
        values={name: found[name] for name in KEYS},
        sources={name: sources[name] for name in KEYS},
    )
    # What several keys say together means nothing while one of them cannot be read.
    if not any(key.startswith(_TOGETHER) or not key for key in bad):
        problems.extend(_contradictions(configuration))
    return configuration


def _parsed(
    parse: Callable[[Iterable[Mapping[str, object]]], tuple[list[_T], list[tuple[str, str]]]],
    name: str,
    found: Mapping[str, object],
    sources: Mapping[str, str],
    problems: list[Problem],
) -> list[_T]:
    """What a list of tables says."""
    values, wrong = parse(cast("tuple[Mapping[str, object], ...]", found[name]))
    problems += [Problem(sources[name], key, rule) for key, rule in wrong]
    return values


def _tls(found: Mapping[str, object], default: Any) -> Tls | None:
    as_user = default("tls.use_certificate_as_user", value=False)
    certificate = cast("Path | None", found["tls.certificate"])
    if certificate is None:
        return None
    return Tls(
        certificate=certificate,
        key=cast("Path | None", found["tls.key"]),
        client_ca=cast("Path | None", found["tls.client_ca"]),
        client_certificates=cast("str", found["tls.client_certificates"]),
        use_certificate_as_user=as_user,
    )


def _listeners(
    found: dict[str, object],
    sources: Mapping[str, str],
    default: Any,
    bad: set[str],
    problems: list[Problem],
) -> tuple[Listener, ...]:
    named = [scheme for scheme in DEFAULT_PORTS if f"listeners.{scheme}" in sources]
    listeners: list[Listener] = []
    for scheme, port in DEFAULT_PORTS.items():
        key = f"listeners.{scheme}"
        if named:
            addresses = default(key, (), "default (another listener is named)")
            listeners += [Listener(scheme, address) for address in addresses]
        elif scheme in TLS_SCHEMES and found["tls.certificate"] is None:
            default(key, (), "default (there is no tls.certificate)")
        else:
            both = [parse_listener(f"{host}:{port}", scheme) for host in ("127.0.0.1", "[::1]")]
            default(key, tuple(both))
            listeners += [
                Listener(scheme, both[0]),
                Listener(scheme, both[1], optional=True),
            ]
    if not listeners and not bad:
        rule = "names no address, and no other listener does: there would be nothing to connect to"
        problems.append(Problem(sources[f"listeners.{named[0]}"], f"listeners.{named[0]}", rule))
    return tuple(listeners)


def _contradictions(configuration: Configuration) -> Iterable[Problem]:
    """What is wrong between keys that are each right by themselves."""
    sources, values = configuration.sources, configuration.values

    def problem(key: str, rule: str) -> Problem:
        return Problem(sources[key], key, rule)

    if configuration.proxied and not configuration.trusted:
        yield problem("proxy.listeners", "has no effect without proxy.trusted")
    if configuration.tls is None:
        for scheme in TLS_SCHEMES:
            if values[f"listeners.{scheme}"]:
                yield problem(
                    f"listeners.{scheme}", "needs a certificate: set tls.certificate (--tls-cert)"
                )
        for key in ("tls.key", "tls.client_ca", "tls.client_certificates"):
            if values[key] is not None and not sources[key].startswith("default"):
                yield problem(key, "has no effect without tls.certificate (--tls-cert)")
        if values["tls.use_certificate_as_user"]:
            yield problem("tls.use_certificate_as_user", "needs tls.certificate (--tls-cert)")
    else:
        tls = configuration.tls
        if tls.client_certificates != "no" and tls.client_ca is None:
            yield problem("tls.client_certificates", "needs tls.client_ca, to check them against")
        if tls.use_certificate_as_user and tls.client_certificates == "no":
            rule = 'needs tls.client_certificates to be "optional" or "required"'
            yield problem("tls.use_certificate_as_user", rule)


def _exposure(configuration: Configuration) -> Iterable[Problem]:
    """Refuse an open node that other machines can reach, unless the user insists."""
    if configuration.insecure or configuration.has_users:
        return
    for listener in configuration.listeners:
        if not listener.address.is_loopback:
            key = f"listeners.{listener.scheme}"
            yield Problem(
                configuration.sources[key],
                key,
                f"has {listener.address}, which other machines can reach, but there are no users, "
                "so anyone could connect. Add a user (ganglion passwd add NAME), or listen on "
                "127.0.0.1, or accept an open node with --insecure",
            )


def _per_user_directory(environment: Mapping[str, str]) -> Path:
    """Where a user's programs keep their state, by the XDG base directory specification."""
    state = environment.get("XDG_STATE_HOME", "")
    if Path(state).is_absolute():
        return Path(state) / "ganglion"
    home = environment.get("HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home()
    return base / ".local" / "state" / "ganglion"


def shown(key: Key, value: object) -> str:
    """A value as ``ganglion check`` prints it: one line, in TOML's spelling where it has one."""
    if value is None:
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    if key.name in ("rules", "queues", "streams"):
        count = len(cast("tuple[object, ...]", value))
        return f"{count} {key.name.removesuffix('s') if count == 1 else key.name}"
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{each}"' for each in cast("tuple[object, ...]", value)) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
