"""A broker inside your own program or test, without a daemon and without a configuration.

Under trio::

    async with ganglion.testing.broker() as broker:
        ...  # any MQTT client may connect to broker.host, broker.port

In any other program, asyncio and plain threads included::

    with ganglion.testing.broker_thread(users={"ada": "secret"}) as broker:
        ...

In pytest the fixture ``ganglion_broker`` gives a new broker to each test that names it,
``ganglion_mesh`` a synchronous client of it, and ``ganglion_connect`` connects asynchronous ones.
`expect` waits for a message, and says what came instead.

Each broker listens on a free port of 127.0.0.1, keeps everything in memory, and is ready when the
context is entered. Without users everything is allowed to everybody.

A broker needs ``pip install 'ganglion[broker]'``: where a client alone is installed, importing this
module raises `ganglion.BrokerNotInstalled`.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar, cast

from ganglion import BrokerNotInstalled, GanglionError

try:
    import trio

    from ganglion.broker.core.access import Access, Rule
    from ganglion.broker.core.authentication import Users
    from ganglion.broker.core.limits import Limits
    from ganglion.broker.core.queue_definition import QueueDefinition
    from ganglion.broker.core.refusals import Log
    from ganglion.broker.core.stream_definition import StreamDefinition
    from ganglion.broker.daemon.app import Broker
    from ganglion.broker.daemon.definitions import parse_queues, parse_streams
    from ganglion.broker.daemon.rules import parse_rules
    from ganglion.broker.net.addresses import Address
    from ganglion.expectations import AsyncExpectation, Expectation, expect
except ModuleNotFoundError as error:
    raise BrokerNotInstalled(error.name) from error

__all__ = [
    "AsyncExpectation",
    "Expectation",
    "InvalidOption",
    "RunningBroker",
    "broker",
    "broker_thread",
    "expect",
]

_T = TypeVar("_T")

_GROUPS = (BaseExceptionGroup, ExceptionGroup)  # they may carry a trio.Cancelled
_STOP_TIMEOUT_S = 10.0  # a broker in memory stops in milliseconds: past this something hangs


class InvalidOption(GanglionError):
    """An option of `broker` cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """Where a broker listens."""

    host: str
    """Its IP address, 127.0.0.1."""
    port: int
    """Its TCP port, for MQTT 3.1, 3.1.1 and 5.0."""
    native_port: int = 0
    """Its TCP port for the native protocol."""
    web_port: int | None = None
    """Its TCP port for HTTP and WebSocket; None unless `broker` was asked for one."""

    @property
    def url(self) -> str:
        """``mqtt://host:port``."""
        return f"mqtt://{self.host}:{self.port}"

    @property
    def native_url(self) -> str:
        """``ganglion://host:port``."""
        return f"ganglion://{self.host}:{self.native_port}"

    @property
    def web_url(self) -> str:
        """``http://host:port``; MQTT over WebSocket is at its path ``/mqtt``."""
        assert self.web_port is not None, "this broker has no web listener: broker(web=True)"
        return f"http://{self.host}:{self.web_port}"


