"""The composition root: a broker put together from its parts, and the life of its process.

`Broker` joins the node, the reactor, the protocols and the authenticator; ``ganglion.testing``
embeds it as it is. `run` is ``ganglion serve``: it adds a configuration, a log, signals and the
service manager.
"""

import errno
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

import trio

from ganglion import GanglionError, __version__
from ganglion.broker.core.access import Access
from ganglion.broker.core.authentication import Users
from ganglion.broker.core.limits import Limits
from ganglion.broker.core.node import Node
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.refusals import Log
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.core.timers import Timers
from ganglion.broker.daemon.authenticator import Authenticator
from ganglion.broker.daemon.banner import banner, who_may_connect
from ganglion.broker.daemon.config import (
    Configuration,
    ConfigurationError,
    Listener,
    Problem,
)
from ganglion.broker.daemon.logs import Logger, Logs
from ganglion.broker.daemon.materials import Materials, open_materials
from ganglion.broker.daemon.notify import Notifier
from ganglion.broker.daemon.settings import TLS_SCHEMES
from ganglion.broker.daemon.web import WebSettings, make_web
from ganglion.broker.net import Carrier, Protocol
from ganglion.broker.net.addresses import Address, Networks
from ganglion.broker.net.listener import CannotListen
from ganglion.broker.net.reactor import LINGER_S, Reactor
from ganglion.broker.net.tls import TlsContext
from ganglion.broker.store import Damage, Store
from ganglion.broker.store.memory import MemoryStore
from ganglion.protocols.http.connection import HttpConnection
from ganglion.protocols.mqtt.connection import MqttConnection
from ganglion.protocols.mqtt.server import MqttServer, MqttSettings
from ganglion.protocols.native.connection import NativeConnection
from ganglion.protocols.native.server import NativeServer, NativeSettings

__all__ = ["Broker", "InCore", "NodeFailed", "run"]

InCore: TypeAlias = Callable[[Callable[[], None]], None]
"""Takes a call from any thread and has it made in the thread of the node."""

_SAME_WISH_S = 0.3
_DESCRIPTORS_BESIDE_CONNECTIONS = 64  # listeners, files of the store, pollers, the log
_COLLECT_AFTER = 50_000  # objects more than were freed, at 100 bytes or so each: a few megabytes


class NodeFailed(GanglionError):
    """A fault in our own code stopped the node; the log has its traceback."""


