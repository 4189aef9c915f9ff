"""Requests: asking one responder or all of them, and answering as a service."""

from typing import Any, Final, Unpack

import anyio
from msgspec import field

from ganglion.clients.channels import Attached, Channel, Channels, check_credit
from ganglion.clients.errors import BadOption, TimedOut
from ganglion.clients.link import Call, Link
from ganglion.clients.messages import Message, MessageOptions, properties_in
from ganglion.clients.owed import Owed, OwedChannel, Owing
from ganglion.clients.session import Session
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import Operation

__all__ = ["Request", "Service", "Serving", "gather", "request"]

_GRACE_S: Final = 1.0
"""How much longer than the node a gathering waits: the node's word at the deadline is its end."""


async def request(
    session: Session,
    topic: str,
    value: object,
    *,
    timeout_s: float,
    repeat: bool,
    about: MessageOptions,
) -> Message:
    """Ask one responder, and give its reply."""
    if not timeout_s > 0:
        raise BadOption(f"timeout_s must be above 0, not {timeout_s:g}")
    _, payload, properties = session.publication(topic, value, about)
    options: dict[str, Any] = {"timeout_s": timeout_s}
    if repeat:
        options["repeat"] = True
    elements = (topic, payload, properties, options)
    answer = await session.call(
        Operation.REQUEST, elements, timeout_s=timeout_s, again=repeat, cancel=True
    )
    return _reply(session, topic, answer)


async def gather(
    session: Session,
    topic: str,
    value: object,
    *,
    timeout_s: float,
    at_most: int | None,
    about: MessageOptions,
) -> list[Message]:
    """Ask all responders, and give the replies that came until the end."""
    if not timeout_s > 0:
        raise BadOption(f"timeout_s must be above 0, not {timeout_s:g}")
    if at_most is not None and at_most < 1:
        raise BadOption(f"at_most must be 1 or more, not {at_most}")
    _, payload, properties = session.publication(topic, value, about)
    options: dict[str, Any] = {"timeout_s": timeout_s}
    if at_most is not None:
        options["count"] = at_most
    replies: list[Message] = []
    waiting = Call(on_part=lambda frame: replies.append(_reply(session, topic, frame[2:])))
    link: Link | None = None
    with anyio.move_on_after(timeout_s):
        link = await session.sending()
    if link is None:
        raise TimedOut(f"there was no connection within {timeout_s:g} s: nobody was asked")
    with anyio.move_on_after(timeout_s + _GRACE_S):
        number = link.ask(waiting, Operation.GATHER, topic, payload, properties, options)
        link.channels[number] = waiting
        try:
            await waiting.wait()
        finally:
            link.channels.pop(number, None)
            link.give_up(number, cancel=True)
    return replies


def _reply(session: Session, topic: str, elements: tuple[Any, ...]) -> Message:
    payload, *_ = elements
    return Message(topic, payload, properties_in(elements, 1), session.settings.codec)


class Serving(Owing):
    """A service on one connection, with the calls that wait for its answer."""

    __slots__ = ("unwanted",)

    def __init__(self, channel: Channel[Any], link: Link, number: int) -> None:
        super().__init__(channel, link, number)
        self.unwanted: dict[int, anyio.Event] = {}
        """Of calls whose program wants to know when nobody waits any more."""

    def on_frame(self, frame: Frame) -> None:
        """A call, or word that one is not wanted any more."""
        if frame[0] == Operation.CANCELLED:
            self.close(frame[2])
        else:
            super().on_frame(frame)

    def let_go(self) -> None:
        """Nobody can be answered any more."""
        for call in list(self.owed):
            self.close(call)

    def close(self, call: int) -> bool:
        """It is answered, or not wanted; False: it was already."""
        is_open = self.owed.pop(call, self) is None
        unwanted = self.unwanted.pop(call, None)
        if unwanted is not None:
            unwanted.set()
        return is_open

    def answer(self, operation: Operation, call: int, *elements: object) -> bool:
        """Send the one answer that a call has; False: nobody waits for it."""
        if not self.close(call):
            return False
        data = self.link.conversation.notice(operation, 0, self.number, call, *elements)
        self.link.put_frame(data, is_waited_for=not self.owed)
        return True

    def say_left(self, handle: int, error: BaseException | None) -> None:
        """Tell who asks that there is no answer, if its block has given none."""
        if isinstance(error, Exception):
            self.answer(Operation.FAIL, handle, f"{type(error).__name__}: {error}", "error")
        else:
            self.answer(Operation.FAIL, handle, "the responder gave no answer", "no_answer")


class Request(Owed, Message, frozen=True, eq=False, kw_only=True):
    """A request that waits for an answer of this program."""

    call: int
    at: Serving = field()

    @property
    def handle(self) -> int:
        """The number of the call."""
        return self.call

    @property
    def is_wanted(self) -> bool:
        """Whether it has no answer yet and somebody waits for one."""
        return self.call in self.at.owed

    async def unwanted(self) -> None:
        """Wait until nobody waits for the answer any more, or it was given."""
        if self.is_wanted:
            await self.at.unwanted.setdefault(self.call, anyio.Event()).wait()

    async def reply(self, value: object = b"", **about: Unpack[MessageOptions]) -> bool:
        """Answer; False: nobody waits for it any more. Does not wait for the network."""
        channel = self.at.channel
        assert isinstance(channel, Service)
        _, payload, properties = channel.session.publication("", value, about)
        return self.at.answer(Operation.ANSWER, self.call, payload, properties)

    async def fail(self, text: str, code: str | None = None) -> bool:
        """Say why there is no answer: who asks gets `ResponderFailed` with these."""
        return self.at.answer(Operation.FAIL, self.call, text, code)


class Service(OwedChannel[Request]):
    """Requests for the topics that a filter matches."""

    operation = Operation.SERVE

    def __init__(
        self, session: Session, topic_filter: str, *, group: str | None, concurrency: int
    ) -> None:
        channels: Channels = session
        super().__init__(channels)
        self.filter = topic_filter
        self.session = session
        self._group = group
        self._concurrency = concurrency

    def check(self) -> None:
        """It takes at least one request at a time."""
        check_credit("concurrency", self._concurrency)

    def opening(self) -> tuple[object, ...]:
        """Filter and options."""
        options: dict[str, Any] = {"credit": self._concurrency}
        if self._group is not None:
            options["group"] = self._group
        return (self.filter, options)

    def attachment(self, link: Link, number: int) -> Attached:
        """Calls are of one connection."""
        return Serving(self, link, number)

    def on_frame(self, frame: Frame, at: Attached) -> None:
        """A call came."""
        assert isinstance(at, Serving)
        about = properties_in(frame, 5)
        at.owed[frame[2]] = None
        codec = self.session.settings.codec
        self.give(Request(frame[3], frame[4], about, codec, call=frame[2], at=at))
