"""The roles of the crash harness that speak the native protocol.

* a publisher with a *producer* sends again, under the same ids, what had no answer when its
  connection broke: nothing confirmed is lost, and nothing is doubled;
* what a consumer has acknowledged and had confirmed does not come back;
* a queue or stream whose deletion was confirmed is gone, and one that is made again under its name
  has nothing of the earlier one: no message, lease, delay, mark of a message identifier or record.

The client was written from docs/protocol.md and uses nothing of the project.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Self

import msgpack

from tests.faults.crash import WINDOW, Broken, Ports, demand
from tests.faults.crash_sessions import Publisher, numbered
from tests.faults.crash_sources import Work
from tests.support import DEADLINE_S, Closed

__all__ = [
    "APPEND",
    "CONFIRMED",
    "OK",
    "PUBLISH",
    "QUEUE_BROWSE",
    "QUEUE_DECLARE",
    "READ",
    "STREAM_DECLARE",
    "STREAM_DESCRIBE",
    "NativeClient",
    "NativeConsumer",
    "NativeReader",
    "QueueRemaker",
    "Resender",
    "StreamRemaker",
]

JOBS, RECORDS, ENDED, OK, ERROR, CONFIRMED = 3, 4, 8, 11, 12, 13
HELLO, PUBLISH, PUBLISH_BATCH, CLOSE = 32, 33, 34, 36
CONSUME, ACK, NACK = 40, 41, 42
QUEUE_DECLARE, QUEUE_DESCRIBE, QUEUE_DELETE, QUEUE_BROWSE = 45, 46, 48, 52
APPEND, READ, FOLLOW = 60, 62, 63
STREAM_DECLARE, STREAM_DESCRIBE, STREAM_DELETE, STREAM_VERSION = 64, 65, 67, 70
"""Operations (docs/protocol.md, section 4)."""

BATCH = 3
"""Messages of a publish batch."""
HELD_MAX = 12
"""Messages that a consumer has and keeps unacknowledged."""
PAGE = 500


class NativeClient:
    """A blocking peer of the native protocol."""

    def __init__(self, ports: Ports, name: str, **options: Any) -> None:
        """Connect and be greeted; `options` are those of ``hello``."""
        self._socket = socket.create_connection(("127.0.0.1", ports["native"]), DEADLINE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unpacker = msgpack.Unpacker()
        self._skipped: deque[list[Any]] = deque()
        self._last_id = 0
        try:
            self.greeting: dict[str, Any] = self.call(
                HELLO, 1, {"client": name, "keep_alive_s": 0, **options}
            )
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frame: object) -> None:
        """Send one frame."""
        self._socket.sendall(msgpack.packb(frame))

    def ask(self, operation: int, *elements: object) -> int:
        """Send a request: its id, which is none of those that publishes have."""
        self._last_id += 1
        self.send(operation, self._last_id, *elements)
        return self._last_id

    def call(self, operation: int, *elements: object) -> Any:
        """Send a request and wait for its answer: the result. Other frames stay to be read."""
        answer = self.answer(self.ask(operation, *elements))
        demand(answer[0] == OK, f"request {operation} {elements} was answered {answer}")
        return answer[2] if len(answer) > 2 else None

    def answer(self, number: int) -> list[Any]:
        """Wait for the answer to a request. Other frames stay to be read."""
        others: list[list[Any]] = []
        end = time.monotonic() + DEADLINE_S
        while True:
            frame = self.expect(end - time.monotonic())
            if frame[0] in (OK, ERROR, CONFIRMED) and frame[1] == number:
                self._skipped.extendleft(reversed(others))
                return frame
            others.append(frame)

    def expect(self, deadline_s: float = DEADLINE_S) -> list[Any]:
        """The next frame, which has to come. Raises `Closed`."""
        frame = self.read(deadline_s)
        if frame is None:
            raise Broken("nothing came from the node")
        return frame

    def read(self, deadline_s: float) -> list[Any] | None:
        """The next frame; None when nothing came in time. Raises `Closed`."""
        if self._skipped:
            return self._skipped.popleft()
        end = time.monotonic() + deadline_s
        while True:
            for frame in self._unpacker:
                return list(frame)
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(262_144)
            except TimeoutError:
                return None
            finally:
                self._socket.settimeout(DEADLINE_S)
            if not data:
                raise Closed("closed by the broker")
            self._unpacker.feed(data)


class Resender:
    """Publishes numbers under one producer; on a new connection it sends again what had no answer.

    Every third request is a batch. All of them are bound to one queue and one stream. Now and then
    it breaks a connection itself, with answers and requests under way.
    """

    takes_rest = False

    def __init__(self, name: str, topic: str, chance: Random) -> None:
        self.name = name
        self.topic = topic
        self.number = 0
        """The last one that was sent."""
        self.acknowledged = 0
        """Up to which number all are confirmed."""
        self.taken_before = 0
        """How many requests were sent again, and not taken a second time."""
        self._chance = chance
        self._producer = chance.randbytes(16).hex()
        self._last_id = 1000  # above those of other requests on a connection
        self._confirmed_id = 0
        self._open: dict[int, list[int]] = {}  # requests without an answer: their numbers
        self._again: set[int] = set()  # of those: sent before this connection

    def is_ready(self) -> bool:
        """It keeps nobody waiting."""
        return True

    def check(self, ports: Ports) -> None:
        """Nothing is to be checked before the load."""

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Publish until the connection breaks, or `is_over` and all is confirmed."""
        is_done = False
        while not is_done:
            with NativeClient(ports, self.name, producer=self._producer) as client:
                is_done = self._work(client, is_over)

    def _work(self, client: NativeClient, is_over: Callable[[], bool]) -> bool:
        """Publish on this connection; False: it has had enough of it."""
        taken = client.greeting["sequence"]
        demand(
            taken >= self._confirmed_id,
            f"{self.name}: {self._confirmed_id} was confirmed, and the node knows {taken}",
        )
        self._again = set(self._open)
        for number in self._open:
            self._send(client, number)
        while True:
            while not is_over() and len(self._open) < WINDOW:
                self._last_id += 1
                count = BATCH if self._last_id % 3 == 0 else 1
                self._open[self._last_id] = list(range(self.number + 1, self.number + count + 1))
                self.number += count
                self._send(client, self._last_id)
            if not self._open:
                return True
            if self._chance.random() < 0.01 and not is_over():
                return False
            self._take(client.expect())

    def _send(self, client: NativeClient, number: int) -> None:
        payloads = [f"{self.name} {each}".encode() for each in self._open[number]]
        if len(payloads) > 1:
            client.send(PUBLISH_BATCH, number, self.topic, payloads)
        else:
            client.send(PUBLISH, number, self.topic, payloads[0])

    def _take(self, frame: list[Any]) -> None:
        if frame[0] == CONFIRMED:
            first, last, *counts = frame[1:]
            found = [each for each in self._open if first <= each <= last and each % 3]
            size = 1
        else:
            demand(frame[0] == OK, f"{self.name}: got {frame}")
            found, counts, size = [frame[1]], list(frame[2]), BATCH
        demand(found, f"{self.name}: {frame} answers nothing")
        for number in found:
            if counts == [None, None, None]:
                demand(number in self._again, f"{self.name}: {number} is new, and was taken before")
                self.taken_before += 1
            else:
                demand(counts == [0, size, size], f"{self.name}: {number} went to {counts}")
            del self._open[number]
            self._confirmed_id = max(self._confirmed_id, number)
        waiting = min((each[0] for each in self._open.values()), default=self.number + 1)
        self.acknowledged = waiting - 1


