"""``ganglion stream``: make streams and look at them, append to them, read and follow them."""

import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from ganglion.clients.command_line.connecting import (
    Number,
    connect,
    connection_options,
    json_option,
)
from ganglion.clients.command_line.definitions import (
    definition_of,
    definition_options,
    echo_described,
    pages_of,
)
from ganglion.clients.command_line.failures import failures
from ganglion.clients.command_line.messaging import format_options, too_few
from ganglion.clients.command_line.payloads import (
    payload_options,
    payloads_of,
    properties_of,
    property_options,
)
from ganglion.clients.command_line.rendering import (
    Output,
    Received,
    echo_columns,
    echo_json,
    parse_template,
)

__all__ = ["parse_time", "stream"]

_PAGE = 1000
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group()
def stream() -> None:
    """Make streams, look at them, append to them, read and follow them."""


def parse_time(text: str, now: float) -> float:
    """A point in time: Unix seconds, ISO 8601, or how long ago (``90s``, ``15m``, ``2h``, ``7d``).

    ISO 8601 without an offset is local time. Raises `click.UsageError`.
    """
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return max(0.0, now - float(ago[1]) * _UNITS_S[ago[2]])
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.UsageError(
            f"--from {text}: give Unix seconds, 2026-12-31T12:00, or 15m for 15 minutes ago"
        ) from None


@stream.command("declare")
@click.argument("name")
@definition_options
@json_option
@connection_options
def stream_declare(
    name: str,
    bindings: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    **connection: Any,
) -> None:
    """Make stream NAME, or change the options that are given."""
    from ganglion.protocols.native.operations import Operation

    wanted = definition_of(bindings, settings)
    with failures(), connect(**connection) as client:
        result = client.call(Operation.STREAM_DECLARE, name, wanted or None)
        echo_described(result["definition"], as_json=as_json)


@stream.command("describe")
@click.argument("name")
@json_option
@connection_options
def stream_describe(name: str, as_json: bool, **connection: Any) -> None:
    """Print what stream NAME is and how it is doing."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        echo_described(client.call(Operation.STREAM_DESCRIBE, name), as_json=as_json)


@stream.command("list")
@json_option
@connection_options
def stream_list(as_json: bool, **connection: Any) -> None:
    """Print the streams that you may use."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        rows: list[tuple[str, ...]] = [("NAME", "RECORDS", "FIRST", "LAST")]
        for each in pages_of(client, Operation.STREAM_LIST, "streams"):
            if as_json:
                echo_json(each)
            rows.append(tuple(str(each[key]) for key in ("name", "records", "first", "last")))
        if not as_json:
            echo_columns(rows)


@stream.command("delete")
@click.argument("name")
@connection_options
def stream_delete(name: str, **connection: Any) -> None:
    """Delete stream NAME with all that is in it."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        client.call(Operation.STREAM_DELETE, name)
        click.echo(f"deleted {name}")


@stream.command("append")
@click.argument("name")
@payload_options
@property_options
@click.option(
    "--expected",
    type=click.IntRange(0),
    metavar="SEQUENCE",
    help="Only if the last record with --key is this one; 0: only if there is none.",
)
@click.option("--rate", type=Number(0, min_open=True), help="At most so many a second.")
@json_option
@connection_options
def stream_append(
    name: str,
    payload: str | None,
    file: Any,
    stdin: bool,
    lines: bool,
    key: str | None,
    headers: tuple[str, ...],
    content_type: str | None,
    expected: int | None,
    rate: float | None,
    as_json: bool,
    **connection: Any,
) -> None:
    """Append PAYLOAD to stream NAME; it is on disk when the command ends well.

    With --lines, lines that come at once are appended together.
    """
    from ganglion.clients.command_line.sending import batches_of, send_all
    from ganglion.clients.conversation import Answer
    from ganglion.protocols.native.operations import Operation

    if expected is not None and (key is None or lines):
        raise click.UsageError("--expected is for one record, with --key")
    source = payloads_of(payload, file, stdin, lines)
    properties = properties_of(key=key, headers=headers, content_type=content_type)
    asked = None if expected is None else {"expected": {key: expected}}
    sequences: list[int] = []

    def on_answer(answer: Answer) -> int:
        result = answer.result
        first, last = result["first"], result["last"]
        sequences[:] = [sequences[0] if sequences else first, last]
        return int(last - first + 1)

    def send(batch: list[bytes]) -> None:
        if len(batch) == 1:
            client.start(Operation.APPEND, name, *batch, properties, asked)
        else:
            client.start(Operation.APPEND_BATCH, name, batch, properties)

    with failures(), connect(**connection) as client:
        sent = send_all(
            client,
            batches_of(source(client.attend), rate),
            send,
            on_answer,
            rate_per_s=rate,
            total=None if lines else 1,
        )
        first, last = sequences or (None, None)
        if as_json:
            echo_json({"stream": name, "records": sent, "first": first, "last": last})
        elif sent == 1:
            click.echo(f"appended record {first}")
        else:
            click.echo(f"appended {sent} records" + (f", {first} to {last}" if sent else ""))


@stream.command("read")
@click.argument("name")
@click.option("--after", type=click.IntRange(0), metavar="SEQUENCE", help="Begin behind it.")
@click.option("--from", "from_time", metavar="TIME", help="Begin there; 15m: 15 minutes ago.")
@click.option("-k", "--key", help="Only records with this key.")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many records.")
@format_options
@connection_options
def stream_read(
    name: str,
    after: int | None,
    from_time: str | None,
    key: str | None,
    count: int | None,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Print the records that stream NAME has."""
    from ganglion.protocols.native.operations import Operation

    parts = parse_template(template)
    asked = _beginning(after, from_time)
    if key is not None:
        asked["key"] = key
    seen = 0
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            while count is None or seen < count:
                asked["count"] = _PAGE if count is None else min(_PAGE, count - seen)
                page = client.call(Operation.READ, name, asked)
                last = None
                for record in _records(page["records"]):
                    output.write(record)
                    seen += 1
                    last = record.about["sequence"]
                output.flush()
                if last is None:
                    break
                asked.pop("from_s", None)
                asked["after"] = last


