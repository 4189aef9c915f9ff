"""The face of the client: how it is connected, its state, last values, lists, statistics."""

from typing import Any

import pytest

from ganglion.clients.errors import (
    BadOption,
    ClientError,
    NotAuthorised,
    Unreachable,
)
from ganglion.clients.mesh import Mesh, connect
from ganglion.testing import RunningBroker
from tests.clients.backends import under_each


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "x", "user": "ada"}, "give one of both"),
        ({"publishes_max": 0}, "publishes_max must be 1 or more, not 0"),
        ({"keep_alive_s": 70_000}, "keep_alive_s must be from 0 to 65,535, not 70000"),
        ({"backoff_s": 0}, "backoff_s must be above 0, not 0"),
        ({"connect_timeout_s": -1}, "connect_timeout_s must be above 0, not -1"),
    ],
)
def test_options_that_cannot_be_are_told(options: dict[str, Any], words: str) -> None:
    """By name, before anything is done."""
    with pytest.raises(BadOption, match=words):
        connect(**options)
    with pytest.raises(ClientError, match="carrier-pigeon"):
        connect("carrier-pigeon://localhost")


@under_each
async def test_nobody_there(broker: RunningBroker) -> None:
    """`Unreachable` names the address; with others to turn to the first that answers is used."""
    with pytest.raises(Unreachable, match=r"ganglion://127\.0\.0\.1:1"):
        await connect("ganglion://127.0.0.1:1").__aenter__()
    async with connect("ganglion://127.0.0.1:1", broker.native_url) as mesh:
        assert mesh.state.address == broker.native_url
        assert mesh.greeting["version"] == 1
    connecting = connect(broker.native_url)
    async with connecting:
        with pytest.raises(BadOption, match="entered already"):
            await connecting.__aenter__()


@under_each
async def test_an_error_of_the_body_comes_out_as_it_is(broker: RunningBroker) -> None:
    """Not in an exception group; the mesh is closed all the same, and says so."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the error is the one of the body
        async with connect(broker.native_url) as mesh:
            states = mesh.states()
            raise ZeroDivisionError
    assert [each.state async for each in states] == ["closed"]
    assert mesh.state.state == "closed"
    assert mesh.greeting == {}


@under_each
async def test_last_values(mesh: Mesh) -> None:
    """Put, got, listed over several pages, deleted."""
    assert await mesh.retained.get("a") is None
    for number in range(5):
        await mesh.retained.put(f"a/{number}", {"n": number}, key="k")
    value = await mesh.retained.get("a/3")
    assert value is not None
    assert (value.topic, value.decode(), value.key) == ("a/3", {"n": 3}, "k")
    assert value.retained
    assert [each.topic for each in await mesh.retained.list("a/+", count=2)] == ["a/0", "a/1"]
    assert len(await mesh.retained.list()) == 5
    await mesh.retained.delete("a/3")
    assert await mesh.retained.get("a/3") is None


@under_each
async def test_queues_and_streams_are_listed(mesh: Mesh) -> None:
    """All of them, by name."""
    for number in range(3):
        await mesh.queue(f"q{number}").declare()
        await mesh.stream(f"s{number}").declare()
    assert [each["name"] for each in await mesh.queues()] == ["q0", "q1", "q2"]
    assert [each["name"] for each in await mesh.streams()] == ["s0", "s1", "s2"]


@under_each
async def test_statistics(mesh: Mesh, other: Mesh) -> None:
    """What the node counts, for who may know it."""
    async with other.subscribe("t"):
        found = await mesh.statistics()
    assert (found["connections"], found["subscriptions"]) == (2, 1)


def test_refusals_have_classes() -> None:
    """A code of the protocol that programs act on has a class; the others are `Refused`."""
    assert isinstance(NotAuthorised.of("not_allowed", "no"), NotAuthorised)
    assert type(NotAuthorised.of("what is new", "no")).__name__ == "Refused"