class NativeTaker:
    """Reads from a queue or a stream that it makes itself."""

    takes_rest = True

    def __init__(self, name: str, source: str, options: Mapping[str, object]) -> None:
        """`options` are those of the definition of the queue or stream."""
        self.name = name
        self._source = source
        self._options = options
        self._is_subscribed = False

    def is_ready(self) -> bool:
        """Whether what it reads from is there."""
        return self._is_subscribed

    def check(self, ports: Ports) -> None:
        """Nothing is to be checked before the load."""

    def begin(self, client: NativeClient) -> int:
        """Make what it reads from, and read: the channel."""
        raise AssertionError(f"{self.name} does not know how")

    def take(self, client: NativeClient, channel: int, frame: list[Any]) -> None:
        """Something has come."""
        raise AssertionError(f"{self.name} cannot take anything")

    def rest(self, client: NativeClient, channel: int) -> None:
        """Nothing has come for a while."""

    def has_all(self) -> bool:
        """Whether all that was confirmed to the publishers has come."""
        raise AssertionError(f"{self.name} does not know")

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Read until the connection breaks, or `is_over` and everything has come."""
        with NativeClient(ports, self.name) as client:
            channel = self.begin(client)
            self._is_subscribed = True
            ends_at: float | None = None
            while not (is_over() and self.has_all()):
                if is_over():
                    ends_at = ends_at or time.monotonic() + DEADLINE_S
                    demand(time.monotonic() < ends_at, f"{self.name}: has not got everything")
                frame = client.read(0.05)
                if frame is None:
                    self.rest(client, channel)
                else:
                    self.take(client, channel, frame)


class NativeConsumer(NativeTaker):
    """Takes what is in a queue and acknowledges it; an answer confirms that.

    It is the only one, so order can be checked. Some messages it gives back first.
    """

    def __init__(self, name: str, queue: str, bindings: Sequence[str], work: Work) -> None:
        super().__init__(name, queue, {"bindings": list(bindings)})
        self._work = work
        self._held: dict[int, tuple[str, int]] = {}  # by lease
        self._last: dict[str, int] = {}  # on this connection
        self._returned: set[tuple[str, int]] = set()
        self._asked: dict[int, list[tuple[str, int]]] = {}  # acknowledgements without an answer

    def has_all(self) -> bool:
        """Whether everything is done."""
        return self._work.is_done()

    def begin(self, client: NativeClient) -> int:
        """What was not confirmed on the last connection may come again."""
        self._held, self._last, self._asked = {}, {}, {}
        self._returned = set()
        client.call(QUEUE_DECLARE, self._source, self._options)
        channel = client.ask(CONSUME, self._source, {"credit": 2 * HELD_MAX})
        demand(client.answer(channel)[0] == OK, f"{self.name}: does not consume")
        return channel

    def take(self, client: NativeClient, channel: int, frame: list[Any]) -> None:
        """Messages, or the answer to an acknowledgement."""
        if frame[0] == OK:
            items = self._asked.pop(frame[1], None)
            if items is not None:
                expected = {"settled": len(items), "gone": 0}
                demand(frame[2] == expected, f"{self.name}: {items} were settled as {frame[2]}")
                for name, number in items:
                    self._work.confirmed[name].add(number)
            return
        demand(frame[:2] == [JOBS, channel], f"{self.name}: got {frame}")
        for lease, _, payload, *rest in frame[2]:
            self._check(payload, attempts=rest[1] if len(rest) > 1 else 0)
            item = numbered(payload)
            demand(item not in self._held.values(), f"{self.name}: {item} is there twice")
            if item[1] % 17 == 0 and item not in self._returned:
                self._returned.add(item)
                client.ask(NACK, channel, lease, 0)
            else:
                self._held[lease] = item
        while len(self._held) > HELD_MAX:
            self._acknowledge(client, channel, 3)

    def rest(self, client: NativeClient, channel: int) -> None:
        """Nothing has come for a while: acknowledge what was kept."""
        if self._held:
            self._acknowledge(client, channel, len(self._held))

    def _acknowledge(self, client: NativeClient, channel: int, count: int) -> None:
        leases = list(self._held)
        leases = leases[-count:] if leases[0] % 2 else leases[:count]
        items = [self._held.pop(lease) for lease in leases]
        self._asked[client.ask(ACK, channel, leases)] = items
        for name, number in items:
            self._work.done[name].add(number)

    def _check(self, payload: bytes, *, attempts: int) -> None:
        name, number = numbered(payload)
        demand(
            number not in self._work.confirmed[name],
            f"{self.name}: {name} {number} came back, and its acknowledgement was confirmed",
        )
        if (name, number) in self._returned:
            demand(attempts, f"{self.name}: {name} {number} was given back, and comes as new")
            return
        last = self._last.get(name, 0)
        demand(number > last, f"{self.name}: {name} {number} follows {last}")
        missing = set(range(last + 1, number)) - self._work.done[name]
        demand(not missing, f"{self.name}: {name} {number} came, and {missing} never did")
        self._last[name] = number


class NativeReader(NativeTaker):
    """Follows a stream; of each publisher it has every number once, in order."""

    def __init__(
        self, name: str, stream: str, bindings: Sequence[str], publishers: Sequence[Resender]
    ) -> None:
        super().__init__(name, stream, {"bindings": list(bindings)})
        self._publishers = {each.name: each for each in publishers}
        self._last = dict.fromkeys(self._publishers, 0)
        self._sequence = 0
        self._records: dict[int, bytes] = {}

    def has_all(self) -> bool:
        """Whether all that was confirmed to the publishers has come."""
        return all(self._last[name] >= each.acknowledged for name, each in self._publishers.items())

    def begin(self, client: NativeClient) -> int:
        """From where it came to, and one in three times from the beginning again."""
        if len(self._records) % 3 == 0:
            self._sequence = 0
            self._last = dict.fromkeys(self._publishers, 0)
        client.call(STREAM_DECLARE, self._source, self._options)
        channel = client.ask(FOLLOW, self._source, {"after": self._sequence})
        demand(client.answer(channel)[0] == OK, f"{self.name}: does not follow")
        return channel

    def take(self, client: NativeClient, channel: int, frame: list[Any]) -> None:
        """Records."""
        demand(frame[:2] == [RECORDS, channel], f"{self.name}: got {frame}")
        first, payloads = frame[2], frame[5]
        demand(
            first == self._sequence + 1, f"{self.name}: sequence {first} follows {self._sequence}"
        )
        for sequence, payload in enumerate(payloads, first):
            before = self._records.setdefault(sequence, payload)
            demand(before == payload, f"{self.name}: {sequence} was {before!r}, is {payload!r}")
            name, number = numbered(payload)
            last = self._last[name]
            demand(number == last + 1, f"{self.name}: {name} {number} follows {last}")
            self._last[name] = number
            self._sequence = sequence


class Remaker:
    """Makes a queue or stream, uses it, looks what is in it, deletes it, and begins anew.

    Meanwhile somebody else publishes to it all the time. What that publisher was told to be safe
    when a deletion was sent (`_floor`) cannot be in what is made later. What it sent after the
    making was confirmed (above `_ceiling`) has to be there, as far as it was acknowledged.
    """

    takes_rest = False

    def __init__(
        self, source: str, operations: tuple[int, int, int], feeder: Publisher, chance: Random
    ) -> None:
        """`operations` are those that declare, describe and delete it."""
        self.name = f"{type(self).__name__} of {source}"
        self.deleted = 0
        """How often a deletion was confirmed."""
        self.source = source
        self.feeder = feeder
        self.chance = chance
        self.channel: int | None = None
        """That is open on this connection."""
        self._declares, self._describes, self._deletes = operations
        self._is_there = False
        self._wish: bool | None = None  # without an answer: that it be there, or not
        self._floor = 0
        self._floor_of_wish = 0
        self._ceiling = 0

    def is_ready(self) -> bool:
        """It keeps nobody waiting."""
        return True

    def check(self, ports: Ports) -> None:
        """What was confirmed holds: it is there with what is in it, or it is not."""
        with NativeClient(ports, self.name) as client:
            is_there = self._describe(client)
            wish, self._wish = self._wish, None
            demand(
                is_there in (self._is_there, wish),
                f"{self.name}: it is there: {is_there}, what was confirmed: {self._is_there}",
            )
            if is_there != self._is_there:  # the wish came through
                self._ceiling = self.feeder.number  # who has not begun to publish again
                if not is_there:
                    self._floor = self._floor_of_wish
            acknowledged = self.feeder.acknowledged
            if is_there and wish is False:
                # Deleted, but not on disk yet, it did not get what was sent then, and the feeder
                # was told so (0x10). After that the deletion was lost.
                acknowledged = min(acknowledged, self._floor_of_wish)
            self._is_there = is_there
            if is_there:
                self._look(client, acknowledged)
                if wish is False:
                    self._ceiling = self.feeder.number

    def run(self, ports: Ports, is_over: Callable[[], bool]) -> None:
        """Work until the connection breaks, or `is_over`."""
        self.channel = None
        with NativeClient(ports, self.name) as client:
            while not is_over():
                if not self._is_there:
                    self._make(client)
                self.use(client)
                self._look(client, self.feeder.acknowledged)
                if self.chance.random() < 0.7:
                    self._delete(client)

    def _describe(self, client: NativeClient) -> bool:
        answer = client.answer(client.ask(self._describes, self.source))
        demand(answer[0] == OK or answer[2] == "not_found", f"{self.name}: got {answer}")
        return bool(answer[0] == OK)

    def _make(self, client: NativeClient) -> None:
        self._wish = True
        client.call(self._declares, self.source, self.options())
        self._wish, self._is_there, self._ceiling = None, True, self.feeder.number

    def _delete(self, client: NativeClient) -> None:
        self._wish, self._floor_of_wish = False, self.feeder.acknowledged
        client.call(self._deletes, self.source)
        self._wish, self._is_there, self._floor = None, False, self._floor_of_wish
        self.deleted += 1
        channel, self.channel = self.channel, None
        while channel is not None:
            frame = client.expect()  # the answer to the deletion was waited for: it is there
            if frame[0] == ENDED:
                demand(frame[1:3] == [channel, "not_found"], f"{self.name}: got {frame}")
                break
        demand(not self._describe(client), f"{self.name}: it was deleted, and is there")

    def _look(self, client: NativeClient, acknowledged: int) -> None:
        """Compare what is there with what has to be (up to `acknowledged`) and what cannot be."""
        found = self.contents(client)
        numbers = {number for name, number in found if name == self.feeder.name}
        old = {each for each in numbers if each <= self._floor}
        demand(not old, f"{self.name}: {old} were in an earlier one (up to {self._floor})")
        missing = set(range(self._ceiling + 1, acknowledged + 1)) - numbers - self.done()
        demand(not missing, f"{self.name}: {missing} were acknowledged, and are not there")

    def options(self) -> dict[str, object]:
        """It is about to be made: the options of its definition."""
        raise AssertionError(self.name)

    def use(self, client: NativeClient) -> None:
        """Work with it."""
        raise AssertionError(self.name)

    def contents(self, client: NativeClient) -> list[tuple[str, int]]:
        """All that is in it; compared with what this role has put there itself."""
        raise AssertionError(self.name)

    def done(self) -> set[int]:
        """The publisher's numbers that need not be there any more."""
        return set()


