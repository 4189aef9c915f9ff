"""Tokens: a user's name and a time, signed. Who has one is that user until then.

    g1.<user and end, as base64url of JSON>.<HMAC-SHA-256 of that part, as base64url>

Whoever has the key makes tokens (the command line, or another service of the operator), and the
node only checks the signature: nothing is stored for a token. What ends one before its time is
another key, or that the user is deleted.
"""

import binascii
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Final

from ganglion import GanglionError

__all__ = ["KEY_SIZE_MIN", "TOKEN_PREFIX", "InvalidToken", "make_token", "user_of_token"]

TOKEN_PREFIX: Final = "g1."  # noqa: S105 - the form of tokens, not one of them
"""What every token begins with; the number is that of the form."""
KEY_SIZE_MIN: Final = 32
"""Bytes of a key: as many as the signature has."""

_SIZE_MAX = 4096  # characters; a longer one is not read at all


class InvalidToken(GanglionError):
    """Who shows this token is not let in; the message says why."""


def make_token(key: bytes, user: str, ends_s: float) -> str:
    """A token for this user, which is good until `ends_s` (Unix time)."""
    body = _encode(json.dumps([user, int(ends_s)], separators=(",", ":")).encode())
    return f"{TOKEN_PREFIX}{body}.{_sign(key, body)}"


def user_of_token(key: bytes, token: str, now_s: float) -> str:
    """Whose token it is. Raises `InvalidToken`."""
    body, dot, signature = token.removeprefix(TOKEN_PREFIX).partition(".")
    if not token.startswith(TOKEN_PREFIX) or not dot or len(token) > _SIZE_MAX:
        raise InvalidToken("this is no token")
    if not hmac.compare_digest(_sign(key, body).encode(), signature.encode()):
        raise InvalidToken("the token is not signed with this node's key")
    try:
        user, ends_s = json.loads(_decode(body))
    except (ValueError, TypeError, binascii.Error):
        raise InvalidToken("the token has no user and end") from None
    if type(user) is not str or type(ends_s) is not int:
        raise InvalidToken("the token has no user and end")
    if ends_s <= now_s:
        raise InvalidToken("the token's time is over")
    return user


def _sign(key: bytes, body: str) -> str:
    return _encode(hmac.digest(key, f"{TOKEN_PREFIX}{body}".encode(), sha256))


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
