"""The commands of ``ganglion`` that are the node's own.

Thin: it declares commands and options, and turns errors into one line and an exit code. What a
command does is in the modules beside this one, each imported only when its command runs, so that
``ganglion limits`` does not pay for what ``ganglion serve`` needs, and that all of them can show
their help where a client alone is installed. `ganglion.clients.command_line` has the rest: the
command itself (`root`), the commands that work against a running node, the exit codes of all
(`failures`).
"""

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganglion import GanglionError
from ganglion.clients.command_line.connecting import options
from ganglion.clients.command_line.failures import (
    EXIT_CONFIGURATION,
    EXIT_INTERNAL,
    EXIT_NO,
    EXIT_UNAVAILABLE,
    Failure,
)
from ganglion.clients.command_line.rendering import echo_columns

if TYPE_CHECKING:
    from ganglion.broker.daemon.config import Configuration, Flag

__all__ = ["acl", "check", "health", "limits", "passwd", "serve", "store", "token"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_DIRECTORY = click.Path(path_type=Path, file_okay=False)


@contextmanager
def _failures() -> Generator[None, None, None]:
    """Turn what the modules raise into a `Failure` with its exit code."""
    try:
        yield
    except GanglionError as error:
        raise Failure(_message(error), _exit_code(error)) from error


def _message(error: GanglionError) -> str:
    from ganglion.broker.daemon.config import ConfigurationError

    if not isinstance(error, ConfigurationError):
        return str(error)
    lines = [f"  {problem}" for problem in error.problems]
    count = len(lines)
    head = "the configuration is not accepted"
    if count == 1:
        return f"{head}: {error.problems[0]}"
    return "\n".join([f"{head}, for {count} reasons:", *lines])


def _exit_code(error: GanglionError) -> int:
    match type(error).__name__:  # by name: to import them would bring the whole broker along
        case "CannotListen" | "StoreLocked":
            return EXIT_UNAVAILABLE
        case "NodeFailed":
            return EXIT_INTERNAL
        case "ConfigurationError":
            return EXIT_CONFIGURATION
        case _:
            return EXIT_NO


_config_option = click.option(
    "--config", type=_FILE, metavar="FILE", help="TOML file with the configuration."
)
_data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the node keeps what must survive a restart.",
)
_users_option = click.option(
    "--users", type=_FILE, metavar="FILE", help="File with users and password hashes."
)
_limit_option = click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a limit (see ganglion limits). Repeatable.",
)

_configuration_options = options(
    _config_option,
    click.option(
        "--mqtt",
        multiple=True,
        metavar="ADDR:PORT",
        help="Speak MQTT there; also unix:/path. Repeatable. Replaces the default listeners.",
    ),
    click.option(
        "--mqtts",
        multiple=True,
        metavar="ADDR:PORT",
        help="Speak MQTT over TLS there. Repeatable. Replaces the default listeners.",
    ),
    click.option(
        "--native",
        multiple=True,
        metavar="ADDR:PORT",
        help="Speak the native protocol there; also unix:/path. Repeatable. Replaces the default "
        "listeners.",
    ),
    click.option(
        "--natives",
        multiple=True,
        metavar="ADDR:PORT",
        help="Speak it over TLS there. Repeatable. Replaces the default listeners.",
    ),
    click.option(
        "--web",
        multiple=True,
        metavar="ADDR:PORT",
        help="Speak HTTP and WebSocket there. Repeatable. Replaces the default listeners.",
    ),
    click.option(
        "--webs",
        multiple=True,
        metavar="ADDR:PORT",
        help="Speak them over TLS there. Repeatable. Replaces the default listeners.",
    ),
    _data_option,
    _users_option,
    click.option(
        "--insecure",
        is_flag=True,
        default=None,
        help="Allow other machines to reach a node without users.",
    ),
    click.option("--tls-cert", type=_FILE, metavar="FILE", help="Server certificate (PEM)."),
    click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key (PEM)."),
    click.option(
        "--tls-client-ca",
        type=_FILE,
        metavar="FILE",
        help="Authorities of client certificates (PEM).",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="Log from here.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["auto", "human", "json"]),
        help="auto: human on a terminal, JSON lines otherwise.",
    ),
    _limit_option,
)