class Broker:
    """A node that can be reached: the core, the reactor and the protocols in between."""

    def __init__(
        self,
        *,
        log: Log,
        name: str = "ganglion",
        limits: Limits | None = None,
        access: Access | None = None,
        users: Users | None = None,
        token_key: bytes | None = None,
        mqtt: MqttSettings | None = None,
        native: NativeSettings | None = None,
        web: WebSettings | None = None,
        trusted: Networks | None = None,
        sys_interval_s: float = 10.0,
        linger_s: float = 0.0,
        open_store: Callable[[InCore], Store] | None = None,
    ) -> None:
        """Put the parts together; nothing listens yet.

        Without ``access`` everything is allowed to everybody. ``sys_interval_s`` is how often
        ``$SYS`` topics are published in seconds, 0 for never. ``linger_s``: see `Reactor`.
        ``trusted`` proxies may say whom they speak for. ``open_store`` opens the store, given what
        makes a call from any thread in the node's next tick; without it everything is kept in
        memory.
        """
        limits = Limits() if limits is None else limits
        access = Access.open() if access is None else access
        now = time.monotonic()
        wall_clock_offset_s = time.time() - now
        timers = Timers(now)
        self._store = MemoryStore() if open_store is None else open_store(self.in_next_tick)
        self.node = Node(
            limits=limits,
            access=access,
            store=self._store,
            timers=timers,
            log=log,
            name=name,
            version=__version__,
            sys_interval_s=sys_interval_s,
            wall_clock_offset_s=wall_clock_offset_s,
        )
        self.reactor = Reactor(
            timers, limits, self.node.statistics, log, self.node.flush, linger_s=linger_s
        )
        self.authenticator = Authenticator(
            Users() if users is None else users,
            users_exist=access.users_exist,
            log=log,
            in_next_tick=self.in_next_tick,
            token_key=token_key,
        )
        self._mqtt = MqttServer(self.node, mqtt)
        self._native = NativeServer(self.node, native, software=f"ganglion/{__version__}")
        self._connect_authenticator()
        self._trusted = Networks() if trusted is None else trusted
        self._web = make_web(
            self.node,
            self.reactor,
            self._store,
            WebSettings() if web is None else web,
            make_mqtt=self._mqtt_in_websocket,
            native=self._native,
            reasons=self.not_ready,
            trusted=self._trusted,
            wall_clock_offset_s=wall_clock_offset_s,
        )
        self._is_draining = False
        self._make: dict[str, Callable[[], Protocol | Carrier]] = {
            "mqtt": self._mqtt_connection,
            "native": self._native_connection,
            "web": self._http_connection,
        }
        self.listening: list[tuple[str, Address]] = []
        """What listens where: scheme and actual address, with the chosen port instead of 0."""

    def listen(
        self,
        scheme: str,
        address: Address,
        tls: TlsContext | None = None,
        *,
        proxied: bool = False,
    ) -> Address:
        """Listen for ``scheme``, a key of `DEFAULT_PORTS`; the actual address.

        Those of `TLS_SCHEMES` need ``tls``. For ``proxied`` see `Reactor.listen`. Raises
        `CannotListen`.
        """
        make = self._make[scheme.removesuffix("s") if scheme in TLS_SCHEMES else scheme]
        listener = self.reactor.listen(
            address, make, tls=tls, trusted=self._trusted, proxied=proxied, name=scheme
        )
        self.listening.append((scheme, listener.address))
        return listener.address

    def _mqtt_connection(self) -> MqttConnection:
        return MqttConnection(self._mqtt)

    def _mqtt_in_websocket(self) -> MqttConnection:
        return MqttConnection(self._mqtt, is_web=True)

    def _native_connection(self) -> NativeConnection:
        return NativeConnection(self._native)

    def _http_connection(self) -> HttpConnection:
        return HttpConnection(self._web)

    def not_ready(self) -> list[str]:
        """Why no clients should be sent here now, one sentence each; empty when they may be."""
        reasons: list[str] = []
        if self._is_draining:
            reasons.append("the node stops")
        if self.node.is_full:
            reasons.append("the disk is full: durable messages are refused")
        return reasons

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.authenticator.run)
            await self.reactor.run()

    def in_next_tick(self, call: Callable[[], None]) -> None:
        """Have ``call`` made in the next tick of the reactor, at once, from whatever thread.

        There the node's clock is right, what is recorded is committed, and what is written sent.
        """
        self.reactor.call_soon(call)

    def define(self, definitions: Iterable[QueueDefinition | StreamDefinition]) -> list[str]:
        """Let these queues and streams be there, and be as they say; what others there are stay.

        Why that cannot be, one sentence each, of those that cannot: they stay as they are. Before
        `run`, or in its thread.
        """
        return self.node.sources.define(definitions)

    async def reload(
        self,
        *,
        limits: Limits,
        access: Access,
        users: Users,
        token_key: bytes | None = None,
        definitions: Iterable[QueueDefinition | StreamDefinition] = (),
    ) -> list[str]:
        """Let these limits, rules and users act at once, also on what is connected already.

        ``definitions`` and what is returned are as in `define`.
        """
        wrong: list[str] = []

        def take_over() -> None:
            self.authenticator.replace(users, users_exist=access.users_exist, token_key=token_key)
            self._connect_authenticator()
            self.reactor.set_limits(limits)
            self.node.reload(
                limits=limits, access=access, users=users if access.users_exist else None
            )
            wrong.extend(self.define(definitions))

        await self._in_tick(take_over)
        return wrong

    async def drain(self) -> bool:
        """Stop listening, say goodbye to every client, and wait (a bounded time) until all have it.

        Whether every connection ended in time and all is durable: on a full disk a commit may wait
        for room, but nobody was told of it. `run` has to be running.
        """
        self._is_draining = True
        self.reactor.stop_listening()
        await self._in_tick(self._say_goodbye)
        complete = await self.reactor.drain(self.node.limits.drain_timeout_s)
        durable = trio.Event()
        await self._in_tick(lambda: self.node.journal.commits.after_commit(durable.set))
        with trio.move_on_after(self.node.limits.drain_timeout_s):
            await durable.wait()
        return complete and durable.is_set()

    def _say_goodbye(self) -> None:
        self.node.drain()
        self._web.drain()

    async def _in_tick(self, call: Callable[[], None]) -> None:
        done = trio.Event()

        def call_and_tell() -> None:
            call()
            done.set()

        self.in_next_tick(call_and_tell)
        await done.wait()

    def _connect_authenticator(self) -> None:
        """Ask for passwords while users exist: a name that nobody can verify says nothing."""
        exist = self.authenticator.users_exist
        for server in (self._mqtt, self._native):
            server.authenticator = self.authenticator if exist else None
            server.mechanisms = self.authenticator.mechanisms()
        self._native.tokens = self.authenticator.user_of_token if exist else None

    def close(self) -> None:
        """Let go of everything: sockets, timers, the store."""
        self.node.close()
        self._store.close()
        self.reactor.close()


