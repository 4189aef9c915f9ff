"""``ganglion request`` and ``ganglion serve-reply``."""

import sys
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from ganglion.clients.command_line.connecting import Number, connect, connection_options, options
from ganglion.clients.command_line.failures import EXIT_TIMEOUT, Failure, failures
from ganglion.clients.command_line.messaging import format_options, too_few
from ganglion.clients.command_line.payloads import (
    payload_options,
    payloads_of,
    properties_of,
    property_options,
)
from ganglion.clients.command_line.rendering import Output, Received, parse_template

if TYPE_CHECKING:
    from ganglion.clients.command_line.connection import BlockingClient

__all__ = ["request", "serve_reply"]

_GRACE_S = 5.0  # past the deadline of a request, which the node keeps
_CALLS_HELD = 64  # requests that wait here for a command: else the node would refuse them
_PATIENCE_S = 60.0


@click.command()
@click.argument("topic")
@options(payload_options, property_options)
@click.option(
    "--timeout",
    type=Number(0, 3600, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)
@click.option("--gather", is_flag=True, help="Ask all that serve the topic.")
@click.option("-n", "--count", type=click.IntRange(1), help="So many replies are enough.")
@format_options
@connection_options
def request(
    topic: str,
    payload: str | None,
    file: Any,
    stdin: bool,
    lines: bool,
    key: str | None,
    headers: tuple[str, ...],
    content_type: str | None,
    timeout: float,
    gather: bool,
    count: int | None,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Send PAYLOAD as a request to who serves TOPIC, and print the reply.

    With --lines each line is a request of its own, one after the other.
    """
    from ganglion.protocols.native.operations import Operation

    if count is not None and not gather:
        raise click.UsageError("--count is for --gather")
    if gather and lines:
        raise click.UsageError("--gather asks once: it cannot be used with --lines")
    source = payloads_of(payload, file, stdin, lines)
    properties = properties_of(key=key, headers=headers, content_type=content_type)
    parts = parse_template(template)
    asked: dict[str, Any] = {"timeout_s": timeout}
    if count is not None:
        asked["count"] = count
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            for data in chain.from_iterable(source(client.attend)):
                if gather:
                    _gather(client, output, (topic, data, properties, asked), timeout, count)
                    continue
                reply = client.call(
                    Operation.REQUEST,
                    *(topic, data, properties, asked),
                    timeout_s=timeout + _GRACE_S,
                )
                output.write(Received("", reply[0], _properties(reply, 1)))
                output.flush()


def _gather(
    client: Any, output: Output, elements: tuple[Any, ...], timeout_s: float, count: int | None
) -> None:
    from ganglion.protocols.native.operations import Operation

    seen = 0
    number = client.start(Operation.GATHER, *elements)
    while client.is_open(number):
        client.attend(time.monotonic() + _GRACE_S)
        while client.has_more:
            frame = next(client.frames())
            if frame[:2] == (Operation.REPLY, number):
                output.write(Received("", frame[2], _properties(frame, 3)))
                seen += 1
        output.flush()
    for answer in client.answers():
        reason = answer.result["reason"]
        if sys.stderr.isatty():
            sys.stderr.write(f"{seen} replies; ended by: {reason}\n")
    if count is not None:
        too_few(seen, count, timeout_s)
    elif not seen:
        raise Failure(f"no reply in {timeout_s:g} s", EXIT_TIMEOUT)


def _properties(elements: tuple[Any, ...], index: int) -> dict[str, Any]:
    return (elements[index] if len(elements) > index else None) or {}


@click.command("serve-reply")
@click.argument("topic", metavar="TOPIC")
@click.argument("payload", required=False)
@click.option("--exec", "command", metavar="COMMAND", help="Its output is the reply.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    help="How often COMMAND may run at a time; other requests wait.",
)
@click.option("-g", "--group", help="One of this group is asked.")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many requests.")
@click.option("--timeout", type=Number(0), metavar="SECONDS", help="End after so long.")
@format_options
@connection_options
def serve_reply(
    topic: str,
    payload: str | None,
    command: str | None,
    concurrency: int,
    group: str | None,
    count: int | None,
    timeout: float | None,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Answer requests for TOPIC (a topic or a filter) with PAYLOAD, or with a command's output.

    COMMAND is run by the shell, once per request, with the payload as its input. A command that
    fails is told to who asks. Each request is printed.
    """
    from ganglion.protocols.native.operations import Operation

    if (payload is None) == (command is None):
        raise click.UsageError("give PAYLOAD, or --exec, but not both")
    parts = parse_template(template)
    asked: dict[str, Any] = {"credit": max(_CALLS_HELD, concurrency)}
    if group is not None:
        asked["group"] = group
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            deadline = None if timeout is None else time.monotonic() + timeout
            client.call(Operation.SERVE, topic, asked)
            responder = _Responder(client, output, count)
            if command is None:
                seen = responder.serve((payload or "").encode(errors="surrogateescape"), deadline)
            else:
                seen = responder.serve_by_command(command, concurrency, deadline)
    too_few(seen, count, timeout)


class _Responder:
    """Answers calls."""

    def __init__(self, client: "BlockingClient", output: Output, count: int | None) -> None:
        self._client = client
        self._output = output
        self._count = count
        self._waiting: deque[tuple[int, int, Received]] = deque()

    def serve(self, reply: bytes, deadline: float | None) -> int:
        """Answer each call with this reply; how many."""
        seen = 0
        for frame in self._client.frames(deadline):
            self._on_frame(frame)
            while self._waiting:
                service, call, message = self._waiting.popleft()
                self._show(message)
                self._answer(service, call, reply)
                seen += 1
                if seen == self._count:
                    return seen
        return seen

    def serve_by_command(self, command: str, concurrency: int, deadline: float | None) -> int:
        """Answer each call with what a command prints; how many."""
        from ganglion.clients.command_line.execution import Commands
        from ganglion.protocols.native.operations import Operation

        client = self._client
        begun = seen = 0
        services: dict[int, int] = {}
        with Commands(command, concurrency, capture=True) as commands:
            while seen != self._count:
                now = time.monotonic()
                is_over = client.is_draining or (deadline is not None and now >= deadline)
                if is_over and not len(commands):
                    break
                until = now + _PATIENCE_S
                if deadline is not None and not is_over:
                    until = min(until, deadline)
                if not client.has_more:
                    client.attend(until, commands.fileno())
                while client.has_more:
                    self._on_frame(next(client.frames()))
                for ended in commands.ended():
                    service = services.pop(ended.key)
                    if ended.code:
                        text = f"the command of the responder ended with {ended.code}"
                        client.notify(Operation.FAIL, 0, service, ended.key, text, str(ended.code))
                    else:
                        self._answer(service, ended.key, ended.output)
                    seen += 1
                while self._waiting and not (is_over or commands.is_full or begun == self._count):
                    service, call, message = self._waiting.popleft()
                    self._show(message)
                    services[call] = service
                    commands.start(call, message)
                    begun += 1
        if client.is_draining and seen != self._count:
            client.attend(0.0)  # raises what is to be said of it
        return seen

    def _on_frame(self, frame: tuple[Any, ...]) -> None:
        from ganglion.protocols.native.operations import Operation

        match frame:
            case (Operation.CALL, service, call, topic, payload, *_):
                self._waiting.append(
                    (service, call, Received(topic, payload, _properties(frame, 5)))
                )
            case (Operation.CANCELLED, _, call, *_):  # one that runs is let run
                self._waiting = deque(each for each in self._waiting if each[1] != call)
            case _:
                pass

    def _show(self, message: Received) -> None:
        self._output.write(message)
        self._output.flush()

    def _answer(self, service: int, call: int, reply: bytes) -> None:
        from ganglion.clients.errors import Refused
        from ganglion.protocols.native.operations import Operation

        try:
            self._client.notify(Operation.ANSWER, 0, service, call, reply)
        except Refused as refused:  # it is too large for a frame
            self._client.notify(Operation.FAIL, 0, service, call, str(refused), refused.code)
