"""What outlives connections: one session of a program with whichever node it reaches.

The session has at most one `Link` that is used for new things. When that ends it connects again, to
the first address that answers, with growing pauses; then it sends again what has no confirmation
(`Outbox`), opens its channels again, and lets go on who waited.

When a node says that it will stop (drain), a link to another one is made first. New publishes are
held until the old node has confirmed its own: another node does not know their numbers. Then
everything moves, and the old link lives on until what is leased there is settled.
"""

import itertools
import logging
import math
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, cast

import anyio
from anyio.abc import TaskGroup

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.channels import Attached, Channel
from ganglion.clients.codecs import JSON, Codec
from ganglion.clients.errors import (
    AuthenticationFailed,
    BadOption,
    ClientError,
    Closed,
    ConnectionLost,
    Refused,
    TimedOut,
    Unreachable,
)
from ganglion.clients.link import Link
from ganglion.clients.login import Login
from ganglion.clients.messages import MessageOptions, Receipt, column, is_large, properties_of
from ganglion.clients.publishing import Outbox, published
from ganglion.clients.subscriptions import Plain
from ganglion.protocols.native.operations import Code, Operation

__all__ = ["Secret", "Session", "Settings", "State", "StateChange"]

State = Literal["connecting", "open", "closed"]
"""Of the connection: it is sought, is there, or will not be there any more."""
Secret = str | Callable[[], "str | Awaitable[str]"]
"""A secret, or a function that is asked for it at each connection; it may be asynchronous."""

_FINAL: Final = frozenset(
    (
        Code.NOT_AUTHENTICATED,
        Code.NOT_ALLOWED,
        Code.UNSUPPORTED_VERSION,
        Code.TAKEN_OVER,
        Code.PROTOCOL,
        Code.MALFORMED,
        Code.TOO_LARGE,
        Code.SEQUENCE,
    )
)
"""Refusals after which connecting again would only be refused again."""

_HOLD_S: Final = 0.5
"""What a node that stops has at least to confirm publishes before they go to another one."""

_log: Final = logging.getLogger("ganglion.client")


@dataclass(frozen=True, slots=True)
class StateChange:
    """What became of the connection."""

    state: State
    address: str = ""
    """The URL of the node that it is open to."""
    reason: str = ""
    """Why it is not open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a program connects; `connect` explains each."""

    addresses: tuple[NodeAddress, ...]
    tls: ssl.SSLContext | None = None
    client: str | None = None
    user: str | None = None
    password: Secret | None = None
    token: Secret | None = None
    connect_timeout_s: float = 10.0
    wait_for_node_s: float = 0.0
    reconnect: bool = True
    fail_fast: bool = False
    backoff_s: float = 0.1
    backoff_max_s: float = 15.0
    keep_alive_s: int = 30
    answer_timeout_s: float = 10.0
    publishes_max: int = 10_000
    codec: Codec = JSON
    on_state: Callable[[StateChange], None] | None = None
    producer: str = field(default_factory=lambda: os.urandom(16).hex())


