"""Embedding: a broker inside this very process, in each of its three forms."""

import asyncio
import time
from dataclasses import replace

import aiomqtt
import pytest
import trio

from ganglion import GanglionError
from ganglion.broker.core.limits import InvalidLimit, Limits
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.daemon.probe import Refused, Target
from ganglion.protocols.mqtt.packets import Publish
from ganglion.protocols.mqtt.reasons import Reason
from ganglion.testing import InvalidOption, RunningBroker, broker, broker_thread
from tests.mqtt_client import MqttClient


def round_trip(target: Target, payload: bytes) -> bytes:
    """Publish to oneself at QoS 1 and give back what came."""
    with MqttClient(target) as client:
        client.subscribe(["round/trip"], 1)
        client.publish(Publish("round/trip", payload, qos=1))
        message = next(client.messages(time.monotonic() + 10))
        client.acknowledge(message)
        client.settle()
        return message.payload


async def test_a_broker_runs_under_trio() -> None:
    """Inside the context clients can connect; after it nobody listens."""
    async with broker() as running:
        target = Target.parse(running.url)
        assert running.host == "127.0.0.1"
        assert await trio.to_thread.run_sync(round_trip, target, b"hello") == b"hello"
    with pytest.raises(OSError):
        await trio.open_tcp_stream(running.host, running.port)


async def test_a_broker_may_have_a_web_listener() -> None:
    """It is there when asked for, at a port of its own, with MQTT over WebSocket."""
    async with broker(web=True) as running:
        stream = await trio.open_tcp_stream(running.host, running.web_port or 0)
        async with stream:
            await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'{"ready": true' in await stream.receive_some(4096)
        assert running.web_url == f"http://127.0.0.1:{running.web_port}"
    async with broker() as running:
        assert running.web_port is None
        with pytest.raises(AssertionError, match="web=True"):
            _ = running.web_url


async def test_brokers_are_independent() -> None:
    """Two at once have ports of their own and share no messages."""
    async with broker() as one, broker() as two:
        assert one.port != two.port
        for running in (one, two):
            payload = running.url.encode()
            got = await trio.to_thread.run_sync(round_trip, Target.parse(running.url), payload)
            assert got == payload


async def test_an_exception_of_the_body_comes_out_as_it_is() -> None:
    """What a test raises inside is not wrapped in an exception group."""
    with pytest.raises(ZeroDivisionError):
        async with broker():
            raise ZeroDivisionError


async def test_a_cancelled_body_ends_the_broker() -> None:
    """A deadline around the whole works as around anything else under trio."""
    with trio.move_on_after(0.05) as scope:
        async with broker():
            await trio.sleep_forever()
    assert scope.cancelled_caught


def test_a_thread_serves_any_program() -> None:
    """broker_thread needs no event loop at all."""
    with broker_thread() as running:
        assert round_trip(Target.parse(running.url), b"plain") == b"plain"


def test_the_fixture_serves_asyncio(ganglion_broker: RunningBroker) -> None:
    """The pytest fixture gives a broker that an asyncio client of others' making can use."""

    async def talk() -> bytes:
        async with aiomqtt.Client(ganglion_broker.host, ganglion_broker.port) as client:
            await client.subscribe("a/#", qos=2)
            await client.publish("a/b", b"from asyncio", qos=2)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                return message.payload
        raise AssertionError("no message came")

    assert asyncio.run(asyncio.wait_for(talk(), 10)) == b"from asyncio"


def test_an_exception_of_the_body_leaves_the_thread_context() -> None:
    """What the body raises comes out, and the broker is stopped all the same."""
    with pytest.raises(ZeroDivisionError), broker_thread() as running:
        raise ZeroDivisionError
    with pytest.raises(GanglionError):
        MqttClient(Target.parse(running.url), timeout_s=1)


def test_users_and_rules_are_enforced() -> None:
    """With users nobody comes in without a password, and nothing is allowed but by the rules."""
    options = {
        "users": {"ada": "secret", "bob": "hidden"},
        "rules": [{"effect": "allow", "users": "ada", "topics": "round/#"}],
    }
    with broker_thread(**options) as running:
        anybody = Target.parse(running.url)
        ada = replace(anybody, user="ada", password=b"secret")
        assert round_trip(ada, b"allowed") == b"allowed"
        for user, password, reason in (
            ("ada", b"wrong", Reason.BAD_USER_NAME_OR_PASSWORD),
            ("nobody", b"secret", Reason.BAD_USER_NAME_OR_PASSWORD),
            (None, None, Reason.NOT_AUTHORIZED),
        ):
            with pytest.raises(Refused) as caught:
                MqttClient(replace(anybody, user=user, password=password))
            assert caught.value.reason == reason
        with pytest.raises(Refused) as caught:
            round_trip(replace(anybody, user="bob", password=b"hidden"), b"denied")
        assert caught.value.reason == Reason.NOT_AUTHORIZED


def test_anonymous_clients_can_be_let_in_beside_users() -> None:
    """With anonymous=True clients without a name connect, and the rules are about them as well."""
    rules = [{"effect": "allow", "users": ":anonymous", "topics": "round/trip"}]
    with broker_thread(users={"ada": "secret"}, anonymous=True, rules=rules) as running:
        assert round_trip(Target.parse(running.url), b"nobody") == b"nobody"


def test_limits_are_in_force() -> None:
    """Limits can be given as they are in the configuration, or as a whole."""
    for limits in ({"packet_size_max_bytes": 2000}, Limits(packet_size_max_bytes=2000)):
        with (
            broker_thread(limits=limits) as running,
            MqttClient(Target.parse(running.url)) as client,
        ):
            assert client.connack.properties is not None
            assert client.connack.properties.maximum_packet_size == 2000


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rules": [{"effect": "allow"}]}, InvalidOption, "rule 1: topics is missing"),
        ({"limits": {"recieve_max": 1}}, InvalidOption, "recieve_max"),
        ({"limits": {"receive_max": 0}}, InvalidLimit, "receive_max"),
        ({"users": {"a/b": "x"}}, GanglionError, "'/'"),
    ],
)
def test_wrong_options_are_told(
    options: dict[str, object], error: type[GanglionError], words: str
) -> None:
    """A mistake in an option raises where the broker is asked for, also through the thread."""
    with pytest.raises(error, match=words), broker_thread(**options):
        pytest.fail("the body must not run")


def test_queues_and_streams_are_there_from_the_start() -> None:
    """They are given as definitions or as mappings, and a mistake in one is named."""
    queues = [QueueDefinition(name="a"), {"name": "b", "bindings": "t"}]
    streams = [{"name": "c", "bindings": ["t"]}]
    with (
        broker_thread(queues=queues, streams=streams) as running,
        MqttClient(Target.parse(running.url)) as client,
    ):
        client.publish(Publish("t", b"x", qos=1))
        client.settle()
        client.subscribe(["$queue/b", "$stream/c?from=first"], 1)
        messages = client.messages(time.monotonic() + 10)
        assert [next(messages).payload for _ in range(2)] == [b"x", b"x"]
    for options, text in (
        ({"queues": [{"name": "a", "lease": 5}]}, "queue 1: lease is not a field"),
        ({"streams": [{}]}, "stream 1: name is missing"),
        ({"queues": [{"name": "a"}, {"name": "a", "priorities": 2}]}, "queue a has 1 priorities"),
    ):
        with pytest.raises(InvalidOption, match=text), broker_thread(**options):
            pass