class broker:  # noqa: N801 - used as a function: `async with ganglion.testing.broker() as ...`
    """An asynchronous context manager that runs a broker under trio.

    An exception in the body leaves the context as it is, not in an exception group.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        rules: Iterable[Rule | Mapping[str, object]] = (),
        anonymous: bool = False,
        limits: Limits | Mapping[str, float] | None = None,
        queues: Iterable[QueueDefinition | Mapping[str, object]] = (),
        streams: Iterable[StreamDefinition | Mapping[str, object]] = (),
        sys_interval_s: float = 0.0,
        web: bool = False,
        log: Log | None = None,
    ) -> None:
        """Choose how the broker is.

        ``users`` are names and passwords: once there are any, nothing is allowed but by
        ``rules``, which are `Rule` objects or mappings with their fields. ``anonymous`` lets
        clients without a user name in beside users. Passwords work, SCRAM does not (its keys are
        made by ``ganglion passwd``). ``limits`` are `Limits`, or the values of those
        that differ from the defaults. ``queues`` and ``streams`` are definitions, or mappings with
        their fields, of what there is from the start. ``sys_interval_s`` is how often ``$SYS``
        topics are published in seconds, 0 for never. With ``web`` there is a web listener, too.
        ``log`` is a structlog logger or alike; without one the broker is silent. Raises
        `InvalidOption`.
        """
        exist = bool(users)
        defined_queues = _parsed("queue", queues, QueueDefinition, parse_queues)
        defined_streams = _parsed("stream", streams, StreamDefinition, parse_streams)
        parsed_rules = _parsed("rule", rules, Rule, parse_rules)
        access = Access(parsed_rules, users_exist=exist, anonymous=anonymous or not exist)
        self._broker = Broker(
            log=_Silent() if log is None else log,
            limits=_limits(limits),
            access=access,
            users=_users(users or {}),
            sys_interval_s=sys_interval_s,
        )
        if wrong := self._broker.define([*defined_queues, *defined_streams]):
            self._broker.close()
            raise InvalidOption("; ".join(wrong))
        self._web = web
        self._nursery = trio.open_nursery()
        self._scope = trio.CancelScope()

    async def __aenter__(self) -> RunningBroker:
        """Start; the broker accepts connections when this returns."""
        address = self._broker.listen("mqtt", Address("127.0.0.1", 0))
        native_port = self._broker.listen("native", Address("127.0.0.1", 0)).port
        web_port = None
        if self._web:
            web_port = self._broker.listen("web", Address("127.0.0.1", 0)).port
        nursery = await self._nursery.__aenter__()
        self._scope = nursery.cancel_scope
        nursery.start_soon(self._broker.run)
        return RunningBroker(address.host, address.port, native_port, web_port)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop; connections that are left are closed."""
        self._scope.cancel()
        try:
            if isinstance(error, trio.Cancelled) or type(error) in _GROUPS:
                return await self._nursery.__aexit__(kind, error, traceback)
            await self._nursery.__aexit__(None, None, None)
            return None
        finally:
            self._broker.close()


@contextmanager
def broker_thread(**options: Any) -> Generator[RunningBroker, None, None]:
    """A context manager that runs a broker in a thread of its own.

    ``options`` are those of `broker`. Raises `InvalidOption`, and whatever stopped the broker
    before its time when the context is left.
    """
    running: list[RunningBroker] = []
    stop: list[trio.CancelScope] = []
    errors: list[BaseException] = []
    token: list[trio.lowlevel.TrioToken] = []
    started = threading.Event()

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with broker(**options) as address:
                token.append(trio.lowlevel.current_trio_token())
                stop.append(scope)
                running.append(address)
                started.set()
                await trio.sleep_forever()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that uses the context
            errors.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="ganglion-broker", daemon=True)
    thread.start()
    started.wait()
    try:
        if running:
            yield running[0]
    finally:
        if running:
            with suppress(trio.RunFinishedError):  # it ended by itself: errors has the reason
                token[0].run_sync_soon(stop[0].cancel)
        thread.join(_STOP_TIMEOUT_S)
    if errors:
        raise errors[0]


class _Silent:
    def debug(self, event: str, /, **details: Any) -> None:
        pass

    def info(self, event: str, /, **details: Any) -> None:
        pass

    def warning(self, event: str, /, **details: Any) -> None:
        pass


def _parsed(
    what: str,
    given: Iterable[_T | Mapping[str, object]],
    kind: type[_T],
    parse: Callable[[Iterable[Mapping[str, object]]], tuple[list[_T], list[tuple[str, str]]]],
) -> list[_T]:
    """Objects, and mappings with the fields of such objects."""
    made: list[_T] = []
    for number, each in enumerate(given, 1):
        if isinstance(each, kind):
            made.append(each)
            continue
        parsed, wrong = parse([cast("Mapping[str, object]", each)])
        if wrong:
            words = "; ".join(f"{key.partition('.')[2]} {text}".strip() for key, text in wrong)
            raise InvalidOption(f"{what} {number}: {words}")
        made += parsed
    return made


def _users(passwords: Mapping[str, str]) -> Users:
    """Users whose hashes cost next to nothing: a test's passwords protect nothing."""
    if not passwords:
        return Users()
    from argon2 import PasswordHasher  # noqa: PLC0415 - 50 ms that only tests with users pay

    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    lines = [f"{name}:{hasher.hash(password)}" for name, password in passwords.items()]
    return Users.parse("\n".join(lines), "users")


def _limits(limits: Limits | Mapping[str, float] | None) -> Limits:
    if isinstance(limits, Limits):
        return limits
    values: dict[str, Any] = dict(limits or {})
    try:
        return Limits(**values)
    except TypeError:
        known = Limits.__dataclass_fields__
        unknown = ", ".join(name for name in values if name not in known)
        raise InvalidOption(f"there is no limit {unknown}") from None
