"""The native protocol as a client sees it: over TCP, TLS and WebSocket, to a running broker.

The client here was written from docs/protocol.md and uses nothing of the project.
"""

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trustme
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request, TextMessage

import ganglion.testing
from ganglion.broker.daemon.app import Broker
from ganglion.broker.net.addresses import Address
from ganglion.broker.net.tls import TlsContext
from tests.protocols.mqtt.fake_link import RecordingLog

WAIT_S = 5


OPEN: list[trio.SocketStream] = []


async def open_stream(host: str, port: int) -> trio.SocketStream:
    """A connection that is closed when the test is over."""
    stream = await trio.open_tcp_stream(host, port)
    OPEN.append(stream)
    return stream


@pytest.fixture(autouse=True)
async def close_streams() -> AsyncIterator[None]:
    """Close what a test has opened."""
    yield
    while OPEN:
        await trio.aclose_forcefully(OPEN.pop())


class Client:
    """Reads and writes frames of MessagePack on a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.unpacker = msgpack.Unpacker()

    async def send(self, *frames: list[Any]) -> None:
        """Send these frames together."""
        await self.stream.send_all(b"".join(msgpack.packb(frame) for frame in frames))

    async def next(self) -> list[Any]:
        """The next frame."""
        with trio.fail_after(WAIT_S):
            while True:
                for frame in self.unpacker:
                    return list(frame)
                data = await self.stream.receive_some()
                assert data, "the node closed the connection"
                self.unpacker.feed(data)

    async def ends(self) -> list[list[Any]]:
        """What comes until the node closes."""
        found: list[list[Any]] = []
        with trio.fail_after(WAIT_S):
            while data := await self.stream.receive_some():
                self.unpacker.feed(data)
                found += list(self.unpacker)
        return found


async def connect(broker: ganglion.testing.RunningBroker, **options: Any) -> Client:
    """A client that has been greeted."""
    client = Client(await open_stream(broker.host, broker.native_port))
    await client.send([32, 1, 1, options])
    answer = await client.next()
    assert answer[:2] == [11, 1], answer
    return client


async def test_publish_and_subscribe() -> None:
    """A hundred messages, confirmed and not, arrive in order."""
    async with ganglion.testing.broker() as broker:
        one, two = await connect(broker), await connect(broker, client="two")
        await two.send([35, 2, "a/+"])
        assert await two.next() == [11, 2, {"retained": 0}]
        for number in range(50):
            await one.send([1, "a/x", b"%d" % number], [33, 10 + number, "a/y", b"%d" % number])
        for number in range(50):
            assert await two.next() == [1, "a/x", b"%d" % number]
            assert await two.next() == [1, "a/y", b"%d" % number]
        last = 0
        while last < 59:
            operation, first, last, *counts = await one.next()
            assert (operation, counts) == (13, [1, 0, 0])
            assert first >= 10


async def test_a_queue_a_stream_and_a_request() -> None:
    """Each goes its way over a socket."""
    async with ganglion.testing.broker() as broker:
        client = await connect(broker)
        await client.send([40, 2, "jobs", {"credit": 2, "declare": True}])
        assert await client.next() == [11, 2, {"queue": "jobs"}]
        await client.send([33, 3, "$queue/jobs", b"work"])
        frames = [await client.next() for _ in range(2)]
        assert [13, 3, 3, 0, 1, 0] in frames
        jobs = next(frame for frame in frames if frame[0] == 3)
        assert jobs[1:] == [2, [[1, "$queue/jobs", b"work"]]]
        await client.send([41, 4, 2, 1])
        assert await client.next() == [11, 4, {"settled": 1, "gone": 0}]

        await client.send([61, 5, "log", [b"a", b"b"], None, {"declare": True}])
        assert await client.next() == [11, 5, {"first": 1, "last": 2}]
        await client.send([63, 6, "log", {"after": 0}])
        assert (await client.next())[:2] == [11, 6]
        records = await client.next()
        assert records[:3] == [4, 6, 1]
        assert records[5] == [b"a", b"b"]

        server = await connect(broker)
        await server.send([82, 2, "sum"])
        assert await server.next() == [11, 2]
        await client.send([80, 7, "sum", b"1+1"])
        _, _, call, _, payload, _ = await server.next()
        assert payload == b"1+1"
        await server.send([83, 0, 2, call, b"2"])
        assert await client.next() == [6, 7, b"2"]


async def test_passwords() -> None:
    """The right one is let in, the wrong one told and closed."""
    rules = [{"effect": "allow", "topics": ["#"]}]
    async with ganglion.testing.broker(users={"ada": "secret"}, rules=rules) as broker:
        await connect(broker, user="ada", password="secret")
        client = Client(await open_stream(broker.host, broker.native_port))
        await client.send([32, 1, 1, {"user": "ada", "password": "wrong"}], [14])
        ((operation, number, code, text),) = await client.ends()
        assert (operation, number, code) == (12, 1, "not_authenticated")
        assert text


async def test_hostile_bytes() -> None:
    """Their sender is told why and closed; nobody else notices."""
    async with ganglion.testing.broker() as broker:
        good, bad = await connect(broker), await connect(broker)
        await bad.stream.send_all(b"\xc1" * 100_000)
        assert (await bad.ends())[-1][:3] == [12, 0, "malformed"]
        await good.send([14])
        assert await good.next() == [15]


async def test_drain() -> None:
    """The client is told, settles what it has, and says goodbye; the node waits for that."""
    broker = Broker(log=RecordingLog(), sys_interval_s=0)
    address = broker.listen("native", Address("127.0.0.1", 0))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.run)
            client = Client(await open_stream(address.host, address.port))
            await client.send([32, 1, 1])
            assert (await client.next())[0] == 11
            is_complete: list[bool] = []
            done = trio.Event()

            async def drain() -> None:
                is_complete.append(await broker.drain())
                done.set()

            nursery.start_soon(drain)
            operation, notice = await client.next()
            assert operation == 10
            assert notice["within_s"] == 5
            await client.send([33, 2, "t", b"last words"], [16])
            assert await client.ends() == [[13, 2, 2, 0, 0, 0]]
            with trio.fail_after(WAIT_S):
                await done.wait()
            assert is_complete == [True]
            nursery.cancel_scope.cancel()
    finally:
        broker.close()


async def test_tls(tmp_path: Path) -> None:
    """The same over TLS, with the protocol's ALPN name."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "server.pem")
    )
    broker = Broker(log=RecordingLog(), sys_interval_s=0)
    tls = TlsContext.load(tmp_path / "server.pem")
    address = broker.listen("natives", Address("127.0.0.1", 0), tls)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["ganglion/1"])
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.run)
            stream = trio.SSLStream(
                await open_stream(address.host, address.port),
                context,
                server_hostname=address.host,
            )
            client = Client(stream)
            await client.send([32, 1, 1], [14])
            assert (await client.next())[0] == 11
            assert await client.next() == [15]
            assert stream.selected_alpn_protocol() == "ganglion/1"
            nursery.cancel_scope.cancel()
    finally:
        broker.close()


