"""``ganglion context``: nodes by name, so that commands need no URL and no password."""

import sys
from pathlib import Path
from typing import Any

import click

from ganglion.clients.command_line.connecting import FILE, json_option, options, secret_of
from ganglion.clients.command_line.failures import failures
from ganglion.clients.command_line.rendering import echo_columns, echo_json

__all__ = ["context"]


@click.group()
def context() -> None:
    """Name nodes, and choose the one that commands talk to.

    Contexts are in ~/.config/ganglion/contexts.toml, which only you may read.
    """


@context.command("add")
@click.argument("name")
@options(
    click.option("--url", required=True, help="Where the node is, as for the other commands."),
    click.option("-u", "--user", help="User name; the password is asked for."),
    click.option("--password-file", type=FILE, metavar="FILE", help="Do not ask, read it there."),
    click.option(
        "--token-file", type=FILE, metavar="FILE", help="File whose first line is a token."
    ),
    click.option("--ca", type=FILE, metavar="FILE", help="Authorities to trust (PEM)."),
    click.option("--cert", type=FILE, metavar="FILE", help="Client certificate (PEM)."),
    click.option("--cert-key", type=FILE, metavar="FILE", help="Its private key (PEM)."),
    click.option("--insecure", is_flag=True, help="Do not check the node's certificate."),
)
def context_add(
    name: str,
    url: str,
    user: str | None,
    password_file: Path | None,
    token_file: Path | None,
    insecure: bool,
    **files: Path | None,
) -> None:
    """Add context NAME. The first one is used from then on."""
    from ganglion.clients.addresses import NodeAddress
    from ganglion.clients.command_line.contexts import Context, ContextError, load_contexts

    with failures():
        contexts = load_contexts()
        if name in contexts.by_name:
            raise ContextError(
                f"there is a context {name} already (ganglion context remove {name})"
            )
        address = NodeAddress.parse(url)
        password = secret_of(password_file)
        if (user or address.user) and password is None and sys.stdin.isatty():
            words = f"Password for {user or address.user} (empty: ask each time)"
            password = click.prompt(
                words, hide_input=True, default="", show_default=False, err=True
            )
        paths: dict[str, Any] = {
            key: None if path is None else str(path.absolute()) for key, path in files.items()
        }
        contexts.by_name[name] = Context(
            url=url,
            user=user or address.user,
            password=password or None,
            token=secret_of(token_file),
            insecure=insecure,
            **paths,
        )
        if contexts.current is None:
            contexts.current = name
        contexts.save()
    click.echo(f"added {name} to {contexts.path}")
    if contexts.current == name:
        click.echo(f"commands talk to {name} now")


@context.command("list")
@json_option
def context_list(as_json: bool) -> None:
    """Print all contexts; a star marks the one in use."""
    from ganglion.clients.command_line.contexts import load_contexts

    with failures():
        contexts = load_contexts()
        rows: list[tuple[str, ...]] = []
        for name, each in sorted(contexts.by_name.items()):
            is_current = name == contexts.current
            if as_json:
                echo_json({"name": name, "url": each.url, "user": each.user, "current": is_current})
            rows.append(("*" if is_current else " ", name, each.url, each.user or ""))
        if not as_json:
            echo_columns(rows)
        if not rows:
            click.echo("there is no context yet: ganglion context add NAME --url URL", err=True)


@context.command("use")
@click.argument("name")
def context_use(name: str) -> None:
    """Let commands talk to the node of context NAME."""
    from ganglion.clients.command_line.contexts import load_contexts

    with failures():
        contexts = load_contexts()
        contexts.find(name)
        contexts.current = name
        contexts.save()
    click.echo(f"commands talk to {name} now")


@context.command("show")
@click.argument("name", required=False)
@json_option
def context_show(name: str | None, as_json: bool) -> None:
    """Print context NAME, or the one in use; secrets are not shown."""
    from ganglion.clients.command_line.contexts import ContextError, load_contexts

    with failures():
        contexts = load_contexts()
        name = name or contexts.current
        if name is None:
            raise ContextError("no context is in use: ganglion context use NAME")
        each = contexts.find(name)
        about: dict[str, object] = {"name": name, "url": each.url, "user": each.user}
        about |= {"password": "set" if each.password else None}
        about |= {"token": "set" if each.token else None}
        about |= {"ca": each.ca, "cert": each.cert, "cert_key": each.cert_key}
        about |= {"insecure": each.insecure, "current": name == contexts.current}
        if as_json:
            echo_json(about)
        else:
            echo_columns([(key, str(value)) for key, value in about.items() if value is not None])


@context.command("remove")
@click.argument("name")
def context_remove(name: str) -> None:
    """Forget context NAME."""
    from ganglion.clients.command_line.contexts import load_contexts

    with failures():
        contexts = load_contexts()
        contexts.find(name)
        del contexts.by_name[name]
        if contexts.current == name:
            contexts.current = None
        contexts.save()
    click.echo(f"removed {name}")
    if contexts.current is None and contexts.by_name:
        click.echo("no context is in use now: ganglion context use NAME")
