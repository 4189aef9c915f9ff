"""A node and native clients on fake links: no sockets, a virtual clock, no sleeping.

`NativeLink` has the node and the clock of an MQTT `Link`, so that clients of both protocols meet on
it. `NativeClient` is scripted: it says what the test tells it to, in frames or bytes, and keeps
what came back. Its decoder is msgpack's own (or json's), not the project's.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from ganglion.broker.core.access import Access
from ganglion.broker.core.authentication import Mechanism, PasswordCheck
from ganglion.broker.core.limits import Limits
from ganglion.broker.store import Store
from ganglion.protocols.native.connection import NativeConnection
from ganglion.protocols.native.operations import Operation as Op
from ganglion.protocols.native.server import NativeServer, NativeSettings
from tests.protocols.mqtt.fake_link import FakeEndpoint, FakeTls, Link

__all__ = ["NativeClient", "NativeLink"]


class NativeClient:
    """A scripted client and its connection."""

    def __init__(self, link: "NativeLink", endpoint: FakeEndpoint, *, is_json: bool) -> None:
        self.link = link
        self.endpoint = endpoint
        self.is_json = is_json
        self.connection = NativeConnection(link.server, is_json=is_json)
        self.is_gone = False
        self._next_id = 0
        self._frames: list[list[Any]] = []
        self._unsent: list[bytes] = []
        self.connection.connected(endpoint, link.now)

    # -- sending ---------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        """Send these bytes as one chunk and let a tick pass."""
        self._unsent.append(data)
        self.link.tick()

    def send(self, *frames: list[Any]) -> None:
        """Send these frames as one chunk and let a tick pass."""
        if self.is_json:
            self.send_bytes(b"\n".join(json.dumps(frame).encode() for frame in frames))
        else:
            self.send_bytes(b"".join(msgpack.packb(frame) for frame in frames))

    def ask(self, operation: int, *arguments: Any) -> int:
        """Send a request; its id. Nothing is awaited."""
        self._next_id += 1
        self.send([operation, self._next_id, *arguments])
        return self._next_id

    def call(self, operation: int, *arguments: Any) -> Any:
        """Send a request that succeeds: the result."""
        number = self.ask(operation, *arguments)
        answer = self.answer(number)
        assert answer[0] == Op.OK, answer
        return answer[2] if len(answer) > 2 else None

    def refused(self, operation: int, *arguments: Any) -> str:
        """Send a request that is refused: the code."""
        answer = self.answer(self.ask(operation, *arguments))
        assert answer[0] == Op.ERROR, answer
        assert answer[3]
        code: str = answer[2]
        return code

    def opened(self, operation: int, *arguments: Any) -> int:
        """Send a request that opens a channel: its number."""
        number = self.ask(operation, *arguments)
        answer = self.answer(number)
        assert answer[0] == Op.OK, answer
        return number

    def publish(self, topic: str, payload: bytes, properties: dict[str, Any] | None = None) -> Any:
        """Publish with confirmation: the counts."""
        number = self.ask(Op.PUBLISH, topic, payload, properties)
        for index, frame in enumerate(self.frames()):
            if frame[0] == Op.CONFIRMED and frame[1] <= number <= frame[2]:
                del self._frames[index]
                return frame[3:]
        raise AssertionError(f"not confirmed: {self._frames}")

    def hello(self, **options: Any) -> dict[str, Any]:
        """Connect: the greeting."""
        options.setdefault("keep_alive_s", 0)
        greeting: dict[str, Any] = self.call(Op.HELLO, 1, options)
        return greeting

    # -- receiving -------------------------------------------------------------------------------

    def frames(self) -> list[list[Any]]:
        """What came and was not taken, left there."""
        data = bytes(self.endpoint.output)
        self.endpoint.output.clear()
        if self.is_json:
            self._frames += [json.loads(line) for line in data.splitlines()]
        else:
            unpacker = msgpack.Unpacker()
            unpacker.feed(data)
            self._frames += list(unpacker)
        return self._frames

    def take(self) -> list[list[Any]]:
        """Take what came."""
        frames = self.frames()
        self._frames = []
        return frames

    def answer(self, number: int) -> list[Any]:
        """Take the answer to a request; it must have come. The rest stays."""
        for index, frame in enumerate(self.frames()):
            if frame[0] in (Op.OK, Op.ERROR) and frame[1] == number:
                del self._frames[index]
                return frame
        raise AssertionError(f"no answer to {number}: {self._frames}")

    def goodbye(self) -> str:
        """The connection was closed by the node: the code of its last frame, an error."""
        frames = self.take()
        assert frames, "nothing came"
        assert frames[-1][:2] == [Op.ERROR, 0], frames
        assert self.is_gone
        code: str = frames[-1][2]
        return code

    def cut(self) -> None:
        """The network connection is gone, without a word."""
        self._unsent.clear()
        if not self.is_gone:
            self.is_gone = True
            self.connection.lost("the connection broke")
        self.link.tick()

    def relieve(self) -> None:
        """The client reads again: the endpoint is not congested any more."""
        self.endpoint.congested = False
        self.connection.writable()
        self.link.tick()

    # -- the link --------------------------------------------------------------------------------

    def deliver(self) -> bool:
        """Give the node what was sent, unless it does not read; whether anything was given."""
        if not self._unsent or self.endpoint.paused or self.is_gone or self.endpoint.closing:
            return False
        self.connection.receive(self._unsent.pop(0), self.link.now)
        return True

    def finish(self) -> bool:
        """Tell the protocol that the connection which it closed is gone."""
        if self.endpoint.closing is None or self.is_gone or self.endpoint.stuck:
            return False
        self.is_gone = True
        self.connection.lost(self.endpoint.closing)
        return True


class NativeLink:
    """A node, its clock, its store, and clients of both protocols."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        access: Access | None = None,
        settings: NativeSettings | None = None,
        authenticator: PasswordCheck | None = None,
        mechanisms: Mapping[str, Callable[[], Mechanism]] | None = None,
        store: Store | None = None,
        mqtt: Link | None = None,
    ) -> None:
        self.mqtt = mqtt or Link(limits=limits, access=access, store=store)
        """The same node for MQTT clients; its ticks are not ours."""
        self.node = self.mqtt.node
        self.server = NativeServer(
            self.node, settings, authenticator=authenticator, mechanisms=mechanisms
        )
        self.clients: list[NativeClient] = []

    @property
    def now(self) -> float:
        """What the virtual clock shows, in seconds."""
        return self.mqtt.now

    def open(
        self,
        *,
        is_json: bool = False,
        peer: str = "127.0.0.1",
        certificate: str | None = None,
    ) -> NativeClient:
        """A connection on which nothing was said yet."""
        tls = FakeTls(certificate) if certificate is not None else None
        client = NativeClient(self, FakeEndpoint(peer, tls), is_json=is_json)
        self.clients.append(client)
        return client

    def connect(self, client: str = "", **options: Any) -> NativeClient:
        """A client that has been greeted."""
        opened = self.open(is_json=options.pop("is_json", False))
        if client:
            options["client"] = client
        opened.hello(**options)
        return opened

    def tick(self) -> None:
        """Handle what clients have sent, commit, and end what was closed, until all is quiet."""
        busy = True
        while busy:
            busy = sum([client.deliver() for client in self.clients]) > 0
            self.mqtt.tick()
            busy = sum([client.finish() for client in self.clients]) > 0 or busy
        self.clients = [each for each in self.clients if not each.is_gone]

    def advance(self, seconds: float) -> None:
        """Let so much time pass; every timer runs at its own time, and a tick ends after it."""
        timers = self.mqtt.timers
        until = self.now + seconds
        while (deadline := timers.next_deadline()) is not None and deadline <= until:
            timers.run(max(deadline, self.now))
            self.tick()
        timers.run(until)
        self.tick()

    def restart(self) -> "NativeLink":
        """The node is gone from one moment to the next; a new one on what had been committed."""
        return NativeLink(mqtt=self.mqtt.restart(), settings=self.server.settings)
