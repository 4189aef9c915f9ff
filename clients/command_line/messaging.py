"""``ganglion pub`` and ``ganglion sub``."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from ganglion.clients.command_line.connecting import (
    Number,
    connect,
    connection_options,
    json_option,
    options,
)
from ganglion.clients.command_line.failures import EXIT_TIMEOUT, Failure, failures
from ganglion.clients.command_line.payloads import (
    payload_options,
    payloads_of,
    properties_of,
    property_options,
)
from ganglion.clients.command_line.rendering import Output, Received, echo_json, parse_template

__all__ = ["format_options", "pub", "publish_options", "publish_payloads", "sub", "too_few"]

publish_options = options(
    payload_options,
    property_options,
    click.option("--delay", type=Number(0), metavar="SECONDS", help="Queues keep it back so long."),
    click.option("--expires", type=Number(0), metavar="SECONDS", help="Worthless afterwards."),
    click.option("--priority", type=click.IntRange(0, 255), help="In queues that have priorities."),
    click.option("--message-id", metavar="ID", help="A queue that deduplicates takes it once."),
    click.option("--reply-to", metavar="TOPIC", help="Where a reply should go."),
    click.option("-n", "--count", type=click.IntRange(1), default=1, help="Send it so many times."),
    click.option("--rate", type=Number(0, min_open=True), help="At most so many a second."),
)

format_options = options(
    click.option(
        "--format",
        "template",
        default="{payload}",
        metavar="TEMPLATE",
        help="What to print of each, such as '{topic} {payload}'; fields: see the guide.",
    ),
    json_option,
)


@click.command()
@click.argument("topic")
@publish_options
@click.option("-r", "--retain", is_flag=True, help="Keep it as the topic's last value.")
@click.option("--unconfirmed", is_flag=True, help="Do not ask what became of it.")
@json_option
@connection_options
def pub(topic: str, retain: bool, unconfirmed: bool, as_json: bool, **rest: Any) -> None:
    """Publish PAYLOAD to TOPIC.

    The command ends well only when the node has taken everything, durable targets have it on disk,
    and it says how many targets there were.
    """
    publish_payloads(topic, retain=retain, unconfirmed=unconfirmed, as_json=as_json, **rest)


def publish_payloads(
    topic: str,
    *,
    payload: str | None,
    file: Any,
    stdin: bool,
    lines: bool,
    key: str | None,
    headers: tuple[str, ...],
    content_type: str | None,
    delay: float | None,
    expires: float | None,
    priority: int | None,
    message_id: str | None,
    reply_to: str | None,
    count: int,
    rate: float | None,
    as_json: bool,
    retain: bool = False,
    unconfirmed: bool = False,
    **connection: Any,
) -> None:
    """Publish what the options say, and print how many targets it had."""
    from ganglion.clients.command_line.sending import repeat, send_all
    from ganglion.clients.conversation import Answer
    from ganglion.protocols.native.operations import Operation

    source = payloads_of(payload, file, stdin, lines)
    properties = properties_of(
        key=key,
        headers=headers,
        content_type=content_type,
        delay_s=delay,
        expires_s=expires,
        priority=priority,
        message_id=message_id,
        reply_to=reply_to,
        retain=retain,
    )
    targets = [0, 0, 0]

    def on_answer(answer: Answer) -> int:
        if answer.error is not None:
            raise answer.error
        for index, more in enumerate(answer.values[:3]):
            targets[index] += more or 0
        return 1

    with failures(), connect(**connection) as client:

        def send(batch: list[bytes]) -> None:
            if unconfirmed:
                client.notify(Operation.MESSAGE, topic, *batch, properties)
            else:
                client.start(Operation.PUBLISH, topic, *batch, properties)

        payloads = repeat(source(client.attend), count)
        total = None if lines else count
        sent = send_all(client, payloads, send, on_answer, rate_per_s=rate, total=total)
        if unconfirmed:
            client.ping()  # when it is answered, the node has read all that was sent before
        _echo_targets(topic, sent, None if unconfirmed else targets, as_json=as_json)


def _echo_targets(topic: str, sent: int, targets: list[int] | None, *, as_json: bool) -> None:
    kinds = ("subscriber", "queue", "stream")
    if as_json:
        about: dict[str, object] = {"topic": topic, "messages": sent}
        if targets is not None:
            about |= {f"{kind}s": count for kind, count in zip(kinds, targets, strict=True)}
        echo_json(about)
        return
    text = f"sent {_counted(sent, 'message')}"
    if targets is not None:
        reached = [_counted(n, kind) for kind, n in zip(kinds, targets, strict=True) if n]
        text += f" to {', '.join(reached)}" if reached else "; nobody gets it"
    click.echo(text)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@click.command()
@click.argument("filters", nargs=-1, required=True, metavar="FILTER...")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--timeout", type=Number(0), metavar="SECONDS", help="End after so long.")
@click.option("-g", "--group", help="Share the messages with the others of this group.")
@click.option(
    "--canary-share",
    type=Number(0, 1),
    metavar="PART",
    help="Be a canary of the group: so much of its messages, 0 to 1, goes to its canaries.",
)
@click.option("--no-retained", is_flag=True, help="Only what is published from now on.")
@click.option("-v", "--verbose", is_flag=True, help="The topic before the payload.")
@format_options
@connection_options
def sub(
    filters: tuple[str, ...],
    count: int | None,
    timeout: float | None,
    group: str | None,
    canary_share: float | None,
    no_retained: bool,
    verbose: bool,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Subscribe to topic filters and print what arrives.

    With --count the exit code is 75 when --timeout is over before there were so many.
    """
    from ganglion.protocols.native.operations import Operation

    parts = parse_template(f"{{topic}} {template}" if verbose else template)
    asked: dict[str, Any] = {"group": group} if group is not None else {}
    if canary_share is not None:
        if group is None:
            raise click.UsageError("--canary-share is for members of a group: it needs --group")
        asked["canary_share"] = canary_share
    if no_retained:
        asked["retained"] = "none"
    seen = 0
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            deadline = None if timeout is None else time.monotonic() + timeout
            for each in filters:
                client.call(Operation.SUBSCRIBE, each, asked or None)
            for message in _messages(client.frames(deadline)):
                output.write(message)
                seen += 1
                if not client.has_more or seen == count:
                    output.flush()
                if seen == count:
                    break
    too_few(seen, count, timeout)


def _messages(frames: Iterator[tuple[Any, ...]]) -> Iterator[Received]:
    from ganglion.protocols.native.operations import Operation

    for frame in frames:
        match frame:
            case (Operation.MESSAGE, topic, payload, *rest):
                yield Received(topic, payload, rest[0] or {} if rest else {})
            case (Operation.DELIVERY, _, topic, payload, *rest):
                yield Received(topic, payload, rest[0] or {} if rest else {})
            case (Operation.DROPPED, _, missed, *_):
                sys.stderr.write(f"ganglion: {missed} messages were dropped: too many waited\n")
            case _:
                pass


def too_few(seen: int, count: int | None, timeout_s: float | None) -> None:
    """End with a failure when fewer came than were wanted."""
    if count is not None and seen < count:
        raise Failure(f"{seen} of {count} messages in {timeout_s:g} s", EXIT_TIMEOUT)
