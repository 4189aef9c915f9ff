"""``ganglion request`` and ``ganglion serve-reply``."""

import sys
import time
from typing import Any

import click

from ganglion.clients.command_line.connecting import connect, connection_options, options
from ganglion.clients.command_line.failures import EXIT_TIMEOUT, Failure, failures
from ganglion.clients.command_line.messaging import format_options, too_few
from ganglion.clients.command_line.payloads import (
    payload_options,
    payloads_of,
    properties_of,
    property_options,
)
from ganglion.clients.command_line.rendering import Output, Received, parse_template

__all__ = ["request", "serve_reply"]

_GRACE_S = 5.0  # past the deadline of a request, which the node keeps


@click.command()
@click.argument("topic")
@options(payload_options, property_options)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600, min_open=True),
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
            for data in source(client.attend):
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
@click.option("-g", "--group", help="One of this group is asked.")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many requests.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="End after so long.")
@format_options
@connection_options
def serve_reply(
    topic: str,
    payload: str | None,
    command: str | None,
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
    from ganglion.clients.command_line.execution import run_command
    from ganglion.protocols.native.operations import Operation

    if (payload is None) == (command is None):
        raise click.UsageError("give PAYLOAD, or --exec, but not both")
    parts = parse_template(template)
    asked = {} if group is None else {"group": group}
    seen = 0
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            deadline = None if timeout is None else time.monotonic() + timeout
            client.call(Operation.SERVE, topic, asked or None)
            for frame in client.frames(deadline):
                if frame[0] != Operation.CALL:
                    continue
                _, service, call, asked_topic, data, *_ = frame
                message = Received(asked_topic, data, _properties(frame, 5))
                output.write(message)
                output.flush()
                code, reply = 0, (payload or "").encode(errors="surrogateescape")
                if command is not None:
                    code, reply = run_command(command, message, client.attend, capture=True)
                if code:
                    text = f"the command of the responder ended with {code}"
                    client.call(Operation.FAIL, service, call, text, str(code))
                else:
                    client.call(Operation.ANSWER, service, call, reply)
                seen += 1
                if seen == count:
                    break
    too_few(seen, count, timeout)
