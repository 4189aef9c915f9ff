"""What commands send: a payload from an argument, a file or standard input, and its properties.

Lines are sent as they come, those that come at once together: while none comes, the connection is
looked after.
"""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from io import UnsupportedOperation
from typing import Any, BinaryIO

import click

from ganglion.clients.command_line.connecting import options

__all__ = ["payload_options", "payloads_of", "properties_of", "property_options", "split_lines"]

_READ_SIZE_BYTES = 65_536
_PATIENCE_S = 1.0  # between two looks at the connection while standard input is silent

payload_options = options(
    click.argument("payload", required=False),
    click.option("-f", "--file", type=click.File("rb"), help="Send the content of this file."),
    click.option("--stdin", is_flag=True, help="Send what comes from standard input."),
    click.option(
        "-l", "--lines", is_flag=True, help="Each line of --file or --stdin is a message."
    ),
)

property_options = options(
    click.option("-k", "--key", help="What it is about: order in queues, versions in streams."),
    click.option(
        "-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help="Repeatable."
    ),
    click.option("--content-type", metavar="TYPE", help="What the payload is."),
)


def properties_of(
    *, key: str | None, headers: tuple[str, ...], content_type: str | None, **more: Any
) -> dict[str, Any] | None:
    """The properties of a message as a frame has them; None: there are none."""
    members: dict[str, Any] = {"key": key, "content_type": content_type, **more}
    if headers:
        pairs = [_pair(each) for each in headers]
        names = dict(pairs)
        members["headers"] = names if len(names) == len(pairs) else pairs
    return {name: each for name, each in members.items() if each not in (None, False)} or None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--header {text}: write it NAME=VALUE")
    return name, value


def payloads_of(
    payload: str | None,
    file: BinaryIO | None,
    stdin: bool,
    lines: bool,
) -> Callable[[Callable[[float], None]], Iterator[list[bytes]]]:
    """What gives the payloads, once it is told how to look after the connection meanwhile.

    They come in groups of what is there at once. Raises `click.UsageError` unless there is exactly
    one source.
    """
    if (payload is not None) + (file is not None) + stdin != 1:
        raise click.UsageError("give one of PAYLOAD, --file and --stdin")
    if payload is not None:
        if lines:
            raise click.UsageError("--lines needs --file or --stdin")
        data = payload.encode(errors="surrogateescape")
        return lambda _attend: iter([[data]])
    stream = sys.stdin.buffer if file is None else file
    if lines:
        return lambda attend: split_lines(stream, attend)
    return lambda attend: iter([[b"".join(_pieces(stream, attend))]])


def split_lines(stream: BinaryIO, attend: Callable[[float], None]) -> Iterator[list[bytes]]:
    r"""The lines of a stream as they come in, without their ``\n`` or ``\r\n``."""
    begun: list[bytes] = []  # pieces of a line whose end has not come
    for piece in _pieces(stream, attend):
        first, *lines = piece.split(b"\n")
        begun.append(first)
        if not lines:
            continue
        lines.insert(0, b"".join(begun))
        begun = [lines.pop()]
        yield [line.removesuffix(b"\r") for line in lines]
    if last := b"".join(begun):
        yield [last.removesuffix(b"\r")]


def _pieces(stream: BinaryIO, attend: Callable[[float], None]) -> Iterator[bytes]:
    """What comes from a stream, as it comes; `attend` is called while nothing does."""
    try:
        descriptor = stream.fileno()
    except (UnsupportedOperation, AttributeError):  # not a stream of the operating system
        yield from iter(lambda: stream.read(_READ_SIZE_BYTES), b"")
        return
    while True:
        while not select.select([descriptor], [], [], _PATIENCE_S)[0]:
            attend(time.monotonic())
        piece = os.read(descriptor, _READ_SIZE_BYTES)
        if not piece:
            return
        yield piece
