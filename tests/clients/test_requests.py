"""Requests: replies, each way to fail, gathering, and answers that nobody wants any more."""

import anyio
import pytest

from ganglion.clients.errors import (
    BadOption,
    NoResponders,
    ResponderFailed,
    ResponderGone,
    RespondersBusy,
    TimedOut,
)
from ganglion.clients.mesh import Mesh
from ganglion.clients.messages import Message
from ganglion.clients.requests import Request
from tests.clients.backends import under_each


@under_each
async def test_a_request_has_one_reply(mesh: Mesh, other: Mesh) -> None:
    """Value and options go both ways; a second answer is taken by nobody."""
    taken: list[bool] = []

    async def answer() -> None:
        async with await anext(requests) as request:
            assert request.decode() == {"item": 5}
            assert request.key == "k"
            taken.append(await request.reply({"price": 12}, headers={"a": "1"}))
            taken.append(await request.reply("again"))
            assert not request.is_wanted

    async with other.serve("price/+", group="g") as requests, anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        reply = await mesh.request("price/5", {"item": 5}, key="k")
    assert reply.decode() == {"price": 12}
    assert reply.headers == {"a": "1"}
    assert taken == [True, False]


@under_each
async def test_each_way_to_fail(mesh: Mesh, other: Mesh) -> None:
    """Nobody there, all busy, no answer in time, an answer that is an error, nobody left."""
    with pytest.raises(NoResponders):
        await mesh.request("t")
    with pytest.raises(NoResponders):
        await mesh.gather("t")
    with pytest.raises(BadOption, match="timeout_s must be above 0, not 0"):
        await mesh.request("t", timeout_s=0)
    with pytest.raises(BadOption, match="at_most must be 1 or more, not 0"):
        await mesh.gather("t", at_most=0)
    with pytest.raises(BadOption, match="concurrency must be from 1"):
        await other.serve("t", concurrency=0).__aenter__()
    errors: list[BaseException] = []

    async def ask(timeout_s: float = 5) -> None:
        try:
            await mesh.request("t", timeout_s=timeout_s)
        except (ResponderFailed, ResponderGone, RespondersBusy, TimedOut) as error:
            errors.append(error)

    async with other.serve("t", concurrency=1) as requests:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            request = await anext(requests)
            await ask()
            assert isinstance(errors.pop(), RespondersBusy)
            await request.fail("out of stock", "stock")
        failed = errors.pop()
        assert isinstance(failed, ResponderFailed)
        assert (str(failed), failed.details["code"]) == ("out of stock", "stock")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with pytest.raises(ZeroDivisionError):
                async with await anext(requests):
                    raise ZeroDivisionError("by zero")
        failed = errors.pop()
        assert isinstance(failed, ResponderFailed)
        assert str(failed) == "ZeroDivisionError: by zero"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 0.02)
            late = await anext(requests)
            await late.unwanted()
            assert not late.is_wanted
            assert await late.reply(b"late") is False
        assert isinstance(errors.pop(), TimedOut)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            kept = await anext(requests)
            await requests.aclose()
            await kept.unwanted()
            assert await kept.reply(b"too late") is False
        assert isinstance(errors.pop(), ResponderGone)


@under_each
async def test_a_cancelled_request_is_cancelled_there(mesh: Mesh, other: Mesh) -> None:
    """The responder learns that nobody waits."""
    async with other.serve("t") as requests, anyio.create_task_group() as tasks:
        tasks.start_soon(mesh.request, "t")
        request = await anext(requests)
        assert request.is_wanted
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await request.unwanted()
    assert not request.is_wanted


@under_each
async def test_gathering(mesh: Mesh, other: Mesh) -> None:
    """The replies of all, or enough of them; a responder that fails gives none."""
    answers: list[list[Message]] = []

    async def ask(at_most: int | None) -> None:
        answers.append(await mesh.gather("t", b"?", at_most=at_most))

    async with other.serve("t") as one, other.serve("t") as two, mesh.serve("+") as three:
        for at_most, expected in ((None, [b"1", b"2"]), (1, [b"1"])):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, at_most)
                asked: list[Request] = [await anext(each) for each in (one, two, three)]
                await asked[0].reply(b"1")
                if at_most is None:
                    await asked[1].reply(b"2")
                    await asked[2].fail("no")
                else:
                    await asked[1].unwanted()
                    await asked[2].unwanted()
            assert sorted(each.payload for each in answers.pop()) == expected