_FLAG_KEYS = {
    "mqtt": ("listeners.mqtt", "--mqtt"),
    "mqtts": ("listeners.mqtts", "--mqtts"),
    "native": ("listeners.native", "--native"),
    "natives": ("listeners.natives", "--natives"),
    "web": ("listeners.web", "--web"),
    "webs": ("listeners.webs", "--webs"),
    "data": ("data.directory", "--data"),
    "users": ("access.users", "--users"),
    "insecure": ("access.insecure", "--insecure"),
    "tls_cert": ("tls.certificate", "--tls-cert"),
    "tls_key": ("tls.key", "--tls-key"),
    "tls_client_ca": ("tls.client_ca", "--tls-client-ca"),
    "log_level": ("log.level", "--log-level"),
    "log_format": ("log.format", "--log-format"),
}


def _flags(options: dict[str, Any]) -> "list[Flag]":
    from ganglion.broker.daemon.config import Flag

    flags: list[Flag] = []
    for option, value in options.items():
        if option == "limits":
            for text in value:
                name, equals, number = text.partition("=")
                if not equals:
                    raise click.UsageError(f"--limit {text}: write it NAME=VALUE")
                flags.append(Flag(f"limits.{name.strip()}", number, f"--limit {name.strip()}"))
        elif option in _FLAG_KEYS and value is not None and value != ():
            key, flag = _FLAG_KEYS[option]
            flags.append(Flag(key, str(value) if isinstance(value, Path) else value, flag))
    return flags


def _load(config: Path | None, options: dict[str, Any], *, serving: bool) -> "Configuration":
    from ganglion.broker.daemon.config import load

    return load(file=config, flags=_flags(options), serving=serving)


@click.command()
@_configuration_options
def serve(config: Path | None, **options: Any) -> None:
    """Run the broker until it is told to stop.

    Without options it listens on this machine only. SIGTERM and Ctrl-C drain and stop it,
    SIGHUP reloads users, rules, certificates, limits and the log level.
    """
    from ganglion.broker.daemon import app

    with _failures():
        app.run(lambda: _load(config, options, serving=True))


@click.command()
@_configuration_options
def check(config: Path | None, **options: Any) -> None:
    """Validate a configuration and say where each value comes from.

    Files that it names (users, certificates) are opened and checked as well.
    """
    from ganglion.broker.daemon.banner import who_may_connect
    from ganglion.broker.daemon.config import ConfigurationError, shown
    from ganglion.broker.daemon.materials import open_materials
    from ganglion.broker.daemon.settings import KEYS

    try:
        configuration = _load(config, options, serving=True)
        materials = open_materials(configuration)
    except ConfigurationError as error:
        raise Failure(_message(error), EXIT_NO) from error
    rows = [
        (name, shown(key, configuration.values[name]), configuration.sources[name])
        for name, key in KEYS.items()
    ]
    echo_columns(rows)
    click.echo(f"\nMay connect: {who_may_connect(configuration, len(materials.users))}.")
    click.echo("The configuration is accepted.")


@click.command()
@options(_config_option, _limit_option)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def limits(config: Path | None, as_json: bool, **options: Any) -> None:
    """Show every limit: its value, where the value comes from, and why the limit exists."""
    from ganglion.broker.core.limits import describe_limits

    with _failures():
        configuration = _load(config, options, serving=False)
    rows = [
        (name, value, configuration.sources[f"limits.{name}"], why)
        for name, value, why in describe_limits(configuration.limits)
    ]
    if as_json:
        import json

        keys = ("name", "value", "source", "why")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        echo_columns([tuple(map(str, row)) for row in rows])


@click.group()
def acl() -> None:
    """Look at who may do what."""


