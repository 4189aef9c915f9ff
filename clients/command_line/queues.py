"""``ganglion queue``: make queues and look at them, send to them, consume from them."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

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
from ganglion.clients.command_line.failures import EXIT_NO, failures
from ganglion.clients.command_line.messaging import (
    format_options,
    publish_options,
    publish_payloads,
    too_few,
)
from ganglion.clients.command_line.rendering import (
    Output,
    Received,
    echo_columns,
    echo_json,
    parse_template,
)

if TYPE_CHECKING:
    from ganglion.clients.command_line.connection import BlockingClient

__all__ = ["queue"]

_PREFETCH = 100  # jobs held at a time: one at a time would wait for the network after each


@click.group()
def queue() -> None:
    """Make queues, look at them, send to them and consume from them."""


@queue.command("declare")
@click.argument("name")
@definition_options
@json_option
@connection_options
def queue_declare(
    name: str,
    bindings: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    **connection: Any,
) -> None:
    """Make queue NAME, or change the options that are given."""
    from ganglion.protocols.native.operations import Operation

    wanted = definition_of(bindings, settings)
    with failures(), connect(**connection) as client:
        result = client.call(Operation.QUEUE_DECLARE, name, wanted or None)
        echo_described(result["definition"], as_json=as_json)


@queue.command("describe")
@click.argument("name")
@json_option
@connection_options
def queue_describe(name: str, as_json: bool, **connection: Any) -> None:
    """Print what queue NAME is and how it is doing."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        echo_described(client.call(Operation.QUEUE_DESCRIBE, name), as_json=as_json)


@queue.command("list")
@json_option
@connection_options
def queue_list(as_json: bool, **connection: Any) -> None:
    """Print the queues that you may use."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        rows: list[tuple[str, ...]] = [("NAME", "MESSAGES", "CONSUMERS", "")]
        for each in pages_of(client, Operation.QUEUE_LIST, "queues"):
            if as_json:
                echo_json(each)
            state = "paused" if each["paused"] else ""
            rows.append((each["name"], str(each["messages"]), str(each["consumers"]), state))
        if not as_json:
            echo_columns(rows)


@queue.command("delete")
@click.argument("name")
@connection_options
def queue_delete(name: str, **connection: Any) -> None:
    """Delete queue NAME with all that is in it."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        client.call(Operation.QUEUE_DELETE, name)
        click.echo(f"deleted {name}")


@queue.command("purge")
@click.argument("name")
@json_option
@connection_options
def queue_purge(name: str, as_json: bool, **connection: Any) -> None:
    """Forget all messages of queue NAME that no consumer has."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        result = client.call(Operation.QUEUE_PURGE, name)
        if as_json:
            echo_json(result)
        else:
            click.echo(f"purged {result['purged']} messages")


@queue.command("pause")
@click.argument("name")
@connection_options
def queue_pause(name: str, **connection: Any) -> None:
    """Give out nothing of queue NAME until it is resumed; it goes on taking messages."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        client.call(Operation.QUEUE_PAUSE, name)
        click.echo(f"paused {name}")


@queue.command("resume")
@click.argument("name")
@connection_options
def queue_resume(name: str, **connection: Any) -> None:
    """Give out messages of queue NAME again."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        client.call(Operation.QUEUE_RESUME, name)
        click.echo(f"resumed {name}")


@queue.command("browse")
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--after", type=click.IntRange(0), help="Go on behind this number.")
@click.option("--priority", type=click.IntRange(0), help="Look at this level.")
@format_options
@connection_options
def queue_browse(
    name: str,
    count: int,
    after: int | None,
    priority: int | None,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Print messages that wait in queue NAME, without taking them."""
    from ganglion.protocols.native.operations import Operation

    parts = parse_template(template)
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            wanted = {"count": count, "after": after, "priority": priority}
            page = client.call(
                Operation.QUEUE_BROWSE,
                name,
                {key: each for key, each in wanted.items() if each is not None},
            )
            for number, at, attempts, topic, payload, *rest in page["messages"]:
                about = {"number": number, "time": at, "attempts": attempts}
                properties: dict[str, Any] = (rest[0] if rest else None) or {}
                output.write(Received(topic, payload, properties, about))
            output.flush()
            if page["more"] and sys.stderr.isatty():
                click.echo("there are more: --count, --after", err=True)


