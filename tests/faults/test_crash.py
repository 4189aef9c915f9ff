"""A broker killed at random moments under load, again and again, keeps all that it promised.

What the peers do, and what they hold the broker to, is in `crash_sessions`, `crash_sources` and
`crash_native`.

By hand, for hours: ``python -m tests.faults.test_crash sources --kills 5000 --seed 7``; with
``--power-loss`` each kill also takes from the disk what was not synced, or a part of it.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.crash import CrashRun, Role
from tests.faults.crash_native import (
    NativeConsumer,
    NativeReader,
    QueueRemaker,
    Resender,
    StreamRemaker,
)
from tests.faults.crash_sessions import (
    Changer,
    Comer,
    Publisher,
    Retainer,
    Subscriber,
    WillMaker,
)
from tests.faults.crash_sources import Consumer, Follower, Sender, Work
from tests.faults.disk import recorder

KILLS = int(os.environ.get("TEST_KILLS", "50"))
LOSSES = int(os.environ.get("TEST_POWER_LOSSES", "60")) // 6  # of power, for each load
SEED = int(os.environ.get("TEST_SEED", "20260102"))


def sessions(seed: int) -> tuple[Sequence[Sender], list[Role]]:
    """Durable sessions, QoS 1 and 2, subscriptions and retained messages."""
    publishers = [
        Publisher(name := f"publisher-{version}-{qos}", version, qos, f"load/{name}")
        for version in (4, 5)
        for qos in (1, 2)
    ]
    return publishers, [
        *publishers,
        *(Subscriber(f"subscriber-{version}", version, publishers) for version in (4, 5)),
        Retainer(random.Random(seed + 1)),
        *(
            Changer(f"changer-{version}", version, random.Random(seed + version))
            for version in (4, 5)
        ),
        Comer(random.Random(seed + 2)),
        WillMaker(),
    ]


def sources(_seed: int) -> tuple[Sequence[Sender], list[Role]]:
    """Queues with one consumer and with several, and a stream, which are bound to one topic."""
    ordered = [
        Publisher("once", 4, 2, "work/ordered/once"),
        Publisher("named", 5, 1, "work/ordered/named", has_message_ids=True),
    ]
    shared = [
        Publisher("direct", 5, 1, "$queue/shared", has_message_ids=True),
        Publisher("bound", 4, 2, "work/any"),
    ]
    ordered_work, shared_work = Work(ordered), Work(shared)
    return [*ordered, *shared], [
        *ordered,
        *shared,
        Consumer(
            "alone",
            5,
            "$queue/ordered?deduplication_s=3600/work/ordered/+",
            ordered_work,
            is_alone=True,
        ),
        Consumer(
            "many-1", 4, "$queue/shared?deduplication_s=3600/work/any", shared_work, is_alone=False
        ),
        Consumer(
            "many-2", 5, "$queue/shared?deduplication_s=3600/work/any", shared_work, is_alone=False
        ),
        Follower("follower", "log", "work/ordered/+", ordered),
    ]


def native(seed: int) -> tuple[Sequence[Sender], list[Role]]:
    """Publishers that send again under their producer; queues and streams deleted under load."""
    resenders = [
        Resender(f"resender-{number}", f"sent/{number}", random.Random(seed + number))
        for number in (1, 2)
    ]
    feeder = Publisher("feeder", 5, 1, "made/again", has_message_ids=True)
    return [*resenders, feeder], [
        *resenders,
        feeder,
        NativeConsumer("consumer", "sent", ["sent/+"], Work(resenders)),
        NativeReader("reader", "sent", ["sent/+"], resenders),
        QueueRemaker("again", feeder, random.Random(seed + 3)),
        StreamRemaker("again", feeder, random.Random(seed + 4)),
    ]


LOADS = {"sessions": sessions, "sources": sources, "native": native}


def crash(
    load: str,
    directory: Path,
    kills: int,
    seed: int,
    say: Callable[[str], None],
    recorder: Path | None = None,
) -> None:
    """Kill a daemon under a load of that name so often. Raises `Broken`.

    With a `recorder` (see `disk`) each kill is a power loss.
    """
    publishers, roles = LOADS[load](seed)

    def progress(number: int) -> None:
        sent = sum(each.acknowledged for each in publishers)
        say(f"{number} kills, {sent} messages acknowledged")

    try:
        CrashRun(directory, seed, roles, recorder).go(kills, progress)
    except AssertionError as error:
        raise AssertionError(f"TEST_SEED={seed}: {error}") from error
    for role in roles:
        if isinstance(role, Resender):
            say(f"{role.name}: {role.taken_before} publishes were sent again and not doubled")
            assert role.taken_before > 0, f"{role.name} never sent again what had been taken"
        elif isinstance(role, (QueueRemaker, StreamRemaker)):
            say(f"{role.name}: {role.deleted} deletions")
            assert role.deleted > 0, f"{role.name} never got to a deletion"
    for publisher in publishers:
        assert publisher.acknowledged > kills, f"{publisher.name} got hardly anything through"


def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path) -> None:
    """After every SIGKILL all that was acknowledged is there, in order, and QoS 2 exactly once."""
    crash("sessions", tmp_path, KILLS, SEED, lambda _: None)


def test_queues_and_streams_survive_kills(tmp_path: Path) -> None:
    """Nothing acknowledged is lost, nothing confirmed comes back, and sequences have no gap."""
    crash("sources", tmp_path, KILLS, SEED, lambda _: None)


def test_deletes_and_sending_again_survive_kills(tmp_path: Path) -> None:
    """Nothing of a deleted queue or stream comes back, nothing that was sent again is doubled."""
    crash("native", tmp_path, KILLS, SEED, lambda _: None)


@pytest.mark.parametrize("load", sorted(LOADS))
def test_power_losses(load: str, tmp_path: Path) -> None:
    """The same promises hold when each kill takes what was not synced, or leaves it torn."""
    crash(load, tmp_path, LOSSES, SEED, lambda _: None, recorder(tmp_path))


def main() -> None:
    """Run the harness by hand for as many kills as wished."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("load", choices=sorted(LOADS))
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--power-loss", action="store_true")
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="ganglion-crash-") as directory:
        library = recorder(Path(directory)) if options.power_loss else None
        crash(options.load, Path(directory), options.kills, options.seed, say, library)


if __name__ == "__main__":
    main()
