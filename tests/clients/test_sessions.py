"""What outlives connections: reconnecting, secrets, failover, drains, states, and giving up."""

import gc
import logging
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.errors import (
    AuthenticationFailed,
    BadOption,
    Closed,
    ConnectionLost,
    NotAuthorised,
    Refused,
    TimedOut,
    Unreachable,
)
from ganglion.clients.mesh import connect
from ganglion.clients.messages import Receipt
from ganglion.clients.session import StateChange, _parsed
from ganglion.protocols.native.operations import Code, Operation
from ganglion.testing import RunningBroker
from tests.clients.backends import eventually, under_each
from tests.clients.cutting import Cut, CuttingProxy, check_empty, patient
from tests.clients.fake_node import FakeNode, Talk, greet, refuse
from tests.support import free_port

# -- coming and going ------------------------------------------------------------------------------


@under_each
async def test_a_mesh_that_is_left_at_once_says_goodbye(broker: RunningBroker) -> None:
    """A body that never waits leaves no connection and takes no time."""
    proxy = CuttingProxy(broker.native_port)
    async with proxy.running():
        with anyio.fail_after(1):
            async with connect(proxy.url):
                pass
        await eventually(lambda: proxy.accepted == 1 and proxy.open == 0)


@under_each
async def test_closing_does_not_connect_again(broker: RunningBroker) -> None:
    """The end of a connection that was closed is no reason to make another one."""
    proxy = CuttingProxy(broker.native_port)
    async with proxy.running():
        async with patient(proxy.url) as mesh:
            await mesh.publish("t", b"x")
        await eventually(lambda: proxy.open == 0)
        assert proxy.accepted == 1


@under_each
async def test_a_closed_mesh_says_so(broker: RunningBroker) -> None:
    """Whatever is asked of it then fails at once, channels that are entered too."""
    async with connect(broker.native_url) as mesh:
        pass
    assert mesh.state.state == "closed"
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: mesh.publish("t", b"x"),
        lambda: mesh.send("t", b"x"),
        lambda: mesh.request("t", b"x"),
        lambda: mesh.queue("q").describe(),
        mesh.flush,
        mesh.subscribe("t").__aenter__,
        mesh.queue("q").consume().__aenter__,
        mesh.stream("s").follow().__aenter__,
    ]
    for call in calls:
        with pytest.raises(Closed, match="the mesh was closed"):
            await call()


@under_each
async def test_nobody_there_is_said_at_once() -> None:
    """Without ``wait_for_node_s`` a node that is not there is an error, with its address."""
    port = free_port()
    with pytest.raises(Unreachable, match=f"cannot connect to ganglion://127.0.0.1:{port}"):
        async with connect(f"ganglion://127.0.0.1:{port}"):
            pass


@under_each
async def test_a_name_that_cannot_be_is_unreachable() -> None:
    """A host name that no resolver takes is said as one that nobody knows."""
    with pytest.raises(Unreachable, match="cannot connect"):
        async with connect(f"ganglion://{'a' * 70}.example:7883"):
            pass


@under_each
async def test_a_node_that_comes_later_is_waited_for() -> None:
    """With ``wait_for_node_s`` it is tried again, also while a node starts, stops or is full."""
    port = free_port()
    node = FakeNode(
        refuse(Code.DRAINING), refuse(Code.BUSY), refuse(Code.LIMIT), _close_at_once, greet
    )
    async with anyio.create_task_group() as tasks:

        async def come() -> None:
            async with node.running(port):
                await eventually(lambda: is_done)

        is_done = False
        connecting = patient(f"ganglion://127.0.0.1:{port}")
        tasks.start_soon(come)
        async with connecting as mesh:
            assert mesh.state.state == "open"
            assert len(node.talks) == 5
        is_done = True


async def _close_at_once(_talk: Talk) -> None:
    """A node that accepts and goes away."""


@under_each
async def test_a_refusal_for_good_is_not_waited_for() -> None:
    """Who is not let in is told at once, whatever ``wait_for_node_s`` is."""
    async with FakeNode(refuse(Code.NOT_AUTHENTICATED, "wrong password")).running() as node:
        with pytest.raises(NotAuthorised, match="wrong password"):
            async with patient(node.url):
                pass
        assert len(node.talks) == 1


# -- a lost connection -----------------------------------------------------------------------------


