"""Which node a command talks to, and as whom: options, contexts, environment, in this order.

A context stands for all of it: when one is used, the environment only fills in what the context
leaves open. A password is never an argument, where others could read it.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ganglion.clients.command_line.connection import BlockingClient
    from ganglion.clients.command_line.contexts import Context

__all__ = [
    "DEFAULT_URL",
    "Number",
    "connect",
    "connection_options",
    "json_option",
    "options",
    "secret_of",
]

DEFAULT_URL = "ganglion://127.0.0.1:7883"

FILE = click.Path(path_type=Path, dir_okay=False)


class Number(click.FloatRange):
    """A number within bounds; ``nan`` and ``inf``, which click takes for numbers, are none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Raises `click.BadParameter`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


_Command = TypeVar("_Command", bound=Callable[..., Any])


def options(*several: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """One decorator of several, which appear in this order in the help."""

    def decorate(command: _Command) -> _Command:
        """Give a command these options."""
        for option in reversed(several):
            command = option(command)
        return command

    return decorate


json_option = options(
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs."
    )
)

connection_options = options(
    click.option(
        "--url",
        help="ganglion://HOST:PORT, ganglions:// (TLS), ws://HOST:PORT/ws, wss:// or unix:/path.  "
        f"[env: GANGLION_URL; default: {DEFAULT_URL}]",
    ),
    click.option(
        "--context",
        "context_name",
        metavar="NAME",
        help="The node of this context, see ganglion context.  [env: GANGLION_CONTEXT]",
    ),
    click.option("-u", "--user", help="User name.  [env: GANGLION_USER]"),
    click.option(
        "--password-file",
        type=FILE,
        metavar="FILE",
        help="File whose first line is the password; otherwise GANGLION_PASSWORD, or a prompt.",
    ),
    click.option(
        "--token-file",
        type=FILE,
        metavar="FILE",
        help="File whose first line is a token, in place of a user.  [env: GANGLION_TOKEN]",
    ),
    click.option("-i", "--client-id", help="Client identifier; the node's choice if none."),
    click.option(
        "--ca", type=FILE, metavar="FILE", help="Authorities to trust (PEM), not the system's."
    ),
    click.option("--cert", type=FILE, metavar="FILE", help="Client certificate (PEM)."),
    click.option("--cert-key", type=FILE, metavar="FILE", help="Its private key (PEM)."),
    click.option("--insecure", is_flag=True, help="Do not check the node's certificate."),
)


def connect(
    *,
    url: str | None,
    context_name: str | None,
    user: str | None,
    password_file: Path | None,
    token_file: Path | None,
    client_id: str | None,
    ca: Path | None,
    cert: Path | None,
    cert_key: Path | None,
    insecure: bool,
) -> "BlockingClient":
    """Connect to the node that the options, a context or the environment name."""
    from ganglion.clients.addresses import NodeAddress, tls_context
    from ganglion.clients.command_line.connection import BlockingClient
    from ganglion.clients.command_line.contexts import Context
    from ganglion.clients.login import Login

    context = _context(url, context_name)
    if context is None:
        context = Context(url=url or os.environ.get("GANGLION_URL") or DEFAULT_URL)
    address = NodeAddress.parse(context.url)
    hello: dict[str, Any] = {}
    login = None
    if client_id:
        hello["client"] = client_id
    known = user or address.user or context.user
    token = secret_of(token_file) or (None if user else context.token)
    if token is None and known is None:
        token = os.environ.get("GANGLION_TOKEN")
        known = os.environ.get("GANGLION_USER")
    if token is not None:
        hello["token"] = token
    elif known is not None:
        password = secret_of(password_file) or _password_of(context, known)
        if password is None:
            hello["user"] = known
        else:
            login = Login(address, known, password.encode(errors="surrogateescape"))
    tls = None
    if address.is_tls:
        tls = tls_context(
            ca=ca or _path(context.ca),
            certificate=cert or _path(context.cert),
            key=cert_key or _path(context.cert_key),
            verify=not (insecure or context.insecure),
        )
    return BlockingClient(address, options=hello, login=login, tls=tls)


def _context(url: str | None, name: str | None) -> "Context | None":
    """The context that is meant; None: there is none, or a URL was given."""
    from ganglion.clients.command_line.contexts import load_contexts

    if url is not None:
        if name is not None:
            raise click.UsageError("give --url or --context, not both")
        return None
    if name is None and os.environ.get("GANGLION_URL"):
        return None
    name = name or os.environ.get("GANGLION_CONTEXT")
    contexts = load_contexts()
    name = name or contexts.current
    return None if name is None else contexts.find(name)


def _password_of(context: "Context", user: str) -> str | None:
    if context.password is not None and user == context.user:
        return context.password
    password = os.environ.get("GANGLION_PASSWORD")
    if password is None and sys.stdin.isatty():
        password = click.prompt(f"Password for {user}", hide_input=True, err=True, type=str)
    return password


def secret_of(file: Path | None) -> str | None:
    """The first line of a file; None: no file is meant."""
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            line = stream.readline().removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    return line.decode(errors="surrogateescape")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()