class QueueRemaker(Remaker):
    """Deletes a queue with waiting, leased, delayed and returned messages, and makes it again."""

    def __init__(self, source: str, feeder: Publisher, chance: Random) -> None:
        super().__init__(source, (QUEUE_DECLARE, QUEUE_DESCRIBE, QUEUE_DELETE), feeder, chance)
        self._round = 0
        self._sent: set[tuple[str, int]] = set()  # by this role, to the queue that is there
        self._kept: set[tuple[str, int]] = set()  # of those: what was confirmed, and is not due
        self._done: set[int] = set()  # numbers of the publisher that were acknowledged
        self._confirmed: set[int] = set()

    def options(self) -> dict[str, object]:
        """It has marks of message identifiers, delays and bindings."""
        for each in (self._sent, self._kept, self._done, self._confirmed):
            each.clear()
        return {"bindings": [self.feeder.topic], "deduplication_s": 3600}

    def use(self, client: NativeClient) -> None:
        """Send something, take what is first, settle some of it, and keep the rest or leave."""
        if self.channel is not None:
            client.call(CLOSE, self.channel)
        self._round += 1
        self._send(client, "own", {"message_id": f"round {self._round}"})
        self._send(client, "late", {"delay_s": self.chance.choice((0.01, 600))})
        if not any(name == "same" for name, _ in self._kept):
            self._send(client, "same", {"message_id": "the same one in every queue"})
        channel = self.channel = client.ask(CONSUME, self.source, {"credit": 40})
        demand(client.answer(channel)[0] == OK, f"{self.name}: does not consume")
        while (frame := client.expect())[:2] != [JOBS, channel]:
            demand(frame[0] == JOBS, f"{self.name}: got {frame}")  # of a channel that is closed
        fed: dict[int, int] = {}
        for lease, _, payload, *_ in frame[2]:
            name, number = numbered(payload)
            if name == self.feeder.name:
                fed[lease] = number
            else:
                demand((name, number) in self._sent, f"{self.name}: {payload!r} is of another one")
        again = self._confirmed.intersection(fed.values())
        demand(not again, f"{self.name}: {again} came back, and was settled")
        settled, returned = list(fed)[:5], list(fed)[5:8]
        self._done.update(fed[lease] for lease in settled)
        if settled:
            result = client.call(ACK, channel, settled)
            demand(result == {"settled": len(settled), "gone": 0}, f"{self.name}: {result}")
            self._confirmed.update(fed[lease] for lease in settled)
        if returned:
            client.call(NACK, channel, returned, 0)

    def _send(self, client: NativeClient, name: str, properties: dict[str, object]) -> None:
        self._sent.add((name, self._round))
        payload = f"{name} {self._round}".encode()
        number = client.ask(PUBLISH, f"$queue/{self.source}", payload, properties)
        answer = client.answer(number)
        demand(answer == [CONFIRMED, number, number, 0, 1, 0], f"{self.name}: got {answer}")
        if name != "late":
            self._kept.add((name, self._round))

    def contents(self, client: NativeClient) -> list[tuple[str, int]]:
        """All that is not delayed."""
        found: list[tuple[str, int]] = []
        after, has_more = 0, True
        while has_more:
            page = client.call(QUEUE_BROWSE, self.source, {"after": after, "count": PAGE})
            for number, _, _, _, payload, *_ in page["messages"]:
                found.append(numbered(payload))
                after = number
            has_more = page["more"]
        demand(len(found) == len(set(found)), f"{self.name}: something is in it twice: {found}")
        own = {each for each in found if each[0] != self.feeder.name}
        demand(own <= self._sent, f"{self.name}: {own - self._sent} are of an earlier one")
        # A `same` whose confirmation was lost keeps out those that were sent later
        lost = {each for each in self._kept - own if each[0] != "same"}
        demand(not lost, f"{self.name}: {lost} were confirmed, and are not there")
        names = {name for name, _ in self._kept} - {name for name, _ in own}
        demand(not names, f"{self.name}: the mark of a message identifier has outlived its queue")
        return found

    def done(self) -> set[int]:
        """What it has acknowledged."""
        return self._done