@under_each
async def test_without_reconnect_the_mesh_ends_with_its_connection(broker: RunningBroker) -> None:
    """What waits and what is asked afterwards gets `ConnectionLost`, and nobody connects again."""
    proxy = CuttingProxy(broker.native_port)
    async with proxy.running():
        async with connect(proxy.url, reconnect=False) as mesh:
            async with mesh.subscribe("t") as messages:
                await proxy.cut_all()
                with pytest.raises(ConnectionLost):
                    await anext(messages)
            await eventually(lambda: mesh.state.state == "closed")
            with pytest.raises(ConnectionLost):
                await mesh.publish("t", b"x")
        assert proxy.accepted == 1


@under_each
async def test_who_wants_to_fail_fast_does() -> None:
    """What had no answer fails when the connection is lost; what is asked later works again."""

    async def swallow(talk: Talk) -> None:
        await talk.greeted()
        await talk.frame(Operation.PUBLISH)

    is_back = anyio.Event()

    async def come_back(talk: Talk) -> None:
        await is_back.wait()
        await talk.greeted()
        frame = await talk.frame(Operation.PUBLISH)
        assert frame[2] == "second"
        await talk.send((int(Operation.CONFIRMED), frame[1], frame[1], 0, 0, 0))
        await talk.until_gone()

    async with (
        FakeNode(swallow, come_back).running() as node,
        patient(node.url, fail_fast=True) as mesh,
    ):
        with pytest.raises(ConnectionLost):
            await mesh.publish("first", b"")
        with pytest.raises(ConnectionLost, match="no connection at this time"):
            await mesh.publish("meanwhile", b"")
        with pytest.raises(ConnectionLost, match="no connection at this time"):
            await mesh.send("meanwhile", b"")
        with pytest.raises(ConnectionLost, match="no connection at this time"):
            await mesh.subscribe("t").__aenter__()
        is_back.set()
        await eventually(lambda: mesh.state.state == "open")
        assert await mesh.publish("second", b"") == Receipt(0, 0, 0)


@under_each
async def test_what_is_asked_without_a_connection_waits_no_longer_than_it_may() -> None:
    """The timeout of a call includes the time without a connection, and the error says so."""

    async def leave(talk: Talk) -> None:
        await talk.greeted()

    async with (
        FakeNode(leave, _close_at_once).running() as node,
        patient(node.url, answer_timeout_s=0.05) as mesh,
    ):
        await eventually(lambda: mesh.state.state == "connecting")
        with pytest.raises(TimedOut, match="there is no connection"):
            await mesh.queue("q").describe()
        with pytest.raises(TimedOut, match="no connection"):
            await mesh.gather("t", b"", timeout_s=0.05)
        with pytest.raises(TimedOut, match="not confirmed"):
            await mesh.publish("t", b"", timeout_s=0.05)
        with pytest.raises(TimedOut, match="no node has opened this"):
            await mesh.subscribe("t").__aenter__()
        await mesh.send("t", b"")
        assert mesh.dropped == 1


@under_each
async def test_a_connection_that_is_lost_again_at_once_is_made_with_pauses() -> None:
    """A node that lets in and hangs up is not overrun: the second attempt already has to wait."""

    async def hang_up(talk: Talk) -> None:
        await talk.greeted()

    async with FakeNode(hang_up).running() as node, connect(node.url, backoff_s=60) as mesh:
        await eventually(lambda: len(node.talks) == 2)
        await eventually(lambda: mesh.state.state == "connecting")
        assert mesh._session._attempts == 1
        with anyio.move_on_after(0.02) as waiting:
            await eventually(lambda: len(node.talks) > 2)
        assert waiting.cancelled_caught


@under_each
async def test_a_frame_that_makes_no_sense_costs_its_connection_only() -> None:
    """A node that breaks the protocol is left, and the next connection goes on."""

    async def nonsense(talk: Talk) -> None:
        await talk.greeted()
        _, number, *_ = await talk.frame(Operation.SUBSCRIBE)
        await talk.send((int(Operation.OK), number, {}), (int(Operation.DELIVERY), number))
        await talk.until_gone()

    async def sense(talk: Talk) -> None:
        await talk.greeted()
        _, number, *_ = await talk.frame(Operation.SUBSCRIBE)
        await talk.send(
            (int(Operation.OK), number, {}), (int(Operation.DELIVERY), number, "t", b"x")
        )
        await talk.until_gone()

    reasons: list[str] = []
    async with (
        FakeNode(nonsense, sense).running() as node,
        patient(node.url, on_state=lambda change: reasons.append(change.reason)) as mesh,
        mesh.subscribe("t") as messages,
    ):
        assert (await anext(messages)).payload == b"x"
    assert any("cannot be read" in reason for reason in reasons)