class Session:
    """Connections, one after the other, and all that goes over them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.encode = settings.codec.encode
        """A payload and its content type out of a value."""
        self.link: Link | None = None
        self.error: ClientError | None = None
        self.outbox = Outbox(settings.publishes_max, waits=self.waits)
        self.plain = Plain(settings.codec)
        self.dropped = 0
        """Messages of `send` that were lost because there was no connection."""
        self.change = StateChange("connecting")
        """What became of the connection last."""
        self._watchers: list[Callable[[StateChange], None]] = []
        if settings.on_state is not None:
            self._watchers.append(settings.on_state)
        self._channels: dict[Channel[Any], None] = {}
        self._ids = itertools.count(1)
        self._logins: dict[NodeAddress, Login] = {}
        self._ready = anyio.Event()
        self._attention = anyio.Event()
        self._drain: dict[str, Any] | None = None
        self._known: tuple[NodeAddress, ...] = ()  # other nodes that a node has told of
        self._attempts = 0  # to connect again, since a connection lasted
        self._opened_s = -math.inf
        self._lost: ClientError = Unreachable("there was no connection yet")

    @property
    def waits(self) -> bool:
        """Whether what is asked for waits for a connection when there is none."""
        return self.settings.reconnect and not self.settings.fail_fast

    @property
    def answer_timeout_s(self) -> float:
        """How long is waited for an answer where nothing else is said."""
        return self.settings.answer_timeout_s

    # -- for what goes over it ---------------------------------------------------------------------

    def add(self, channel: Channel[Any]) -> None:
        """Open a channel, now and on each connection that follows."""
        self._channels[channel] = None
        if self.link is not None:
            channel.attach(self.link)

    def remove(self, channel: Channel[Any]) -> None:
        """Open it no more."""
        self._channels.pop(channel, None)

    def watch(self, watcher: Callable[[StateChange], None]) -> Callable[[], None]:
        """Call this with each change of state; call what is returned to end that."""
        self._watchers.append(watcher)

        def unwatch() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return unwatch

    async def sending(self) -> Link:
        """A connection with room for more to send; waits for one.

        Raises why there will be none, or with ``fail_fast`` that there is none now.
        """
        while True:
            link = self.link
            if link is not None:
                if not link.is_full:
                    return link
                await link.room()
            elif self.error is not None:
                raise self.error.with_traceback(None)  # it is raised many times, and would grow
            elif not self.waits:
                raise ConnectionLost(f"there is no connection at this time: {self._lost}")
            else:
                await self._ready.wait()

    async def ask(
        self, operation: Operation, *elements: object, timeout_s: float | None = None
    ) -> Any:
        """Ask the node and wait: the result. Raises `TimedOut`, `Refused` or `ConnectionLost`."""
        values = await self.call(operation, elements, timeout_s=timeout_s)
        return values[0] if values else None

    async def ask_again(
        self, operation: Operation, *elements: object, timeout_s: float | None = None
    ) -> Any:
        """As `ask`, for what does no harm twice: when a connection is lost, on the next one."""
        values = await self.call(operation, elements, timeout_s=timeout_s, again=True)
        return values[0] if values else None

    async def call(
        self,
        operation: Operation,
        elements: tuple[object, ...],
        *,
        timeout_s: float | None = None,
        again: bool = False,
        cancel: bool = False,
    ) -> tuple[Any, ...]:
        """Ask the node and wait: the elements of the answer.

        ``again``: on the next connection, when one is lost. ``cancel``: the node is told when
        nobody waits any more.
        """
        limit_s = self.settings.answer_timeout_s if timeout_s is None else timeout_s
        with anyio.move_on_after(limit_s):
            while True:
                link = await self.sending()
                try:
                    return await link.call(operation, *elements, cancel=cancel)
                except ConnectionLost:
                    if not again or not self.waits:
                        raise
        why = "no answer came" if self.link is not None else f"there is no connection: {self._lost}"
        raise TimedOut(f"{why} within {limit_s:g} s")

    def publication(
        self, topic: str, value: object, about: MessageOptions
    ) -> tuple[str, bytes, dict[str, Any] | None]:
        """Topic, payload and properties of a message. Raises `BadOption`."""
        payload, content_type = self.encode(value)
        return topic, payload, properties_of(about, content_type)

    async def publish(
        self, topic: str, value: object, timeout_s: float | None, about: MessageOptions
    ) -> Receipt:
        """Publish and wait for the confirmation, for ever or so long. Raises `TimedOut`."""
        publishing = published(self, Operation.PUBLISH, self.publication(topic, value, about))
        if timeout_s is None:
            return await publishing
        with anyio.move_on_after(timeout_s):
            return await publishing
        raise TimedOut(f"not confirmed within {timeout_s:g} s: whether it was taken is not known")

    async def publish_batch(
        self,
        topics: str | Sequence[str],
        values: Sequence[object],
        timeout_s: float | None,
        about: MessageOptions,
    ) -> Receipt:
        """Publish many, in frames of as many as the node takes at once; the sums of the counts."""
        if not isinstance(topics, str) and len(topics) != len(values):
            raise BadOption(f"there are {len(values)} values and {len(topics)} topics")
        with anyio.move_on_after(timeout_s if timeout_s is not None else math.inf):
            receipts = [Receipt(0, 0, 0)]
            start = 0
            while start < len(values):
                payloads, properties = self._frame(values, start, await self.sending(), about)
                end = start + len(payloads)
                some_topics = topics if isinstance(topics, str) else topics[start:end]
                elements = (some_topics, payloads, properties)
                try:
                    receipts.append(await published(self, Operation.PUBLISH_BATCH, elements))
                except Refused as refused:
                    if "index" in refused.details:
                        refused.details["index"] += start
                    raise
                start = end
            return Receipt(
                *(
                    None if any(count is None for count in column) else sum(column)
                    for column in zip(
                        *((r.subscribers, r.queues, r.streams) for r in receipts), strict=True
                    )
                )
            )
        raise TimedOut(f"not confirmed within {timeout_s:g} s: whether all were taken is not known")

    def _frame(
        self, values: Sequence[object], start: int, link: Link, about: MessageOptions
    ) -> tuple[list[bytes], Any]:
        """Payloads and properties of the values from here on, as many as one frame may have."""
        payloads: list[bytes] = []
        properties: list[dict[str, Any] | None] = []
        room_bytes = link.frame_max_bytes // 2  # topics and properties want some, too
        for value in values[start : start + link.batch_max]:
            _, payload, each = self.publication("", value, about)
            room_bytes -= len(payload)
            if payloads and (room_bytes < 0 or is_large(len(payloads) + 1, about)):
                break
            payloads.append(payload)
            properties.append(each)
        return payloads, column(properties)

    async def flush(self, timeout_s: float | None) -> None:
        """Wait until the node has read all that was sent. Raises `TimedOut`, `ConnectionLost`."""
        limit_s = self.settings.answer_timeout_s if timeout_s is None else timeout_s
        with anyio.move_on_after(limit_s):
            return await (await self.sending()).ping()
        raise TimedOut(f"the node did not answer within {limit_s:g} s")

    # -- its life ----------------------------------------------------------------------------------

    async def open(self) -> Link:
        """Connect for the first time; `run` is to be started then, with this link.

        Raises `Unreachable`, `Refused`, `ConnectionLost` or `AuthenticationFailed` when no address
        will do, after ``wait_for_node_s`` of trying.
        """
        give_up_s = anyio.current_time() + self.settings.wait_for_node_s
        attempt = 0
        while True:
            try:
                link = await self._connected(self.settings.addresses)
            except (Unreachable, ConnectionLost, TimedOut, Refused) as error:
                pause_s = self._pause_s(attempt)
                if self._is_final(error) or anyio.current_time() + pause_s >= give_up_s:
                    raise
                await anyio.sleep(pause_s)
                attempt += 1
            else:
                self._adopt(link)
                return link

    async def run(self, link: Link) -> None:
        """Keep a connection until `close`, or until the node refuses for good."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.run)
            while True:
                await self._attention.wait()
                self._attention = anyio.Event()
                if self.error is not None:
                    return  # the links end by themselves
                if self.link is None:
                    await self._connect_again(tasks)
                elif self._drain is not None:
                    await self._move(tasks, self.link, self._drain)

    async def close(self) -> None:
        """End everything that still waits, send what is to be sent, and say goodbye."""
        link = self.link
        self.fail(Closed("the mesh was closed"))
        if link is not None:
            await link.close(Closed("the mesh was closed"))

    def fail(self, error: ClientError) -> None:
        """There will be no more connections: everybody who waits is told."""
        if self.error is not None:
            return
        self.error = error
        self.link = None
        self._ready.set()
        self._attention.set()
        self.outbox.fail(error)
        for channel in list(self._channels):
            channel.fail(error)
        self._tell(StateChange("closed", reason=str(error)))

    async def _connect_again(self, tasks: TaskGroup) -> None:
        """A new connection in place of the lost one."""
        if not self.settings.reconnect or self._is_final(self._lost):
            self.fail(self._lost)
            return
        # One that is lost again at once is no reason to hurry.
        if anyio.current_time() - self._opened_s >= self.settings.backoff_max_s:
            self._attempts = 0
        while True:
            if self._attempts:
                await anyio.sleep(self._pause_s(self._attempts - 1))
            self._attempts += 1
            try:
                link = await self._connected((*self.settings.addresses, *self._known))
            except ClientError as error:
                self._lost = error
                if self.error is not None:
                    return
                if self._is_final(error):
                    self.fail(error)
                    return
                self._tell(StateChange("connecting", reason=str(error)))
            else:
                tasks.start_soon(link.run)
                if self.error is None:
                    self._adopt(link)
                else:  # the mesh was closed meanwhile
                    await link.close(self.error)
                return

    async def _move(self, tasks: TaskGroup, old: Link, drain: dict[str, Any]) -> None:
        """The node will stop: go to another one, if there is one, before it does."""
        self._drain = None
        deadline_s = anyio.current_time() + float(drain.get("within_s") or 0.0)
        told = _parsed(drain.get("addresses"), old.address)
        self._known = tuple(dict.fromkeys((*told, *self._known)))
        # Where we are comes last: behind a balancer, and with what comes after this node, it leads
        # to another one.
        others = sorted(
            (*self._known, *self.settings.addresses),
            key=lambda each: str(each) == str(old.address),
        )
        attempt = 0
        link: Link | None = None
        while link is None:
            try:
                link = await self._connected(others)
            except ClientError as error:
                if self._is_final(error) or await _ends(old, self._pause_s(attempt)):
                    return
                attempt += 1
        tasks.start_soon(link.run)
        await self._confirmed_by(old, link, (deadline_s - anyio.current_time()) / 2)
        if self.error is not None or link.error is not None:
            await link.close(Closed("another connection is used"))
            if not await _ends(old, self._pause_s(self._attempts)):
                self._attempts += 1
                self._drain = drain  # the new one was lost at once: again
                self._attention.set()
            return
        attachments = [each.at for each in self._channels if each.at is not None]
        for attachment in attachments:
            attachment.retire()
        old.retire()
        self._adopt(link)
        tasks.start_soon(self._retire, old, attachments, deadline_s)

    async def _confirmed_by(self, old: Link, new: Link, within_s: float) -> None:
        """Hold what is to be published until the old node has answered what it was sent."""
        self.outbox.hold()
        try:
            with anyio.move_on_after(max(within_s, _HOLD_S)):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(_cancel_at_end, waiting, new)
                    while self.outbox and old.error is None:
                        await old.progress()
                    waiting.cancel_scope.cancel()
        finally:
            self.outbox.release()

    async def _retire(self, old: Link, attachments: list[Attached], deadline_s: float) -> None:
        """Let go of a link that is not used for new things, when nothing is left on it."""
        left_s = deadline_s - anyio.current_time() - 1.0
        with anyio.move_on_after(max(left_s, 1.0)):
            while old.error is None and (old.calls or any(each.is_busy for each in attachments)):
                await old.progress()
        await old.close(ConnectionLost("the node stops, and this program has left it"))

    async def _connected(self, addresses: "tuple[NodeAddress, ...] | list[NodeAddress]") -> Link:
        """A link to the first address that will do. Raises the error of the last one."""
        error: ClientError | None = None
        for address in dict.fromkeys(addresses):
            try:
                return await self._link_to(address)
            except ClientError as problem:
                if error is None or isinstance(error, Unreachable):
                    error = problem  # that a node refused us is worth more than that none is there
        assert error is not None
        raise error

    async def _link_to(self, address: NodeAddress) -> Link:
        timeout_s = self.settings.connect_timeout_s
        with anyio.move_on_after(timeout_s):
            login = await self._login(address)
            options = await self._hello(address)
            while True:
                try:
                    return await Link.open(
                        address,
                        tls=self.settings.tls,
                        options=options,
                        ids=self._ids,
                        login=login,
                        ended=self._on_ended,
                    )
                except Refused as refused:
                    if login is None or not login.may_go_on(refused):
                        raise
        raise Unreachable(f"cannot connect to {address}: no answer in {timeout_s:g} s")

    async def _hello(self, address: NodeAddress) -> dict[str, Any]:
        settings = self.settings
        options: dict[str, Any] = {
            "keep_alive_s": settings.keep_alive_s,
            "producer": settings.producer,
        }
        if settings.client is not None:
            options["client"] = settings.client
        if settings.token is not None:
            options["token"] = await _current(settings.token, "token")
        elif settings.password is None and self._user(address) is not None:
            options["user"] = self._user(address)
        return options

    async def _login(self, address: NodeAddress) -> Login | None:
        """The password, if there is one; a login remembers in which way a node takes it."""
        user, secret = self._user(address), self.settings.password
        if user is None or secret is None:
            return None
        if not isinstance(secret, str):
            return Login(address, user, (await _current(secret, "password")).encode())
        login = self._logins.get(address)
        if login is None:
            login = self._logins[address] = Login(address, user, secret.encode())
        return login

    def _user(self, address: NodeAddress) -> str | None:
        return self.settings.user if self.settings.user is not None else address.user

    def _is_final(self, error: ClientError) -> bool:
        """Whether connecting again would only be refused again."""
        if not isinstance(error, Refused) or error.code not in _FINAL:
            return False
        # A function may give another secret the next time than the one that was refused.
        is_fresh = callable(self.settings.token) or callable(self.settings.password)
        return not (is_fresh and error.code == Code.NOT_AUTHENTICATED)

    def _pause_s(self, attempt: int) -> float:
        """Twice as long each time; half of it by chance, lest all clients come back at once."""
        settings = self.settings
        full_s: float = min(settings.backoff_s * 2.0 ** min(attempt, 16), settings.backoff_max_s)
        return full_s * (0.5 + os.urandom(1)[0] / 512)

    def _adopt(self, link: Link) -> None:
        """Use this link from now on."""
        self.link = link
        self._drain = None
        self._opened_s = anyio.current_time()
        link.on_message = self.plain.on_message
        link.on_drain = self._on_drain
        self._known = _parsed(link.greeting.get("addresses"), link.address)
        self.outbox.send_again(link)
        for channel in list(self._channels):
            channel.attach(link)
        self._tell(StateChange("open", address=str(link.address)))
        self._ready.set()

    def _on_drain(self, drain: dict[str, Any]) -> None:
        self._drain = drain
        self._attention.set()

    def _on_ended(self, link: Link, error: ClientError) -> None:
        if self.link is not link:
            return  # an old one that was retired, or the session is closed
        self.link = None
        self._lost = error
        self._ready = anyio.Event()
        self._attention.set()
        if self.error is None:
            self._tell(StateChange("connecting", reason=str(error)))

    def _tell(self, change: StateChange) -> None:
        if change == self.change:
            return
        self.change = change
        for watcher in list(self._watchers):
            try:
                watcher(change)
            except Exception:  # noqa: BLE001 - a mistake in there must not end the connection
                _log.exception("what watches the state failed at %s", change)


