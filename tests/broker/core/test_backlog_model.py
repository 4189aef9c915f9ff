"""Backlogs and shared payloads against a model in plain Python, on a slow disk that crashes.

Whatever happens: nothing is lost or given out twice, the order is that of the numbers, counts and
bytes are exact, the window in memory is bounded, and a message that is stored once for several
places is stored exactly as long as it waits in one of them.
"""

from collections import Counter
from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ganglion.broker.core import backlog as backlog_module
from ganglion.broker.core.backlog import Backlog, Shelf
from ganglion.broker.core.commits import Commits
from ganglion.broker.core.message import PLAIN_TERMS, Delivery, Message, MessageProperties, Terms
from ganglion.broker.core.records import decode_message
from ganglion.broker.core.statistics import Statistics
from ganglion.broker.core.timers import Timers
from ganglion.broker.store import Kind
from tests.broker.core.virtual_queues import UNIX_TIME_OFFSET_S, Disk

WINDOW, CHUNK = 6, 3
TERMS = (*PLAIN_TERMS, Terms(1, True, (7, 9)), Terms(1, attempts=3))
Contents = dict[int, dict[int, tuple[str, Terms]]]
"""By backlog and number: payload and terms of what is not settled."""


class BacklogModel(RuleBasedStateMachine):
    """Three backlogs on one shelf."""

    def __init__(self) -> None:
        super().__init__()
        patch = self.patch = pytest.MonkeyPatch()
        patch.setattr(backlog_module, "_WINDOW_MESSAGES", WINDOW)
        patch.setattr(backlog_module, "_CHUNK_MESSAGES_MAX", CHUNK)
        patch.setattr(backlog_module, "_CHUNK_BYTES_MAX", 100)
        self.disk = Disk()
        self.live: Contents = {}
        self.written: Contents = {}
        """As it was when the batch that is under way was closed."""
        self.durable: Contents = {}
        self.next_payload = 0
        self.shared: set[str] = set()
        self._start()
        for _ in range(3):
            self._create()
        self._sync()

    def teardown(self) -> None:
        """Take the small bounds back."""
        self.patch.undo()

    def _start(self) -> None:
        timers = Timers(5.0)
        self.commits = Commits(self.disk, timers, Statistics())
        self.shelf = Shelf(self.disk, self.commits, timers, UNIX_TIME_OFFSET_S)
        self.backlogs: dict[int, Backlog] = {}
        self.taken: dict[int, list[Delivery]] = {}
        for identifier in self.live:
            self.backlogs[identifier] = self.shelf.open(identifier)
            self.taken[identifier] = []
        self.shelf.discard_others(set(self.live))
        self.recorded = {name: max(each, default=0) for name, each in self.live.items()}

    def _create(self) -> None:
        made = self.shelf.create()
        made.record()
        self.backlogs[made.identifier] = made
        self.live[made.identifier], self.taken[made.identifier] = {}, []
        self.recorded[made.identifier] = 0

    def _names(self, which: set[int]) -> list[int]:
        names = sorted(self.backlogs)
        return [names[each % len(names)] for each in sorted(which)]

    def _ready(self, name: int) -> list[int]:
        taken = {delivery[2] for delivery in self.taken[name]}
        return [
            number
            for number in sorted(self.live[name])
            if number <= self.recorded[name] and number not in taken
        ]

    def _sync(self) -> None:
        while self.commits.is_open or self.disk.held:
            self._flush()
            self._release()

    def _flush(self) -> None:
        if not self.disk.held and self.commits.is_open:
            self.written = deepcopy(self.live)
            self.disk.slow = True
            self.commits.flush()

    def _release(self) -> None:
        if self.disk.held:
            self.durable = self.written
            for name, contents in self.written.items():
                if name in self.recorded and contents:
                    self.recorded[name] = max(self.recorded[name], *contents)
            self.disk.release()

    # -- what may happen -------------------------------------------------------------------------

    @rule(
        which=st.sets(st.integers(0, 2), min_size=1),
        count=st.integers(1, 8),
        terms=st.sampled_from(TERMS),
        expires=st.booleans(),
        about=st.sampled_from([None, MessageProperties(key="k")]),
    )
    def append(
        self,
        which: set[int],
        count: int,
        terms: Terms,
        expires: bool,
        about: MessageProperties | None,
    ) -> None:
        """Messages come to one backlog, or stored once to several."""
        names = set(self._names(which))
        for _ in range(count):
            payload = f"payload {self.next_payload}"
            self.next_payload += 1
            message = Message("t", payload.encode(), 1, False, about, 1e9 if expires else None)
            if len(names) > 1:
                self.shelf.payloads.share(message)
                self.shared.add(payload)
            for name in names:
                number = self.backlogs[name].append(message, terms)
                self.live[name][number] = (payload, terms)

    @rule(which=st.integers(0, 2), count=st.integers(1, 9))
    def take(self, which: int, count: int) -> None:
        """The next ones that are committed come, in order, one by one or together."""
        (name,) = self._names({which})
        expected = self._ready(name)[:count]
        backlog = self.backlogs[name]
        found: list[Delivery] = []
        while len(found) < count:
            peeked = backlog.peek()
            if count % 2:
                more = [delivery] if (delivery := backlog.take()) is not None else []
            else:
                more = backlog.take_many(count - len(found))
            assert (peeked is None) == (not more)
            if not more:
                break
            assert peeked is more[0]
            found += more
        assert [delivery[2] for delivery in found] == expected
        for message, terms, number, _ in found:
            assert (message.payload.decode(), terms) == self.live[name][number]
        self.taken[name] += found

    @rule(which=st.integers(0, 2), data=st.data())
    def settle(self, which: int, data: st.DataObject) -> None:
        """Some of what was taken is done with, in any order."""
        (name,) = self._names({which})
        taken = self.taken[name]
        chosen = data.draw(st.lists(st.sampled_from(taken), unique_by=id)) if taken else []
        for delivery in chosen:
            self.backlogs[name].settle(delivery)
            del self.live[name][delivery[2]]
        self.taken[name] = [each for each in taken if each not in chosen]

    @rule(which=st.integers(0, 2))
    def put_back(self, which: int) -> None:
        """The last ones that were taken are taken again before all others."""
        (name,) = self._names({which})
        taken = sorted(self.taken[name], key=lambda each: each[2])
        first = min(self._ready(name), default=2**62)
        back = [each for each in taken if each[2] < first][-3:]
        if back and back == taken[-len(back) :]:
            self.backlogs[name].put_back(back)
            self.taken[name] = taken[: -len(back)]

    @rule(which=st.integers(0, 2))
    def settle_waiting(self, which: int) -> None:
        """What is in the window and unwanted goes."""
        (name,) = self._names({which})
        found = self.backlogs[name].settle_waiting(lambda each: each[2] % 3 == 0)
        for delivery in found:
            assert delivery[2] in self._ready(name)
            del self.live[name][delivery[2]]

    @rule(which=st.integers(0, 2))
    def purge(self, which: int) -> None:
        """All that is committed and was not taken goes."""
        (name,) = self._names({which})
        gone = self._ready(name)
        assert self.backlogs[name].purge() == len(gone)
        for number in gone:
            del self.live[name][number]

    @rule(which=st.integers(0, 2))
    def discard(self, which: int) -> None:
        """A backlog ends, whatever is in it or under way, and another one begins."""
        (name,) = self._names({which})
        backlog = self.backlogs.pop(name)
        for delivery in self.taken.pop(name):
            backlog.settle(delivery)
        backlog.discard()
        del self.live[name], self.recorded[name]
        self._create()

    @precondition(lambda self: self.commits.is_open and not self.disk.held)
    @rule()
    def flush(self) -> None:
        """The batch is closed and on its way."""
        self._flush()

    @precondition(lambda self: self.disk.held)
    @rule()
    def release(self) -> None:
        """What is on its way is durable."""
        self._release()

    @rule()
    def crash(self) -> None:
        """All that is not durable is lost."""
        self.disk = self.disk.after_crash()
        self.live = deepcopy(self.durable)
        self._start()
        self._sync()

    @rule()
    def look_into_the_store(self) -> None:
        """When all is durable the store holds what waits, and no more."""
        self._sync()
        uses: Counter[str] = Counter()
        for contents in self.live.values():
            uses.update(payload for payload, _ in contents.values())
        stored = {
            key: decode_message(value, 0).payload.decode()
            for key, value in self.disk.scan(Kind.PAYLOAD)
        }
        counted = {
            key: int.from_bytes(value, "big") for key, value in self.disk.scan(Kind.PAYLOAD_USES)
        }
        shared = {payload: count for payload, count in uses.items() if payload in self.shared}
        assert {stored[key]: count for key, count in counted.items()} == shared
        assert len(stored) == len(shared)

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def counts_are_exact(self) -> None:
        """Messages and bytes, of each backlog and of all."""
        for name, backlog in self.backlogs.items():
            contents = self.live[name]
            assert len(backlog) == backlog.count == len(contents)
            about = [payload for payload, _ in contents.values()]
            assert backlog.size_bytes >= sum(len(each) + 1 for each in about)
            assert backlog.size_bytes <= sum(len(each) + 2 for each in about)
            assert backlog.waiting == len(contents) - len(self.taken[name])
        assert self.shelf.count() == sum(map(len, self.live.values()))

    @invariant()
    def a_look_shows_what_is_committed(self) -> None:
        """From any number on, in order."""
        for name, backlog in self.backlogs.items():
            committed = [each for each in sorted(self.live[name]) if each <= self.recorded[name]]
            for after in (0, *committed[len(committed) // 2 :][:1]):
                found = [(each.number, each.message.payload) for each in backlog.browse(after)]
                assert found == [
                    (number, self.live[name][number][0].encode())
                    for number in committed
                    if number > after
                ]

    @invariant()
    def the_window_is_bounded(self) -> None:
        """Not even a large commit or a load brings more into memory."""
        for name, backlog in self.backlogs.items():
            put_back = 3 * CHUNK
            assert backlog.ready <= WINDOW + CHUNK + put_back, name


TestBacklogs = pytest.mark.slow(BacklogModel.TestCase)
TestBacklogs.settings = settings(max_examples=100, stateful_step_count=40)
