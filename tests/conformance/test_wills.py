"""What a broker promises of wills."""

import time

import pytest

from tests.conformance.exchanges import (
    CONTENT_TYPE,
    PAYLOAD_FORMAT,
    SESSION,
    USER,
    leave,
    let_pass,
    new_name,
    only_here,
    publish,
    read,
    take_message,
)
from tests.support import (
    RawClient,
    text,
)


def _with_will(
    port: int, topic: str, *, delay_s: int = 0, expiry_s: int = 0, name: str = ""
) -> RawClient:
    client = RawClient(port)
    client.join(
        name or new_name("c"),
        version=5,
        clean=False,
        will=(topic, b"gone", 1, False),
        will_properties=b"\x18" + delay_s.to_bytes(4, "big") if delay_s else b"",
        properties=b"\x11" + expiry_s.to_bytes(4, "big") if expiry_s else b"",
    )
    return client


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("", id="lost"),
        pytest.param("e0 01 04", id="DISCONNECT 0x04"),
        pytest.param("c1 00", id="malformed", marks=only_here),
        pytest.param("30 02 00 00", id="protocol error"),
        pytest.param("e0 05 81 03 1f 00 00", id="DISCONNECT 0x81", marks=only_here),
    ],
)
def test_will(port: int, end: str) -> None:
    """Every end but a normal DISCONNECT publishes the will (3.1.2-8, 3.14.4-3)."""
    topic = new_name()
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, options=2, version=5)
        client = _with_will(port, topic)
        if end:
            client.send(end)
            client.read_to_end()
        client.close()
        assert take_message(observer) == (topic, b"gone", 1, False)


def test_no_will(port: int) -> None:
    """A normal DISCONNECT removes the will (3.1.2-10)."""
    topic = new_name()
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, options=2, version=5)
        with _with_will(port, topic) as client:
            leave(client)
        publish(port, topic, b"after")
        assert take_message(observer)[1] == b"after"


def test_will_at_takeover(port: int) -> None:
    """The will of a connection that is taken over is published (3.1.4-3), unless it may wait."""
    topic, name = new_name(), new_name("c")
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, options=2, version=5)
        with _with_will(port, topic, name=name), RawClient(port) as new:
            new.join(name, version=5)
            assert take_message(observer)[1] == b"gone"


@pytest.mark.slow
def test_will_delay(port: int) -> None:
    """A will waits for its delay, and goes out then (3.1.3.2.2)."""
    topic = new_name()
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, version=5)
        begin = time.monotonic()
        _with_will(port, topic, delay_s=2, expiry_s=60).close()
        observer.ping()
        assert take_message(observer)[1] == b"gone"
        assert 1.5 < time.monotonic() - begin < 5


@pytest.mark.slow
def test_will_delay_and_return(port: int) -> None:
    """A client that returns to its session within the delay has no will published (3.1.3-9)."""
    topic, name = new_name(), new_name("c")
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, version=5)
        _with_will(port, topic, delay_s=1, expiry_s=60, name=name).close()
        with RawClient(port) as client:
            client.join(name, version=5, clean=False, properties=SESSION)
            let_pass(2.2)
            observer.ping()


@pytest.mark.slow
@only_here
def test_will_delay_and_end_of_session(port: int) -> None:
    """The end of the session publishes the will, when that comes before the delay (3.1.2-8)."""
    topic, name = new_name(), new_name("c")
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, version=5)
        begin = time.monotonic()
        _with_will(port, topic, delay_s=60, expiry_s=1).close()
        assert take_message(observer)[1] == b"gone"
        assert time.monotonic() - begin < 5
        # A clean start ends a session too, at once.
        _with_will(port, topic, delay_s=60, expiry_s=60, name=name).close()
        with RawClient(port) as client:
            client.join(name, version=5, clean=True)
            assert take_message(observer)[1] == b"gone"


def test_properties_of_a_will(port: int) -> None:
    """The properties of a will are those of the message (3.1.3.2)."""
    topic = new_name()
    properties = b"\x01\x01\x03" + text("text/x") + b"\x26" + text("k") + text("v")
    with RawClient(port) as observer:
        observer.join(new_name("c"), version=5)
        observer.subscribe(topic, version=5)
        with RawClient(port) as client:
            will = (topic, b"gone", 0, False)
            client.join(new_name("c"), version=5, will=will, will_properties=properties)
        found = read(observer)
        assert sorted(found.properties) == [
            (PAYLOAD_FORMAT, 1),
            (CONTENT_TYPE, "text/x"),
            (USER, ("k", "v")),
        ]


# $SYS