async def _ends(link: Link, within_s: float) -> bool:
    """Wait until this link has ended, at most so long; whether it has."""
    with anyio.move_on_after(within_s):
        while link.error is None:
            await link.progress()
    return link.error is not None


async def _cancel_at_end(tasks: TaskGroup, link: Link) -> None:
    await _ends(link, math.inf)
    tasks.cancel_scope.cancel()


def _parsed(urls: object, teller: NodeAddress) -> tuple[NodeAddress, ...]:
    """Addresses that a node told of; those that mean nothing to us are left out.

    We are there who we are here. What came encrypted never leads to where it is not: a token would
    go there in the clear.
    """
    found: list[NodeAddress] = []
    for url in cast("tuple[object, ...]", urls) if isinstance(urls, tuple) else ():
        if not isinstance(url, str):
            continue
        try:
            address = NodeAddress.parse(url)
        except ClientError:
            continue
        if address.is_tls or not teller.is_tls:
            found.append(replace(address, user=teller.user))
    return tuple(found)


async def _current(secret: Secret, what: str) -> str:
    """The secret as it is now. Raises `AuthenticationFailed` when a function does not give one."""
    if isinstance(secret, str):
        return secret
    try:
        found = secret()
        value = cast("object", found if isinstance(found, str) else await found)
    except Exception as error:
        raise AuthenticationFailed(
            f"the function that gives the {what} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, str):
        raise AuthenticationFailed(
            f"the function that gives the {what} gave {type(value).__name__}, and not str"
        )
    return value