@queue.command("redrive")
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1), default=1000, show_default=True)
@json_option
@connection_options
def queue_redrive(name: str, count: int, as_json: bool, **connection: Any) -> None:
    """Send dead letters in queue NAME back to the queues that they came from."""
    from ganglion.protocols.native.operations import Operation

    with failures(), connect(**connection) as client:
        result = client.call(Operation.QUEUE_REDRIVE, name, count)
        if as_json:
            echo_json(result)
        else:
            click.echo(f"redrove {result['redriven']} messages")


@queue.command("send")
@click.argument("name")
@publish_options
@json_option
@connection_options
def queue_send(name: str, as_json: bool, **rest: Any) -> None:
    """Send PAYLOAD to queue NAME; it is on disk when the command ends well."""
    publish_payloads(f"$queue/{name}", as_json=as_json, **rest)


@queue.command("consume")
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--timeout", type=Number(0), metavar="SECONDS", help="End after so long.")
@click.option(
    "--ack/--no-ack",
    default=True,
    show_default=True,
    help="Whether they are done once they are printed; otherwise they go back at the end.",
)
@click.option("--canary", is_flag=True, help="Get the queue's canary_share of the messages.")
@click.option("--exec", "command", metavar="COMMAND", help="Run it for each message.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="How often COMMAND may run at a time.",
)
@click.option(
    "--nack-delay",
    type=Number(0),
    metavar="SECONDS",
    help="How long a failed message rests; left out: the queue's backoff.",
)
@format_options
@connection_options
def queue_consume(
    name: str,
    count: int | None,
    timeout: float | None,
    ack: bool,
    canary: bool,
    command: str | None,
    concurrency: int,
    nack_delay: float | None,
    template: str,
    as_json: bool,
    **connection: Any,
) -> None:
    """Consume messages from queue NAME and print them.

    With --exec COMMAND is run by the shell for each, with the payload as its input: exit code 0
    says that the message is done, any other one gives it back. The lease is extended meanwhile.
    """
    from ganglion.clients.errors import ClientError
    from ganglion.protocols.native.operations import Operation

    if command is not None and not ack:
        raise click.UsageError("--exec decides by itself: it cannot be used with --no-ack")
    parts = parse_template(template)
    failed = 0
    with failures():
        output = Output(parts, as_json=as_json)
        with connect(**connection) as client:
            deadline = None if timeout is None else time.monotonic() + timeout
            credit = concurrency if command is not None else _PREFETCH
            if not ack:
                credit = count or 1_000_000
            consumer = _Consumer(client, name, credit, count, is_canary=canary)
            if command is None:
                consumer.print_all(output, deadline, ack=ack)
            else:
                failed = consumer.run_all(
                    command,
                    output if as_json else None,
                    deadline,
                    concurrency=concurrency,
                    nack_delay_s=nack_delay,
                )
            for answer in client.answers():
                _settled(answer.result)
            with suppress(ClientError):  # its end gives back what is not settled, in any case
                client.call(Operation.CLOSE, consumer.number)
    too_few(consumer.seen, count, timeout)
    if failed:
        raise click.exceptions.Exit(EXIT_NO)