@under_each
async def test_a_greeting_that_makes_no_sense_is_no_greeting() -> None:
    """It is said as a connection that broke, and not as an error of ours."""

    async def odd(talk: Talk) -> None:
        _, number, *_ = await talk.frame(Operation.HELLO)
        await talk.send((int(Operation.OK), number, ["well"]))

    async with FakeNode(odd).running() as node:
        with pytest.raises(ConnectionLost, match="greeting cannot be read"):
            async with connect(node.url):
                pass


@under_each
async def test_a_channel_that_is_given_up_is_closed_at_the_node() -> None:
    """Who is cancelled while it opens leaves nothing open: else jobs would go to nobody."""
    frames: list[int] = []

    async def silent(talk: Talk) -> None:
        await talk.greeted()
        _, number, *_ = await talk.frame(Operation.CONSUME)
        closing = await talk.frame(Operation.CLOSE)
        frames.extend((number, *closing))
        await talk.until_gone()

    async with FakeNode(silent).running() as node, connect(node.url) as mesh:
        with anyio.move_on_after(0.01):
            await mesh.queue("q").consume().__aenter__()
        await eventually(lambda: len(frames) == 4)
        assert not mesh._session._channels
        link = mesh._session.link
        assert link is not None
        assert not link.channels
    assert frames == [frames[0], Operation.CLOSE, 0, frames[0]]


@under_each
async def test_what_nobody_waits_for_is_forgotten(broker: RunningBroker) -> None:
    """Cancelled requests, refused channels and timed out calls leave no entry in any table."""
    async with (
        connect(broker.native_url) as mesh,
        connect(broker.native_url) as other,
        other.serve("t"),
    ):
        for _ in range(5):
            with anyio.move_on_after(0.001):
                await mesh.request("t", b"x")
            with anyio.move_on_after(0.001):
                await mesh.gather("t", b"x")
        with pytest.raises(TimedOut):
            await mesh.request("t", b"x", timeout_s=0.001)
        for _ in range(3):
            with pytest.raises(Refused):
                await mesh.queue("nowhere").consume().__aenter__()
        with pytest.raises(BadOption, match="too large"):
            await mesh.publish("t", bytes(17_000_000))
        await mesh.flush()
        await check_empty(mesh)