def run(load: Callable[[], Configuration]) -> None:
    """Run a broker with the configuration that ``load`` gives, until a signal says stop.

    SIGHUP calls ``load`` again. Raises `ConfigurationError` and `CannotListen` before anything is
    served, and `NodeFailed` when it cannot go on.
    """
    configuration = load()
    materials = open_materials(configuration)
    _prepare_data_directory(configuration)
    logs = Logs(sys.stderr, level=configuration.log_level, form=configuration.log_format)
    _raise_descriptor_limit(configuration.limits, logs.logger)
    broker = Broker(
        log=logs.logger,
        name=configuration.node_name,
        limits=configuration.limits,
        access=materials.access,
        users=materials.users,
        token_key=materials.token_key,
        mqtt=MqttSettings(
            certificate_is_user=_certificate_is_user(configuration), **configuration.mqtt
        ),
        native=NativeSettings(
            certificate_is_user=_certificate_is_user(configuration),
            addresses=configuration.native_addresses,
        ),
        web=WebSettings(origins=configuration.origins, compression=configuration.compression),
        trusted=Networks(configuration.trusted),
        sys_interval_s=configuration.sys_interval_s,
        linger_s=LINGER_S,
        open_store=lambda in_core: _open_store(configuration, logs.logger, in_core),
    )
    try:
        for listener in configuration.listeners:
            proxied = listener.scheme in configuration.proxied
            _listen(broker, listener, materials, proxied=proxied)
        _say_undefined(broker.define(_definitions(configuration)), logs.logger)
        _spare_the_garbage_collector()
        _run_service(_Service(broker, configuration, materials, logs, load), logs)
    finally:
        broker.close()


def _spare_the_garbage_collector() -> None:
    """Have it look less often for what is hardly ever there: cycles.

    Every message makes a few tuples, and with Python's defaults the collector ran for each few
    hundred messages and took a quarter of the time of a busy queue.
    """
    gc.freeze()  # what is there now stays
    gc.set_threshold(_COLLECT_AFTER, 20, 100)


def _run_service(service: "_Service", logs: Logs) -> None:
    try:
        trio.run(service.run)
    except Exception as error:
        logs.logger.error("internal error: the node stops", exc_info=error)
        raise NodeFailed(
            "the node stopped because of an internal error; please report it"
        ) from None


class _Service:
    """The broker as a process: what it says when it is ready, and what signals do."""

    def __init__(
        self,
        broker: Broker,
        configuration: Configuration,
        materials: Materials,
        logs: Logs,
        load: Callable[[], Configuration],
    ) -> None:
        self._broker = broker
        self._configuration = configuration
        self._materials = materials
        self._logs = logs
        self._load = load
        self._notifier = Notifier()

    async def run(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._broker.run)
                self._say_ready()
                async for number in signals:
                    if number != signal.SIGHUP:
                        break
                    await self._reload()
                began = time.monotonic()
                nursery.start_soon(self._stop, nursery.cancel_scope)
                async for number in signals:
                    # A second one later on: whoever waits has lost patience. Nearly at once it is
                    # the same wish again: timeout(1), for one, signals process and group.
                    if number != signal.SIGHUP and time.monotonic() - began > _SAME_WISH_S:
                        self._logs.logger.warning("stopped at once", signal=_name(number))
                        nursery.cancel_scope.cancel()

    def _say_ready(self) -> None:
        configuration, log = self._configuration, self._logs.logger
        user_count = len(self._materials.users)
        access = who_may_connect(configuration, user_count)
        if self._logs.human:
            self._logs.write(banner(configuration, self._broker.listening, user_count))
        else:
            for scheme, address in self._broker.listening:
                log.info("listening", listener=scheme, address=str(address))
            if not configuration.has_users:
                log.warning("no users are configured", access=access)
            log.info(
                "ready",
                version=__version__,
                node=configuration.node_name,
                data=str(configuration.data_directory),
                access=access,
                pid=os.getpid(),
            )
        self._notifier.ready(f"{len(self._broker.listening)} listeners; {access}")

    async def _stop(self, scope: trio.CancelScope) -> None:
        log = self._logs.logger
        self._notifier.stopping()
        log.info("draining", connections=self._broker.reactor.connection_count)
        began = time.monotonic()
        complete = await self._broker.drain()
        log.info("stopped", complete=complete, seconds=round(time.monotonic() - began, 3))
        scope.cancel()

    async def _reload(self) -> None:
        self._notifier.reloading(time.monotonic())
        try:
            # In a thread: reading a large users file must not hold up the node.
            configuration, materials = await trio.to_thread.run_sync(self._read_again)
        except ConfigurationError as error:
            self._refuse_reload(error)
        else:
            await self._take_over(configuration, materials)
        access = who_may_connect(self._configuration, len(self._materials.users))
        self._notifier.ready(f"{len(self._broker.listening)} listeners; {access}")

    def _refuse_reload(self, error: ConfigurationError) -> None:
        log = self._logs.logger
        for problem in error.problems:
            log.error("configuration not accepted", problem=str(problem))
        log.error("reload refused", advice="the configuration from before stays in force")

    def _read_again(self) -> tuple[Configuration, Materials]:
        configuration = self._load()
        return configuration, open_materials(configuration)

    async def _take_over(self, configuration: Configuration, materials: Materials) -> None:
        log = self._logs.logger
        if keys := self._configuration.changed_beside_reload(configuration):
            log.warning("not changed by a reload", keys=keys, advice="restart to change them")
        if materials.tls is not None and self._materials.tls is not None:
            self._materials.tls.context = materials.tls.context
        self._logs.set_level(configuration.log_level)
        wrong = await self._broker.reload(
            limits=configuration.limits,
            access=materials.access,
            users=materials.users,
            token_key=materials.token_key,
            definitions=_definitions(configuration),
        )
        _say_undefined(wrong, log)
        named = {_title(each) for each in _definitions(configuration)}
        if left := {_title(each) for each in _definitions(self._configuration)} - named:
            log.warning("not in the configuration any more, and kept", kept=sorted(left))
        self._configuration = configuration
        self._materials = Materials(
            materials.users,
            materials.access,
            self._materials.tls or materials.tls,
            materials.token_key,
        )
        access = who_may_connect(configuration, len(materials.users))
        log.info(
            "reloaded", users=len(materials.users), rules=len(configuration.rules), access=access
        )