class StreamRemaker(Remaker):
    """Deletes a stream with keys and a group, and makes it again."""

    def __init__(self, source: str, feeder: Publisher, chance: Random) -> None:
        super().__init__(source, (STREAM_DECLARE, STREAM_DESCRIBE, STREAM_DELETE), feeder, chance)
        self._round = 0
        self._version = 0
        self._is_appending = False
        self._sent: set[int] = set()  # rounds that may be in the stream that is there
        self._own: dict[int, tuple[str, int]] = {}  # those that are, by sequence
        self._settled = 0

    def options(self) -> dict[str, object]:
        """It begins at 1, without versions and positions."""
        self._version, self._is_appending, self._settled = 0, False, 0
        self._sent.clear()
        self._own.clear()
        return {"bindings": [self.feeder.topic], "keyed": True}

    def use(self, client: NativeClient) -> None:
        """Append with the expected version of a key, and read on as a group."""
        self._round += 1
        version = client.call(STREAM_VERSION, self.source, "key")["version"]
        demand(
            version == self._version or (self._is_appending and version > self._version),
            f"{self.name}: the version is {version}, confirmed was {self._version}",
        )
        self._is_appending = True
        self._sent.add(self._round)
        appended = client.call(
            APPEND,
            self.source,
            f"own {self._round}".encode(),
            {"key": "key"},
            {"expected": {"key": version}},
        )
        self._version, self._is_appending = appended["last"], False
        self._own[self._version] = ("own", self._round)
        if self.channel is not None:
            client.call(CLOSE, self.channel)
        self.channel = client.ask(FOLLOW, self.source, {"group": "g", "after": 0, "credit": 20})
        answer = client.answer(self.channel)
        demand(answer[0] == OK, f"{self.name}: {answer}")
        position = answer[2]["position"]
        demand(position <= self._settled, f"{self.name}: a new group begins at {position}")
        while (frame := client.expect())[:2] != [RECORDS, self.channel]:
            demand(frame[0] == RECORDS, f"{self.name}: got {frame}")  # of a closed channel
        first, payloads = frame[2], frame[5]
        demand(first == position + 1, f"{self.name}: behind {position} came {first}")
        self._settled = max(self._settled, first + len(payloads) // 2)
        client.call(ACK, self.channel, first + len(payloads) // 2)

    def contents(self, client: NativeClient) -> list[tuple[str, int]]:
        """All records."""
        found: list[tuple[str, int]] = []
        while True:
            result = client.call(READ, self.source, {"after": len(found), "count": PAGE})
            first, _, _, payloads, *_ = result["records"]
            if not payloads:
                break
            demand(first == len(found) + 1, f"{self.name}: {first} follows {len(found)}")
            found += map(numbered, payloads)
        for sequence, item in self._own.items():
            there = found[sequence - 1] if sequence <= len(found) else None
            demand(there == item, f"{self.name}: {sequence} was {item}, and is {there}")
        old = {number for name, number in found if name == "own"} - self._sent
        demand(not old, f"{self.name}: {old} are of an earlier one")
        return found