@under_each
async def test_a_connection_that_the_node_ends_is_lost() -> None:
    """Its reason is no answer to what was asked: that is asked again, or nobody knows of it."""

    async def tire(talk: Talk) -> None:
        await talk.greeted()
        await talk.frame(Operation.QUEUE_PAUSE)
        await talk.frame(Operation.APPEND)
        await talk.send((int(Operation.ERROR), 0, str(Code.KEEP_ALIVE), "nothing came"))

    async def pause(talk: Talk) -> None:
        await talk.greeted()
        _, number, *_ = await talk.frame(Operation.QUEUE_PAUSE)
        await talk.send((int(Operation.OK), number))
        await talk.until_gone()

    async with (
        FakeNode(tire, pause).running() as node,
        patient(node.url) as mesh,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(mesh.queue("q").pause)
        await eventually(lambda: bool(mesh._session.link and mesh._session.link.calls))
        with pytest.raises(ConnectionLost, match="the node ended the connection: nothing came"):
            await mesh.stream("s").append(b"x")


# -- secrets ---------------------------------------------------------------------------------------


@under_each
async def test_a_token_is_asked_for_at_each_connection() -> None:
    """A function gives the token, also an asynchronous one; a refused one is no reason to stop."""
    tokens = iter(["first", "stale", "fresh"])

    async def give() -> str:
        await anyio.lowlevel.checkpoint()
        return next(tokens)

    async def expire(talk: Talk) -> None:
        await talk.greeted()
        await talk.send((int(Operation.ERROR), 0, str(Code.NOT_AUTHENTICATED), "it has expired"))

    async def reject(talk: Talk) -> None:
        _, number, _, talk.hello = await talk.frame(Operation.HELLO)
        await talk.send((int(Operation.ERROR), number, str(Code.NOT_AUTHENTICATED), "expired"))

    async with FakeNode(expire, reject, greet).running() as node:
        async with patient(node.url, token=give) as mesh:
            await eventually(lambda: len(node.talks) == 3 and mesh.state.state == "open")
        assert [each.hello["token"] for each in node.talks] == ["first", "stale", "fresh"]


@under_each
async def test_a_secret_that_stays_wrong_ends_the_session() -> None:
    """A token that is a value will not become another one: everybody who waits is told why."""

    async def expel(talk: Talk) -> None:
        await talk.greeted()
        await talk.frame(Operation.PUBLISH)
        await talk.send((int(Operation.ERROR), 0, str(Code.NOT_AUTHENTICATED), "rule 3"))

    async with FakeNode(expel, greet).running() as node:
        async with patient(node.url, token="t") as mesh:
            with pytest.raises(NotAuthorised, match="rule 3"):
                await mesh.publish("t", b"")
            with pytest.raises(NotAuthorised, match="rule 3"):
                await mesh.publish("t", b"")
            assert mesh.state == StateChange("closed", reason="rule 3")
        assert len(node.talks) == 1


@under_each
async def test_a_function_that_fails_to_give_a_secret_is_asked_again() -> None:
    """On entering its failure is the error; later it is a reason to try again."""
    failing = True

    def give() -> str:
        if failing:
            raise OSError("the vault is sealed")
        return "token"

    async def leave(talk: Talk) -> None:
        await talk.greeted()
        await talk.frame(Operation.MESSAGE)

    states: list[StateChange] = []
    async with FakeNode(leave, greet).running() as node:
        with pytest.raises(AuthenticationFailed, match="the vault is sealed") as raised:
            async with connect(node.url, token=give):
                pass
        assert isinstance(raised.value.__cause__, OSError)
        failing = False
        async with patient(node.url, token=give, on_state=states.append) as mesh:
            failing = True
            await mesh.send("t", b"")
            await eventually(lambda: "sealed" in mesh.state.reason)
            failing = False
            await eventually(lambda: mesh.state.state == "open")


@under_each
async def test_a_client_identifier_belongs_to_the_last_who_took_it(broker: RunningBroker) -> None:
    """The first one ends, says why, and does not take it back."""
    async with (
        patient(broker.native_url, client="me") as first,
        first.subscribe("t") as messages,
        patient(broker.native_url, client="me"),
    ):
        with pytest.raises(Refused, match="another connection has this client") as raised:
            await anext(messages)
        assert raised.value.code == Code.TAKEN_OVER
        with pytest.raises(Refused, match="another connection has this client"):
            await first.publish("t", b"")
        assert first.state.state == "closed"


# -- several nodes ---------------------------------------------------------------------------------


@under_each
async def test_the_first_address_that_answers_is_used() -> None:
    """In the order of the list, on entering and after each loss."""
    dead = f"ganglion://127.0.0.1:{free_port()}"
    first, second = FakeNode(greet), FakeNode(greet)
    opened: list[str] = []

    def note(change: StateChange) -> None:
        if change.state == "open":
            opened.append(change.address)

    async with (
        first.running(),
        second.running(),
        patient(dead, first.url, second.url, on_state=note),
    ):
        first.stop()
        await eventually(lambda: len(opened) == 2)
        assert opened == [first.url, second.url]


@under_each
async def test_a_drain_behind_the_greeting_is_heard() -> None:
    """A node that stops just then tells so in the same breath; the client goes where it says."""
    second = FakeNode(greet)
    async with second.running():

        async def stop(talk: Talk) -> None:
            notice = {"within_s": 5, "addresses": (second.url,)}
            await talk.greeted((int(Operation.DRAIN), notice))
            assert (await talk.until_gone())[-1][0] == Operation.GOODBYE

        async with FakeNode(stop).running() as first, connect(first.url) as mesh:
            await eventually(lambda: mesh.state.address == second.url)


@under_each
async def test_behind_a_balancer_the_same_address_leads_elsewhere() -> None:
    """A client that knows one address leaves a node that stops before it has stopped."""

    async def stop(talk: Talk) -> None:
        await talk.greeted((int(Operation.DRAIN), {"within_s": 5, "addresses": ()}))
        assert (await talk.until_gone())[-1][0] == Operation.GOODBYE

    changes: list[StateChange] = []
    async with (
        FakeNode(stop, _close_at_once, greet).running() as balancer,
        patient(balancer.url, on_state=changes.append),
    ):
        await eventually(lambda: len(balancer.talks) == 3)
        await eventually(lambda: len(changes) == 1)
    assert [each.state for each in changes] == ["open", "closed"]


@under_each
async def test_a_node_that_hangs_up_at_once_is_not_moved_to() -> None:
    """Where the other node does not last, the old one is used until it stops."""

    async def hang_up(talk: Talk) -> None:
        await talk.greeted()

    other = FakeNode(hang_up, greet)
    async with other.running():

        async def stop(talk: Talk) -> None:
            await talk.greeted()
            frame = await talk.frame(Operation.PUBLISH)
            notice = {"within_s": 10, "addresses": (other.url,)}
            await talk.send((int(Operation.DRAIN), notice))
            with anyio.fail_after(2):  # and not only when the node has stopped
                await eventually(lambda: len(other.talks) == 2)
            await talk.send((int(Operation.CONFIRMED), frame[1], frame[1], 0, 0, 0))
            await talk.until_gone()

        async with FakeNode(stop).running() as first, patient(first.url) as mesh:
            await mesh.publish("t", b"")
            await eventually(lambda: mesh.state.address == other.url)
            assert len(other.talks) == 2


@under_each
async def test_publishes_are_not_at_two_nodes() -> None:
    """While a node stops, new publishes wait until it has confirmed those that it has."""
    seen: list[tuple[str, str]] = []
    may_confirm = anyio.Event()

    async def take(talk: Talk) -> None:
        await talk.greeted()
        await confirm(talk, "second", await talk.frame(Operation.PUBLISH))
        await talk.until_gone()

    async def confirm(talk: Talk, node: str, frame: tuple[object, ...]) -> None:
        seen.append((node, str(frame[2])))
        await talk.send((int(Operation.CONFIRMED), frame[1], frame[1], 0, 0, 0))

    second = FakeNode(take)
    async with second.running():

        async def stop(talk: Talk) -> None:
            await talk.greeted()
            frame = await talk.frame(Operation.PUBLISH)
            notice = {"within_s": 10, "addresses": (second.url,)}
            await talk.send((int(Operation.DRAIN), notice))
            await may_confirm.wait()
            await confirm(talk, "first", frame)
            assert [each[0] for each in await talk.until_gone()] == [Operation.GOODBYE]

        async with FakeNode(stop).running() as first, connect(first.url) as mesh:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mesh.publish, "a", b"")
                await eventually(lambda: bool(second.talks) and mesh._session.outbox.is_full)
                tasks.start_soon(mesh.publish, "b", b"")
                may_confirm.set()
            await check_empty(mesh)
    assert seen == [("first", "a"), ("second", "b")]


