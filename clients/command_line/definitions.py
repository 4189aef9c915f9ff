"""What queues and streams are to be, from ``--option NAME=VALUE`` and ``--bind FILTER``.

The node knows the options and judges them; here a value only gets its type.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ganglion.clients.command_line.connecting import options
from ganglion.clients.command_line.rendering import echo_json, echo_map

if TYPE_CHECKING:
    from ganglion.clients.command_line.connection import BlockingClient
    from ganglion.protocols.native.operations import Operation

__all__ = ["definition_of", "definition_options", "echo_described", "pages_of"]

_PAGE = 1000

definition_options = options(
    click.option(
        "-b", "--bind", "bindings", multiple=True, metavar="FILTER", help="Topics. Repeatable."
    ),
    click.option(
        "-o",
        "--option",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option as the guide lists them. Repeatable.",
    ),
)


def definition_of(bindings: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, Any]:
    """The options as a frame has them. Raises `click.UsageError`."""
    found: dict[str, Any] = {}
    for each in settings:
        name, equals, text = each.partition("=")
        if not equals:
            raise click.UsageError(f"--option {each}: write it NAME=VALUE")
        try:
            value: object = json.loads(text)
        except ValueError:
            value = text
        found[name] = value if isinstance(value, (bool, int, float)) else text
    if bindings:
        found["bindings"] = list(bindings)
    return found


def pages_of(client: "BlockingClient", operation: "Operation", what: str) -> Iterator[Any]:
    """Everything of a list that the node gives page by page."""
    after: dict[str, Any] = {}
    while True:
        page = client.call(operation, {"count": _PAGE, **after})
        yield from page[what]
        if not page["more"]:
            return
        after = {"after": page[what][-1]["name"]}


def echo_described(described: dict[str, Any], *, as_json: bool) -> None:
    """Print a definition, and what else there is to say, for people or for programs."""
    if as_json:
        echo_json(described)
    else:
        echo_map(described)