@stream.command("follow")
@click.argument("name")
@click.option("--after", type=click.IntRange(0), metavar="SEQUENCE", help="Begin behind it.")
@click.option("--from", "from_time", metavar="TIME", help="Begin there; 15m: 15 minutes ago.")
@click.option("-g", "--group", help="Share records, and the position, with this consumer group.")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many records.")
@click.option("--timeout", type=Number(0), metavar="SECONDS", help="End after so long.")
@format_options
@connection_options
def stream_follow(
    name: str,
    after: int | None,
    from_time: str | None,
    group: str | None,
    count: int | None,
    timeout: float | None,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Print records of stream NAME as they are appended.

    With --group records are acknowledged when they are printed, and the group goes on from there.
    """
    from ganglion.protocols.native.operations import Operation

    parts = parse_template(template)
    asked = _beginning(after, from_time)
    if group is not None:
        asked["group"] = group
    if count is not None:
        asked["credit"] = min(count, 1_000_000) if group is None else min(count, _PAGE)
    seen = 0
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            deadline = None if timeout is None else time.monotonic() + timeout
            follower = client.start(Operation.FOLLOW, name, asked or None)
            for answer in client.answers():
                if answer.error is not None:
                    raise answer.error
            for frame in client.frames(deadline):
                if frame[0] != Operation.RECORDS:
                    continue
                last = None
                for record in _records(frame[2:]):
                    if seen == count:
                        break
                    output.write(record)
                    seen += 1
                    last = record.about["sequence"]
                output.flush()
                if group is not None and last is not None:
                    if count is not None:  # no more than are wanted, so that none go back
                        client.notify(Operation.CREDIT, follower, min(_PAGE, count - seen))
                    # This one, and all before it.
                    client.call(Operation.ACK, follower, last)
                if seen == count:
                    break
    too_few(seen, count, timeout)


@stream.command("groups")
@click.argument("name")
@click.option("--add", "added", metavar="GROUP", help="Make a consumer group.")
@click.option("--after", type=click.IntRange(0), metavar="SEQUENCE", help="Where --add begins.")
@click.option("--remove", "removed", metavar="GROUP", help="Forget a consumer group.")
@json_option
@connection_options
def stream_groups(
    name: str,
    added: str | None,
    after: int | None,
    removed: str | None,
    as_json: bool,
    **connection: Any,
) -> None:
    """Print the consumer groups of stream NAME, after adding or removing one."""
    from ganglion.protocols.native.operations import Operation

    if after is not None and added is None:
        raise click.UsageError("--after is for --add")
    with failures(), connect(**connection) as client:
        if added is not None:
            start = None if after is None else {"after": after}
            client.call(Operation.GROUP_DECLARE, name, added, start)
        if removed is not None:
            client.call(Operation.GROUP_DELETE, name, removed)
        described = client.call(Operation.STREAM_DESCRIBE, name)
        keys = ("name", "position", "lag", "members", "unacknowledged")
        rows: list[tuple[str, ...]] = [tuple(key.upper() for key in keys)]
        for each in described["statistics"]["groups"]:
            if as_json:
                echo_json(each)
            rows.append(tuple(str(each[key]) for key in keys))
        if not as_json:
            echo_columns(rows)


def _beginning(after: int | None, from_time: str | None) -> dict[str, Any]:
    if after is not None and from_time is not None:
        raise click.UsageError("give --after or --from, not both")
    if from_time is not None:
        return {"from_s": parse_time(from_time, time.time())}
    return {} if after is None else {"after": after}


def _records(columns: tuple[Any, ...]) -> Iterator[Received]:
    """Records from their columns (`docs/protocol.md`, *read*)."""
    filled: list[Any] = [*columns, None, None]
    sequences, times, topics, payloads, keys, properties = filled[:6]
    for index, payload in enumerate(payloads):
        sequence = sequences + index if isinstance(sequences, int) else sequences[index]
        at = times if isinstance(times, int | float) else times[index]
        about: dict[str, object] = {"sequence": sequence, "time": at}
        members: dict[str, Any] = (properties[index] if properties else None) or {}
        if keys and keys[index] is not None:
            members = {"key": keys[index], **members}
        topic = topics if isinstance(topics, str) else topics[index]
        yield Received(topic, payload, members, about)
