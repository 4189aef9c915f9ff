"""What a broker promises when clients connect, leave and come back."""

import pytest

from tests.conformance.decoder import decode
from tests.conformance.exchanges import (
    ASSIGNED_ID,
    REASON_STRING,
    RESPONSE_INFORMATION,
    SERVER_KEEP_ALIVE,
    SESSION,
    leave,
    let_pass,
    new_name,
    only_here,
    read,
)
from tests.support import (
    RawClient,
    connect_packet,
    frame,
    publish_packet,
    start_daemon,
    subscribe_packet,
    text,
)


def test_assigned_client_identifier(port: int) -> None:
    """A client without identifier is told the one it gets, and no two get the same (3.2.2-16)."""
    with RawClient(port) as one, RawClient(port) as other:
        names: set[object] = set()
        for client in (one, other):
            answer = decode(client.join("", version=5).raw, 5)
            names.add(dict(answer.properties)[ASSIGNED_ID])
        assert len(names) == 2
        assert all(names)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_session_present(port: int, version: int) -> None:
    """Session Present says if there was a session; a clean start ends it (3.1.2-4, 3.2.2-3).

    Before MQTT 5 a session that began clean ends with its connection, and 3.1 does not tell.
    """
    name, topic = new_name("c"), new_name()
    expiry = SESSION if version == 5 else b""
    present: list[int] = []
    for clean in (True, False, False, True, False):
        with RawClient(port) as client:
            answer = client.join(name, version=version, clean=clean, properties=expiry)
            present.append(answer.body[0])
            if not clean:
                client.subscribe(topic, version=version)
            leave(client)
    assert present == {3: [0, 0, 0, 0, 0], 4: [0, 0, 1, 0, 0], 5: [0, 1, 1, 0, 1]}[version]


def test_session_without_expiry(port: int) -> None:
    """Without Session Expiry Interval the session ends with the connection (3.1.2.11.2)."""
    name = new_name("c")
    for _ in range(2):
        with RawClient(port) as client:
            assert client.join(name, version=5, clean=False).body[0] == 0
            leave(client)


@pytest.mark.slow
def test_session_expires(port: int) -> None:
    """A session ends its interval after the connection (3.1.2-23)."""
    name = new_name("c")
    with RawClient(port) as client:
        client.join(name, version=5, properties=b"\x11\x00\x00\x00\x01")
    let_pass(0.3)
    with RawClient(port) as client:
        answer = client.join(name, version=5, clean=False, properties=b"\x11\x00\x00\x00\x01")
        assert answer.body[0] == 1
    let_pass(2.2)
    with RawClient(port) as client:
        assert client.join(name, version=5, clean=False).body[0] == 0


def test_disconnect_ends_the_session(port: int) -> None:
    """DISCONNECT may change the expiry of a session, to its immediate end too (3.14.2.2.2)."""
    name = new_name("c")
    with RawClient(port) as client:
        client.join(name, version=5, properties=SESSION)
        client.send(frame(0xE0, b"\x00\x05\x11\x00\x00\x00\x00"))
        client.expect_closed()
    with RawClient(port) as client:
        assert client.join(name, version=5, clean=False).body[0] == 0


def test_disconnect_cannot_begin_a_session(port: int) -> None:
    """It is an error to ask for an expiry where CONNECT had none (3.14.2-2)."""
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.send(frame(0xE0, b"\x00\x05" + SESSION))
        assert read(client).fields["reason"] == 0x82
        client.expect_closed()


def test_unknown_authentication_method(port: int) -> None:
    """A method that the server does not offer is refused with 0x8C (4.12.0-1)."""
    with RawClient(port) as client:
        properties = b"\x15" + text("MAGIC")
        client.send(connect_packet(new_name("c"), version=5, properties=properties))
        assert client.expect_kind(2).body[1] == 0x8C
        client.expect_closed()


@only_here
def test_response_information(port: int) -> None:
    """A client that asks learns a prefix for response topics that is its own (3.1.2.11.7)."""
    with RawClient(port) as one, RawClient(port) as other, RawClient(port) as silent:
        prefixes = {
            str(
                dict(
                    decode(
                        each.join(new_name("c"), version=5, properties=b"\x19\x01").raw, 5
                    ).properties
                )[RESPONSE_INFORMATION]
            )
            for each in (one, other)
        }
        assert len(prefixes) == 2
        assert not any("+" in each or "#" in each for each in prefixes)
        answer = decode(silent.join(new_name("c"), version=5).raw, 5)
        assert RESPONSE_INFORMATION not in dict(answer.properties)


@only_here
def test_problem_information(port: int) -> None:
    """A client that does not want it gets no reason strings in acknowledgements (3.1.2-29)."""
    with RawClient(port) as client:
        client.join(new_name("c"), version=5, properties=b"\x17\x00")
        deep = "/".join("a" * 1000)
        client.send(publish_packet(deep, b"", qos=1, version=5))
        refused = read(client)
        assert refused.fields["reason"] == 0x90
        client.send(subscribe_packet(deep, version=5))
        assert refused.properties == read(client).properties == []
    with RawClient(port) as client:
        client.join(new_name("c"), version=5)
        client.send(publish_packet(deep, b"", qos=1, version=5))
        assert "levels" in str(dict(read(client).properties)[REASON_STRING])


@pytest.mark.slow
@only_here
def test_keep_alive_cap() -> None:
    """A cap on the keep alive is told, and holds instead of what the client wished (3.2.2-21)."""
    with start_daemon("--limit", "keep_alive_max_s=1") as daemon:
        for wished in (0, 600):
            with RawClient(daemon.ports["mqtt"]) as client:
                answer = decode(client.join("c", version=5, keep_alive_s=wished).raw, 5)
                assert dict(answer.properties)[SERVER_KEEP_ALIVE] == 1
                assert read(client).fields["reason"] == 0x8D
                client.expect_closed()
