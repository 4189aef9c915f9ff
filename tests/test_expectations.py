"""Expectations and the fixtures of the client, as tests of users have them."""

from collections.abc import Callable

import anyio
import pytest

from ganglion import Mesh, connect, sync
from ganglion.testing import expect

Connect = Callable[..., connect]


def test_a_message_that_comes_is_given(ganglion_mesh: sync.Mesh) -> None:
    """Whichever of several it is that is meant."""
    with expect(ganglion_mesh, "orders/+", where=lambda each: each.decode() == 7) as created:
        ganglion_mesh.publish("orders/a", 6)
        ganglion_mesh.publish("orders/b", 7)
    assert created.message.topic == "orders/b"


def test_what_came_instead_is_listed(ganglion_mesh: sync.Mesh) -> None:
    """With its payload; the last ten of it."""
    with (
        pytest.raises(AssertionError) as told,
        expect(ganglion_mesh, "orders/created", within_s=0.05),
    ):
        ganglion_mesh.publish_batch("orders/create", list(range(12)))
    lines = str(told.value).splitlines()
    assert lines[0] == "no message came on orders/created within 0.05 s; instead came"
    assert lines[1] == "  (2 more)"
    assert len(lines) == 12
    assert lines[2].startswith("  Message('orders/create', b'2'")


def test_nothing_is_said_to_be_nothing(ganglion_mesh: sync.Mesh) -> None:
    """And an error of the block itself is the one that comes out."""
    with (
        pytest.raises(AssertionError, match=r"instead came\n  nothing"),
        expect(ganglion_mesh, "a", where=bool, within_s=0),
    ):
        pass
    with pytest.raises(ZeroDivisionError), expect(ganglion_mesh, "a"):
        raise ZeroDivisionError


async def test_under_trio(ganglion_connect: Connect) -> None:
    """As pytest-trio runs it."""
    await _expecting(ganglion_connect)


def test_under_asyncio(ganglion_connect: Connect) -> None:
    """As the plugins of asyncio run it."""
    anyio.run(_expecting, ganglion_connect)


async def _expecting(ganglion_connect: Connect) -> None:
    mesh: Mesh
    async with ganglion_connect(client="test") as mesh:
        async with expect(mesh, "orders/created") as created:
            with pytest.raises(AssertionError, match="leave the block"):
                _ = created.message
            await mesh.publish("orders/created", {"order": 7})
        assert created.message.decode() == {"order": 7}
        with pytest.raises(AssertionError, match="that is as it should be within 0 s"):
            async with expect(mesh, "a", where=lambda _: False, within_s=0):
                await mesh.publish("a")