class WebClient:
    """Frames over a WebSocket of the web listener."""

    def __init__(self, stream: trio.SocketStream, *, is_json: bool) -> None:
        self.stream = stream
        self.is_json = is_json
        self.web = WSConnection(ConnectionType.CLIENT)
        self.unpacker = msgpack.Unpacker()
        self.frames: list[list[Any]] = []

    async def open(self, host: str) -> str | None:
        """Upgrade: the subprotocol that the node has chosen."""
        name = "ganglion.json" if self.is_json else "ganglion.msgpack"
        await self.stream.send_all(
            self.web.send(Request(host=host, target="/ws", subprotocols=[name]))
        )
        with trio.fail_after(WAIT_S):
            while True:
                self.web.receive_data(await self.stream.receive_some())
                for event in self.web.events():
                    assert isinstance(event, AcceptConnection), event
                    return event.subprotocol

    async def send(self, *frames: list[Any]) -> None:
        """Send these in one message."""
        if self.is_json:
            message: Any = TextMessage("\n".join(json.dumps(frame) for frame in frames))
        else:
            message = BytesMessage(b"".join(msgpack.packb(frame) for frame in frames))
        await self.stream.send_all(self.web.send(message))

    async def next(self) -> list[Any]:
        """The next frame."""
        with trio.fail_after(WAIT_S):
            while not self.frames:
                self.web.receive_data(await self.stream.receive_some())
                for event in self.web.events():
                    match event:
                        case TextMessage():
                            self.frames += [json.loads(line) for line in event.data.splitlines()]
                        case BytesMessage():
                            self.unpacker.feed(bytes(event.data))
                            self.frames += list(self.unpacker)
                        case _:
                            raise AssertionError(event)
        return self.frames.pop(0)


@pytest.mark.parametrize("is_json", [False, True], ids=["msgpack", "json"])
async def test_websocket(is_json: bool) -> None:
    """Both forms on /ws, among each other and with a client over TCP."""
    async with ganglion.testing.broker(web=True) as broker:
        assert broker.web_port is not None
        client = WebClient(await open_stream(broker.host, broker.web_port), is_json=is_json)
        subprotocol = await client.open(f"{broker.host}:{broker.web_port}")
        assert subprotocol == ("ganglion.json" if is_json else "ganglion.msgpack")
        await client.send([32, 1, 1], [35, 2, "t"])
        assert (await client.next())[:2] == [11, 1]
        assert await client.next() == [11, 2, {"retained": 0}]
        other = await connect(broker)
        await other.send([1, "t", b"text"], [1, "t", b"\xff"])
        text: Any = "text" if is_json else b"text"
        raw: Any = {"base64": "/w=="} if is_json else b"\xff"
        assert await client.next() == [1, "t", text]
        assert await client.next() == [1, "t", raw]
        await other.send([35, 2, "u"])
        await other.next()
        await client.send([33, 3, "u", raw])
        assert await client.next() == [13, 3, 3, 1, 0, 0]
        assert await other.next() == [1, "u", b"\xff"]