@acl.command()
@click.argument("user")
@click.argument("action", type=click.Choice(["publish", "subscribe", "receive"]))
@click.argument("topic")
@click.option("--client-id", default="", help="The client identifier, for patterns with %c.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Where the client is.")
@click.option("--qos", type=click.IntRange(0, 2), default=0, show_default=True)
@click.option("--retain", is_flag=True, help="A publication with RETAIN.")
@options(_config_option, _users_option)
def explain(
    user: str,
    action: Any,
    topic: str,
    client_id: str,
    address: str,
    qos: int,
    retain: bool,
    config: Path | None,
    **options: Any,
) -> None:
    """Say rule by rule whether USER may publish to, subscribe to or receive from TOPIC.

    USER is a user name, or :anonymous for a client without one. The exit code is 0 when it is
    allowed and 1 when it is not.
    """
    from ganglion.broker.daemon.explain import explain as explain_access

    with _failures():
        lines, allowed = explain_access(
            _load(config, options, serving=False),
            user,
            action,
            topic,
            client_id=client_id,
            address=address,
            qos=qos,
            retain=retain,
        )
    for line in lines:
        click.echo(line)
    if not allowed:
        raise click.exceptions.Exit(EXIT_NO)


@click.group()
def passwd() -> None:
    """Add, change, delete and list users.

    A password is asked for on a terminal; otherwise it is the first line of standard input. A
    running broker takes changes over on SIGHUP.
    """


_passwd_options = options(_config_option, _users_option, _data_option)


def _users_path(config: Path | None, options: dict[str, Any]) -> Path:
    configuration = _load(config, options, serving=False)
    return configuration.users_file or configuration.data_directory / "users"


@passwd.command("add")
@click.argument("name")
@_passwd_options
def passwd_add(name: str, config: Path | None, **options: Any) -> None:
    """Add user NAME."""
    from ganglion.broker.daemon.users_file import add_user

    with _failures():
        path = _users_path(config, options)
        add_user(path, name, lambda: _new_password(name))
    click.echo(f"added {name} to {path}")


@passwd.command("change")
@click.argument("name")
@_passwd_options
def passwd_change(name: str, config: Path | None, **options: Any) -> None:
    """Give user NAME another password."""
    from ganglion.broker.daemon.users_file import change_password

    with _failures():
        path = _users_path(config, options)
        change_password(path, name, lambda: _new_password(name))
    click.echo(f"changed the password of {name} in {path}")


@passwd.command("delete")
@click.argument("name")
@_passwd_options
def passwd_delete(name: str, config: Path | None, **options: Any) -> None:
    """Delete user NAME."""
    from ganglion.broker.daemon.users_file import delete_user

    with _failures():
        path = _users_path(config, options)
        delete_user(path, name)
    click.echo(f"deleted {name} from {path}")


@passwd.command("list")
@_passwd_options
def passwd_list(config: Path | None, **options: Any) -> None:
    """Print the names of all users."""
    from ganglion.broker.daemon.users_file import user_names

    with _failures():
        for name in user_names(_users_path(config, options)):
            click.echo(name)


def _new_password(name: str) -> str:
    if sys.stdin.isatty():
        return click.prompt(
            f"Password for {name}", hide_input=True, confirmation_prompt=True, err=True, type=str
        )
    line = sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
    try:
        password = line.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the password on standard input is not UTF-8") from None
    if not password:
        raise click.UsageError("there is no password on standard input")
    return password


@click.command()
@click.argument("name")
@click.option(
    "--valid",
    default="1h",
    metavar="TIME",
    help="How long: 90s, 15m, 12h, 30d (1h).",
)
@_passwd_options
def token(name: str, valid: str, config: Path | None, **options: Any) -> None:
    """Print a token that lets user NAME in, in place of the password, for a time.

    It is signed with the node's key (access.token_key), which is made when there is none yet; a
    running broker takes it over on SIGHUP.
    """
    import time

    from ganglion.broker.core.tokens import make_token
    from ganglion.broker.daemon.config import TOKEN_KEY
    from ganglion.broker.daemon.token_key import make_token_key, read_token_key
    from ganglion.broker.daemon.users_file import user_names

    match = re.fullmatch(r"([0-9]{1,9})([smhd])", valid)
    if match is None:
        raise click.UsageError(f"--valid is {valid!r}; it is written 90s, 15m, 12h or 30d")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]
    with _failures():
        configuration = _load(config, options, serving=False)
        if name not in user_names(_users_path(config, options)):
            raise click.UsageError(f"there is no user {name} (ganglion passwd add {name})")
        path = configuration.token_key_file
        if path is None:
            path = configuration.data_directory / TOKEN_KEY
            key = make_token_key(path)
            click.echo(f"made the key {path}; a running broker takes it over on SIGHUP", err=True)
        else:
            key = read_token_key(path)
        click.echo(make_token(key, name, time.time() + seconds))