class _Consumer:
    """Takes jobs of a queue, no more than are wanted."""

    def __init__(
        self,
        client: "BlockingClient",
        name: str,
        credit: int,
        count: int | None,
        *,
        is_canary: bool,
    ) -> None:
        from ganglion.protocols.native.operations import Operation

        self._client = client
        self._name = name
        self._credit = credit
        self._count = count
        self._received = 0
        self.seen = 0
        """How many were dealt with."""
        held = credit if count is None else min(credit, count)
        options = {"credit": held, "canary": is_canary}
        self.number = client.start(Operation.CONSUME, name, options)
        for answer in client.answers():
            if answer.error is not None:
                raise answer.error

    def print_all(self, output: Output, deadline: float | None, *, ack: bool) -> None:
        """Print messages, and acknowledge what is printed, until there were enough."""
        from ganglion.protocols.native.operations import Operation

        client = self._client
        for frame in client.frames(deadline):
            done: list[int] = []
            for lease, message in self._jobs(frame, is_settled=ack):
                output.write(message)
                done.append(lease)
                self.seen += 1
            output.flush()
            if ack and done:
                client.start(Operation.ACK, self.number, done)
            for answer in client.answers(_PREFETCH):
                _settled(answer.result)
            if self.seen == self._count:
                break

    def run_all(
        self,
        command: str,
        output: Output | None,
        deadline: float | None,
        *,
        concurrency: int,
        nack_delay_s: float | None,
    ) -> int:
        """Run a command for each message, and settle it by the exit code; how many failed."""
        from ganglion.clients.command_line.execution import Commands
        from ganglion.protocols.native.operations import Operation

        client = self._client
        described = client.call(Operation.QUEUE_DESCRIBE, self._name)
        lease_s: float = described["definition"]["lease_s"]
        extend_at = time.monotonic() + lease_s / 3
        leases: set[int] = set()
        failed = 0
        with Commands(command, concurrency, capture=False) as commands:
            while self.seen != self._count:
                now = time.monotonic()
                is_over = client.is_draining or (deadline is not None and now >= deadline)
                if is_over and not leases:
                    break
                if now >= extend_at:
                    extend_at = now + lease_s / 3
                    if leases:
                        client.notify(Operation.EXTEND, 0, self.number, sorted(leases), lease_s)
                until = extend_at if deadline is None or is_over else min(extend_at, deadline)
                if is_over or not client.has_more:
                    client.attend(until, commands.fileno())
                for ended in commands.ended():
                    leases.discard(ended.key)
                    self.seen += 1
                    if ended.code:
                        failed += 1
                        click.echo(
                            f"ganglion: the command ended with {ended.code}: given back", err=True
                        )
                        client.start(Operation.NACK, self.number, ended.key, nack_delay_s)
                    else:
                        client.start(Operation.ACK, self.number, ended.key)
                while client.has_more and not is_over:
                    for lease, message in self._jobs(next(client.frames()), is_settled=True):
                        if output is not None:
                            output.write(message)
                            output.flush()
                        leases.add(lease)
                        commands.start(lease, message)
                for answer in client.answers(_PREFETCH):
                    _settled(answer.result)
        if client.is_draining and self.seen != self._count:
            for answer in client.answers():
                _settled(answer.result)
            client.attend(0.0)  # raises what is to be said of it
        return failed

    def _jobs(self, frame: tuple[Any, ...], *, is_settled: bool) -> Iterator[tuple[int, Received]]:
        """The jobs of a frame, and the credit for more of them where they make room."""
        from ganglion.protocols.native.operations import Operation

        if frame[0] != Operation.JOBS:
            return
        self._received += len(frame[2])
        if self._count is not None and is_settled:  # so that none that is not wanted goes back
            left = self._count - self._received
            self._client.notify(Operation.CREDIT, self.number, min(self._credit, left))
        for lease, topic, payload, *rest in frame[2]:
            properties: dict[str, Any] = (rest[0] if rest else None) or {}
            about = {"lease": lease, "attempts": rest[1] if len(rest) > 1 else 0}
            yield lease, Received(topic, payload, properties, about)


def _settled(result: dict[str, int]) -> None:
    """Hear what the node has done with an acknowledgement."""
    if gone := result["gone"]:
        click.echo(f"ganglion: the lease of {gone} messages had run out: others get them", err=True)
