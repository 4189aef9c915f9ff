"""Where a listener listens, as text."""

import pytest

from ganglion.broker.net.addresses import Address, InvalidAddress, Networks, plain_ip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:1883", Address("127.0.0.1", 1883)),
        ("0.0.0.0:1", Address("0.0.0.0", 1)),
        ("broker.example", Address("broker.example", 99)),
        ("broker.example:0", Address("broker.example", 0)),
        (":2883", Address("127.0.0.1", 2883)),
        ("2883", Address("127.0.0.1", 2883)),
        ("", Address("127.0.0.1", 99)),
        ("[::1]:1883", Address("::1", 1883)),
        ("[::1]", Address("::1", 99)),
        ("[::]:65535", Address("::", 65_535)),
        ("::1", Address("::1", 99)),
        ("fe80::1%lo", Address("fe80::1%lo", 99)),
        ("  localhost:1 ", Address("localhost", 1)),
        ("unix:/run/ganglion.sock", Address(path="/run/ganglion.sock")),
        ("unix:relative", Address(path="relative")),
    ],
)
def test_parse(text: str, expected: Address) -> None:
    """Host and port, either of them alone, IPv6 with or without brackets, or a path."""
    assert Address.parse(text, 99) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a:b",
        "a:65536",
        "a:-1",
        "[::1",
        "[::1]x",
        "[x]:1",
        "1:2:3",
        "unix:",
        "65536",
        "a:\uff11",
        "\uff11",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """Anything else is refused, and the message says what was given."""
    with pytest.raises(InvalidAddress):
        Address.parse(text, 99)


@pytest.mark.parametrize(
    "address", [Address("127.0.0.1", 1), Address("::1", 2), Address("host", 3), Address(path="/s")]
)
def test_what_is_shown_can_be_read(address: Address) -> None:
    """`str` gives what `parse` reads."""
    assert Address.parse(str(address), 99) == address


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        (Address("127.0.0.1"), True),
        (Address("127.9.9.9"), True),
        (Address("::1"), True),
        (Address("localhost"), True),
        (Address(path="/s"), True),
        (Address("0.0.0.0"), False),
        (Address("::"), False),
        (Address("192.0.2.1"), False),
        (Address("broker.example"), False),
    ],
)
def test_loopback(address: Address, loopback: bool) -> None:
    """Whether only programs on this machine reach it; a name that may be anything is not."""
    assert address.is_loopback is loopback


def test_plain_ip() -> None:
    """An IPv4 address in IPv6 clothes is the IPv4 address; others stay."""
    assert plain_ip("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_ip("2001:db8::1") == "2001:db8::1"
    assert plain_ip("192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("peer", "is_in"),
    [
        ("10.0.0.1", True),
        ("10.255.255.255", True),
        ("11.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("unix", True),
        ("nonsense", False),
        ("", False),
    ],
)
def test_networks(peer: str, is_in: bool) -> None:
    """A peer is in them by its address; what is no address is nowhere."""
    networks = Networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "unix"])
    assert (peer in networks) == is_in
    assert peer not in Networks()


@pytest.mark.parametrize("name", ["10.0.0.1/8", "example.org", "", "10.0.0.0/33"])
def test_what_is_no_network_is_refused(name: str) -> None:
    """Host bits beside a mask, too: they are mostly a mistake."""
    with pytest.raises(InvalidAddress, match=r"write it as 10\.1\.2\.3"):
        Networks([name])