def _definitions(configuration: Configuration) -> list[QueueDefinition | StreamDefinition]:
    return [*configuration.queues, *configuration.streams]


def _title(definition: QueueDefinition | StreamDefinition) -> str:
    what = "queue" if isinstance(definition, QueueDefinition) else "stream"
    return f"{what} {definition.name}"


def _say_undefined(wrong: list[str], log: Logger) -> None:
    for problem in wrong:
        log.error("kept as it was", problem=problem)


def _certificate_is_user(configuration: Configuration) -> bool:
    return configuration.tls is not None and configuration.tls.use_certificate_as_user


def _listen(broker: Broker, listener: Listener, materials: Materials, *, proxied: bool) -> None:
    tls = materials.tls if listener.scheme in TLS_SCHEMES else None
    try:
        broker.listen(listener.scheme, listener.address, tls, proxied=proxied)
    except CannotListen as error:
        cause = error.__cause__
        lacking = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if not (listener.optional and isinstance(cause, OSError) and cause.errno in lacking):
            raise


def _open_store(configuration: Configuration, log: Logger, in_core: InCore) -> Store:
    from ganglion.broker.store.rocksdb import RocksStore  # noqa: PLC0415  only a daemon needs it

    def end(message: str) -> None:
        log.error("the store failed", problem=message, advice="see docs/durability.md")
        sys.stderr.flush()
        os._exit(os.EX_IOERR)  # in the storage thread: nothing may be acknowledged any more

    def say_damage(damage: Damage) -> None:
        if damage.kind is None:  # nothing that anybody was told of: any kill may leave that
            log.warning("mended the store", problem=damage.what)
        else:
            kind = damage.kind.name.lower()
            log.error("damaged record", kind=kind, key=repr(damage.key), problem=damage.what)

    def say_full(is_full: bool) -> None:
        if is_full:
            log.error("the disk is full", advice="make room; durable messages wait until then")
        else:
            log.info("the disk has room again")

    return RocksStore(
        configuration.data_directory / "store",
        in_core=in_core,
        fatal=end,
        report=say_damage,
        full_changed=say_full,
    )


def _prepare_data_directory(configuration: Configuration) -> None:
    directory = configuration.data_directory
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = None if os.access(directory, os.W_OK | os.X_OK) else "it is not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        source = configuration.sources["data.directory"]
        rule = f"is {directory}, which cannot be used: {problem}"
        raise ConfigurationError([Problem(source, "data.directory", rule)])


def _raise_descriptor_limit(limits: Limits, log: Log) -> None:
    """Allow this process as many open files as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections_max + _DESCRIPTORS_BESIDE_CONNECTIONS
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, wanted)
    if soft < hard:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
    if hard < wanted:
        log.debug(
            "fewer open files than connections",
            files_max=hard,
            connections_max=limits.connections_max,
            advice="raise LimitNOFILE or ulimit -Hn for more connections at once",
        )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
