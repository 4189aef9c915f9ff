"""What both sides of SCRAM-SHA-256 know: names and passwords in one form, keys, attributes.

RFC 5802 and RFC 7677; SASLprep is RFC 4013. The node's side is in `authentication`, that of clients
is `ganglion.clients.scram`: nothing here is of the broker, so that both can use it.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from collections.abc import Callable
from typing import Final

__all__ = [
    "DIGEST_SIZE_BYTES",
    "ITERATIONS_MAX",
    "ITERATIONS_MIN",
    "Malformed",
    "derive_keys",
    "parse_attribute",
    "parse_base64",
    "random_nonce",
    "salted_password",
    "saslprep",
    "xor",
]

DIGEST_SIZE_BYTES: Final = hashlib.sha256().digest_size
ITERATIONS_MIN: Final = 4096  # RFC 7677, 4
ITERATIONS_MAX: Final = 1_000_000
"""About a third of a second of a client's time."""


class Malformed(ValueError):
    """A message that breaks the protocol, with the server-error-value for it (RFC 5802, 7)."""

    def __init__(self, reason: str, code: str = "other-error") -> None:
        super().__init__(reason)
        self.code = code


def saslprep(text: str) -> str:
    """A user name or password in the one form in which it is compared (SASLprep, RFC 4013).

    Code points that Unicode 3.2 does not know are kept as they are (RFC 3454, 7: a 'query'), so
    that newer characters can be used. Raises ValueError that says which rule the text breaks.
    """
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each
        for each in text
        if not stringprep.in_table_b1(each)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for each in prepared:
        if any(prohibited(each) for prohibited in _PROHIBITED):
            raise ValueError(f"the character U+{ord(each):04X} is not allowed")
    if any(stringprep.in_table_d1(each) for each in prepared):
        # RFC 3454, 6: text from right to left begins and ends so and has nothing else in it.
        if any(stringprep.in_table_d2(each) for each in prepared):
            raise ValueError("it mixes text from left to right with text from right to left")
        if not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])):
            raise ValueError("text from right to left does not begin and end so")
    return prepared


def parse_attribute(text: str, letter: str) -> str:
    """The value of an attribute, which must have this letter. Raises `Malformed`."""
    if not text.startswith(f"{letter}="):
        raise Malformed(f"the attribute {letter}= is not where it belongs")
    return text[2:]


def parse_base64(text: str, what: str) -> bytes:
    """Decode base64 in its one spelling (RFC 4648, 3.5). Raises `Malformed`, which says `what`."""
    encoded = text.encode("utf-8", "surrogatepass")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise Malformed(f"the {what} is not base64", "invalid-encoding") from None
    if base64.b64encode(decoded) != encoded:
        raise Malformed(f"the {what} is not base64", "invalid-encoding")
    return decoded


def salted_password(password: str, salt: bytes, iterations: int) -> bytes:
    """What all keys are made from. Takes milliseconds, on purpose."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


def derive_keys(salted: bytes) -> tuple[bytes, bytes, bytes]:
    """The client key, the stored key and the server key (RFC 5802, 3)."""
    client = hmac.digest(salted, b"Client Key", "sha256")
    return client, hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")


def xor(left: bytes, right: bytes) -> bytes:
    """Both, which are of one length, combined bit by bit."""
    return bytes(one ^ other for one, other in zip(left, right, strict=True))


def random_nonce() -> str:
    """One side's part of a nonce."""
    return secrets.token_urlsafe(24)


_PROHIBITED: Final[tuple[Callable[[str], bool], ...]] = (  # RFC 4013, 2.3
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
