"""The client's side of a native connection, sans-I/O: requests get ids, answers find them.

`Conversation` gives the bytes to send and takes the bytes that came. What comes is either an
`Answer`, which names the request that it settles, or another frame (messages, jobs, records,
calls, …) as it is. `docs/protocol.md` says what they mean. What the conversation itself has to say,
to a ping or to a challenge of a `Login`, is in `Conversation.replies`.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ganglion.clients.errors import BadOption, ConnectionLost, Refused
from ganglion.protocols.native.frames import Frame, FrameError, FrameLimits, FrameReader, pack
from ganglion.protocols.native.operations import FATAL, PROTOCOL_VERSION, Operation

if TYPE_CHECKING:
    from ganglion.clients.login import Login

__all__ = ["FRAME_LIMITS", "Answer", "Conversation"]

FRAME_LIMITS: Final = FrameLimits(128 * 1024 * 1024, array_max=65_536, map_max=65_536)
"""Of what a node sends. It packs several messages of 16 MiB into one frame at times, and its
arrays and maps have more members than those of clients; a node is not a stranger."""


_ANSWERS: Final = frozenset(
    (
        Operation.OK,
        Operation.REPLY,
        Operation.CONFIRMED,
        Operation.ERROR,
        Operation.PING,
        Operation.CHALLENGE,
    )
)
"""The frames that are looked into here; all others are passed on with one look-up."""


_MESSAGE: Final = int(Operation.MESSAGE)  # written in half the time of an IntEnum


class Answer(Struct, frozen=True):
    """What the node said to a request."""

    id: int
    operation: int
    """`Operation.OK`, `Operation.REPLY`, or `Operation.CONFIRMED`."""
    values: tuple[Any, ...]
    """The elements behind the id; of `CONFIRMED` the counts of subscribers, queues and streams."""
    error: Refused | None = None
    """Why it was refused, instead of all that."""

    @property
    def result(self) -> Any:
        """The value of an `ok`, None without one. Raises `Refused` when it was refused."""
        if self.error is not None:
            raise self.error
        return self.values[0] if self.values else None


class Conversation:
    """One connection: which requests are open, and what the node says to them."""

    def __init__(self, login: "Login | None" = None, *, ids: Iterator[int] | None = None) -> None:
        """``login`` says who the client is; without one the options of hello do, or nobody.

        ``ids`` is where the numbers of requests come from, if not from 1 on.
        Those of publishes ascend over the whole life of a producer, so a client that outlives its
        connections has one row of numbers for all of them.
        """
        self._login = login
        self._reader = FrameReader(FRAME_LIMITS)
        self._ids = itertools.count(1) if ids is None else ids
        self._publishes: dict[int, None] = {}  # in the order in which they are answered
        self._hello = 0
        self._singles: set[int] = set()  # requests that `reply` answers for good
        self.is_greeted = False
        """Whether the node has said something of the native protocol."""
        self.replies: list[bytes] = []
        """What is to be sent at once: answers to pings, the proof of a login."""

    def hello(self, options: dict[str, Any]) -> tuple[int, bytes]:
        """The first frame and its id. Raises `AuthenticationFailed`: nobody may be told."""
        if self._login is not None:
            options = {**options, **self._login.options()}
        self._hello, data = self.request(Operation.HELLO, PROTOCOL_VERSION, options)
        return self._hello, data

    def request(self, operation: Operation, *elements: object) -> tuple[int, bytes]:
        """A frame that is answered, and the id that its answer will have. Raises `BadOption`."""
        number = next(self._ids)
        data = _packed((int(operation), number, *_trimmed(elements)))
        if operation == Operation.PUBLISH:
            self._publishes[number] = None
        elif operation == Operation.REQUEST:
            self._singles.add(number)
        return number, data

    def forget(self, number: int) -> None:
        """A request that was not sent, or that nobody waits for: it may never be answered."""
        self._publishes.pop(number, None)
        self._singles.discard(number)

    def sent_again(self, number: int) -> None:
        """A publish of an earlier connection goes out on this one, before all new ones."""
        self._publishes[number] = None

    def message(self, topic: str, payload: bytes, properties: dict[str, Any] | None) -> bytes:
        """A message without a confirmation. Raises `BadOption`."""
        if properties is None:
            return _packed((_MESSAGE, topic, payload))
        return _packed((_MESSAGE, topic, payload, properties))

    def notice(self, operation: Operation, *elements: object) -> bytes:
        """A frame that is not answered. Raises `BadOption`."""
        return _packed((int(operation), *_trimmed(elements)))

    def receive(self, data: bytes) -> Iterator[Answer | Frame]:
        """These bytes came; what they say.

        Raises `Refused` for an error that ends the connection and is no answer to a request, and
        `ConnectionLost` for bytes that are not the native protocol. Raises `AuthenticationFailed`
        when the node cannot prove that it knows the user who logs in.
        """
        try:
            self._reader.feed(data)
            following = self._reader.next
            while (frame := following()) is not None:
                if frame[0] in _ANSWERS:
                    yield from self._on_answer(frame)
                else:
                    yield frame
        except (FrameError, IndexError, TypeError, ValueError) as error:
            if not self.is_greeted:
                raise ConnectionLost(
                    "this is no native listener of a node: its answer is of another protocol"
                ) from None
            raise ConnectionLost(f"the node sent what cannot be read: {error}") from None

    def _on_answer(self, frame: Frame) -> Iterator[Answer | Frame]:
        operation = frame[0]
        match operation:
            case Operation.OK:
                self.is_greeted = True
                self._singles.discard(frame[1])
                if frame[1] == self._hello and self._login is not None:
                    self._login.check(frame[2])
                yield Answer(frame[1], operation, frame[2:])
            case Operation.REPLY if frame[1] in self._singles:
                self._singles.discard(frame[1])
                yield Answer(frame[1], operation, frame[2:])
            case Operation.CONFIRMED:
                for number in self._confirmed(frame[1], frame[2]):
                    yield Answer(number, operation, frame[3:])
            case Operation.ERROR:
                yield self._on_error(frame)
            case Operation.PING:
                self.replies.append(self.notice(Operation.PONG))
            case Operation.CHALLENGE if self._login is not None:
                self.is_greeted = True
                self.replies.append(self.notice(Operation.PROOF, self._login.proof(frame[1])))
            case _:
                yield frame

    def _confirmed(self, first: int, last: int) -> list[int]:
        """Publishes from first to last; they are open no more. Earlier ones are refused by name."""
        until_last = itertools.takewhile(lambda number: number <= last, self._publishes)
        numbers = [number for number in until_last if number >= first]
        for number in numbers:
            del self._publishes[number]
        return numbers

    def _on_error(self, frame: Frame) -> Answer:
        number, code, text = frame[1], frame[2], frame[3]
        refused = Refused.of(code, text, frame[4] if len(frame) > 4 else None)
        self.is_greeted = True
        if number == 0 and code in FATAL:
            raise refused
        self._publishes.pop(number, None)
        self._singles.discard(number)
        return Answer(number, int(Operation.ERROR), (), refused)


def _packed(frame: Frame) -> bytes:
    try:
        return pack(frame)
    except UnicodeEncodeError as error:
        raise BadOption(f"{error.object!r} is not text: it cannot be written as UTF-8") from None
    except OverflowError:
        raise BadOption("a whole number has more than 64 bits") from None
    except (TypeError, ValueError) as error:
        raise BadOption(f"what is to be sent cannot be: {error}") from None


def _trimmed(elements: tuple[object, ...]) -> tuple[object, ...]:
    """Elements without those at the end that are nil: left out they mean the same."""
    end = len(elements)
    while end and elements[end - 1] is None:
        end -= 1
    return elements[:end]