@under_each
async def test_leases_are_settled_where_they_were_given() -> None:
    """A job of a node that stops is acknowledged there, and only then is that node left."""
    second = FakeNode(_consumed_here)
    seen: list[object] = []
    async with second.running():

        async def stop(talk: Talk) -> None:
            await talk.greeted()
            _, number, *_ = await talk.frame(Operation.CONSUME)
            await talk.send(
                (int(Operation.OK), number, {}),
                (int(Operation.JOBS), number, ((7, "t", b"x"),)),
                (int(Operation.DRAIN), {"within_s": 10, "addresses": (second.url,)}),
            )
            seen.append((await talk.frame(Operation.CREDIT))[1:] == (number, 0))
            seen.extend((await talk.frame(Operation.ACK))[3])
            seen.append((await talk.frame())[0] == Operation.GOODBYE)

        async with (
            FakeNode(stop).running() as first,
            connect(first.url) as mesh,
            mesh.queue("q").consume() as jobs,
        ):
            job = await anext(jobs)
            await eventually(lambda: mesh.state.address == second.url)
            await eventually(lambda: seen == [True])
            assert job.is_held
            await job.ack()
            await eventually(lambda: seen == [True, 7, True])
            assert (await anext(jobs)).payload == b"there"


async def _consumed_here(talk: Talk) -> None:
    await talk.greeted()
    _, number, *_ = await talk.frame(Operation.CONSUME)
    job = (1, "t", b"there")
    await talk.send((int(Operation.OK), number, {}), (int(Operation.JOBS), number, (job,)))
    closing = await talk.frame(Operation.CLOSE)
    await talk.send((int(Operation.OK), closing[1]))
    await talk.until_gone()