@click.group()
def store() -> None:
    """Look at, check, copy and compact the store of a node.

    The store is in the data directory (--data). Compact and rescue need its node to be stopped.
    """


_store_options = options(_config_option, _data_option)


def _data_directory(config: Path | None, options: dict[str, Any]) -> Path:
    return _load(config, options, serving=False).data_directory


def _show_progress(what: str, count: int) -> None:
    """Write over the same line of a terminal what is being read, and how many up to now."""
    if sys.stderr.isatty():
        click.echo(f"\x1b[K{what}: {count} records\r", nl=False, err=True)


@store.command("info")
@_store_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def store_info(as_json: bool, config: Path | None, **options: Any) -> None:
    """Print the number of the last commit, the epoch, the size and how many records there are."""
    from ganglion.broker.daemon.store_commands import store_info as info_of

    with _failures():
        info = info_of(_data_directory(config, options))
    if as_json:
        import json

        click.echo(json.dumps(info, indent=2))
        return
    records = info.pop("records")
    rows = [*info.items(), *((f"records.{kind}", about) for kind, about in records.items())]
    echo_columns([(name, str(value)) for name, value in rows])


@store.command("verify")
@_store_options
def store_verify(config: Path | None, **options: Any) -> None:
    """Read every record and list those that are damaged; the exit code is 1 when there are any."""
    from ganglion.broker.daemon.store_commands import verify_store

    with _failures():
        lines, is_good = verify_store(_data_directory(config, options), _show_progress)
    for line in lines:
        click.echo(line)
    if not is_good:
        raise click.exceptions.Exit(EXIT_NO)


@store.command("backup")
@click.argument("target", metavar="DIR", type=_DIRECTORY)
@_store_options
def store_backup(target: Path, config: Path | None, **options: Any) -> None:
    """Copy the store, so that DIR is a data directory to start from."""
    from ganglion.broker.daemon.store_commands import backup_store

    with _failures():
        click.echo(backup_store(_data_directory(config, options), target, _show_progress))


@store.command("compact")
@_store_options
def store_compact(config: Path | None, **options: Any) -> None:
    """Give back the room of what has been deleted or replaced."""
    from ganglion.broker.daemon.store_commands import compact_store

    with _failures():
        click.echo(compact_store(_data_directory(config, options)))


@store.command("rescue")
@click.argument("target", metavar="DIR", type=_DIRECTORY)
@_store_options
def store_rescue(target: Path, config: Path | None, **options: Any) -> None:
    """Save what can be read of a damaged store, so that DIR is a data directory to start from.

    The exit code is 1 when there was damage, although the rest is saved.
    """
    from ganglion.broker.daemon.store_commands import rescue_store

    with _failures():
        lines, is_good = rescue_store(_data_directory(config, options), target, _show_progress)
    for line in lines:
        click.echo(line)
    if not is_good:
        raise click.exceptions.Exit(EXIT_NO)


@click.command()
@click.option(
    "--url",
    help="The broker; without it, the first listener of the configuration.",
)
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=5.0, show_default=True, metavar="SECONDS"
)
@_config_option
def health(url: str | None, timeout: float, config: Path | None) -> None:
    """Exit with 0 when a broker answers, and with 1 when it does not (for container checks).

    A broker that answers but refuses us because it wants a password is healthy.
    """
    from ganglion.broker.daemon.health import HealthError, check_health

    try:
        with _failures():
            answer = check_health(url, lambda: _load(config, {}, serving=False), timeout)
    except Failure as error:
        if isinstance(error.__cause__, HealthError):
            raise Failure(error.message, EXIT_NO) from None
        raise
    click.echo(answer)
