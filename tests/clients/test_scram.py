"""The client's side of SCRAM-SHA-256: the RFC's example, and nodes that cheat."""

import pytest

from ganglion.clients.errors import AuthenticationFailed
from ganglion.clients.scram import ScramSha256Client

FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
CHALLENGE = (
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SIGNATURE = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def client() -> ScramSha256Client:
    """The client of the example in RFC 7677, 3."""
    return ScramSha256Client("user", "pencil", lambda: "rOprNGfwEbeRWgbNEkqO")


def test_the_example_of_the_rfc() -> None:
    """The exchange of RFC 7677, 3, byte by byte."""
    exchange = client()
    assert exchange.first() == FIRST
    assert exchange.final(CHALLENGE) == FINAL
    exchange.verify(SIGNATURE)


def test_names_are_escaped() -> None:
    """A comma and an equals sign in the name are written as =2C and =3D."""
    assert ScramSha256Client("a,=b", "x", lambda: "n").first() == b"n,,n=a=2C=3Db,r=n"


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (b"e=other-error", "malformed: it is 'e=other-error'"),
        (b"\xff", "malformed"),
        (CHALLENGE.replace(b"r=rOpr", b"r=xOpr"), "does not continue"),
        (b"r=rOprNGfwEbeRWgbNEkqO,s=eA==,i=4096", "does not continue"),
        (CHALLENGE.replace(b"i=4096", b"i=4095"), "4095 iterations"),
        (CHALLENGE.replace(b"i=4096", b"i=1000001"), "1000001 iterations"),
        (CHALLENGE.replace(b"i=4096", b"i=x"), "x iterations"),
        (CHALLENGE.replace(b"s=W2", b"s=?"), "base64"),
    ],
)
def test_a_challenge_that_is_refused(challenge: bytes, reason: str) -> None:
    """A malformed, replayed or abusive challenge raises `AuthenticationFailed`."""
    with pytest.raises(AuthenticationFailed) as caught:
        client().final(challenge)
    assert reason in str(caught.value)


def test_a_node_that_does_not_know_the_user() -> None:
    """A signature that is wrong, missing or early raises `AuthenticationFailed`."""
    exchange = client()
    with pytest.raises(AuthenticationFailed):
        exchange.verify(SIGNATURE)
    exchange.final(CHALLENGE)
    for final in (b"", b"v=", SIGNATURE[:-2], b"e=invalid-proof"):
        with pytest.raises(AuthenticationFailed):
            exchange.verify(final)


def test_a_password_that_cannot_be_prepared() -> None:
    """A control character in name or password raises `AuthenticationFailed`."""
    for name, password in (("a\x07", "x"), ("a", "x\x07")):
        with pytest.raises(AuthenticationFailed):
            ScramSha256Client(name, password)