def test_an_encrypted_node_does_not_send_us_where_it_is_not() -> None:
    """A token would go there in the clear. Who we are stays the same."""
    told = ("ganglion://b:1", "ganglions://c:2", "nonsense://", 5)
    plain = NodeAddress.parse("ganglion://ada@a:1")
    assert [str(each) for each in _parsed(told, plain)] == ["ganglion://b:1", "ganglions://c:2"]
    assert {each.user for each in _parsed(told, plain)} == {"ada"}
    encrypted = NodeAddress.parse("ganglions://a:1")
    assert [str(each) for each in _parsed(told, encrypted)] == ["ganglions://c:2"]


# -- watching --------------------------------------------------------------------------------------


@under_each
async def test_changes_are_seen_by_who_watches(broker: RunningBroker) -> None:
    """By the function and by the iterator alike, in order, until the end."""
    told: list[StateChange] = []
    iterated: list[StateChange] = []
    proxy = CuttingProxy(broker.native_port, Cut("down", 100_000))

    async def iterate() -> None:
        iterated.extend([change async for change in states])

    async with (
        proxy.running(),
        anyio.create_task_group() as tasks,
        patient(proxy.url, on_state=told.append) as mesh,
    ):
        states = mesh.states()
        tasks.start_soon(iterate)
        await proxy.cut_all()
        await eventually(lambda: len(told) >= 3 and told[-1].state == "open")
    assert told[0] == StateChange("open", proxy.url)
    assert told[1].state == "connecting"
    assert told[1].reason
    assert told[-1] == StateChange("closed", reason="the mesh was closed")
    assert iterated == told[1:]
    assert [change async for change in states] == []


@under_each
async def test_a_watcher_that_fails_is_logged(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in ``on_state`` costs nothing but a line in the log."""

    def fail(_change: StateChange) -> None:
        raise ValueError("a mistake")

    proxy = CuttingProxy(broker.native_port)
    with caplog.at_level(logging.ERROR, "ganglion.client"):
        async with proxy.running(), patient(proxy.url, on_state=fail) as mesh:
            await proxy.cut_all()
            await mesh.publish("t", b"x")
    assert "a mistake" in caplog.text


@under_each
async def test_who_watches_no_more_is_not_kept(broker: RunningBroker) -> None:
    """An iterator that was left is gone, and the session with its watchers stays small."""
    async with connect(broker.native_url) as mesh:
        for _ in range(10):
            mesh.states()
        gc.collect()
        assert mesh._session._watchers == []


# -- silence ---------------------------------------------------------------------------------------


@pytest.mark.slow
@under_each
async def test_who_only_sends_is_not_taken_for_dead(broker: RunningBroker) -> None:
    """A client that has nothing to hear pings, however much it sends."""
    async with connect(broker.native_url, keep_alive_s=1, reconnect=False) as mesh:
        with anyio.move_on_after(2.5):
            while True:
                await mesh.send("t", b"x")
                await anyio.sleep(0.05)
        await mesh.publish("t", b"still here")


@pytest.mark.slow
@under_each
async def test_who_only_hears_is_not_taken_for_dead(broker: RunningBroker) -> None:
    """A client that hears all the time says now and then that it is there."""
    async with (
        connect(broker.native_url, keep_alive_s=1, reconnect=False) as mesh,
        connect(broker.native_url) as other,
        mesh.subscribe("t", overflow="drop_oldest") as messages,
    ):
        with anyio.move_on_after(2.5):
            while True:
                await other.send("t", b"x")
                await anext(messages)
                await anyio.sleep(0.05)
        await mesh.publish("t", b"still here")


@pytest.mark.slow
@under_each
async def test_a_black_hole_is_left(broker: RunningBroker) -> None:
    """A publish into one is confirmed over the next connection, 1.5 keep-alives later."""
    proxy = CuttingProxy(broker.native_port, Cut("up", 250, "hole"))
    async with proxy.running(), patient(proxy.url, keep_alive_s=1) as mesh:
        before_s = anyio.current_time()
        for _ in range(20):
            await mesh.publish("t", b"0123456789")
        assert 1.0 <= anyio.current_time() - before_s <= 5.0
        assert proxy.accepted == 2
