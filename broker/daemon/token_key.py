"""The file with the key of tokens: read by the node, made and used by ``ganglion token``."""

import os
import secrets
from pathlib import Path

from ganglion import GanglionError
from ganglion.broker.core.tokens import KEY_SIZE_MIN

__all__ = ["TokenKeyError", "make_token_key", "read_token_key"]

_SIZE_MAX = 4096  # bytes; more is a wrong file


class TokenKeyError(GanglionError):
    """The file cannot be read or made, or is no key; the message names it."""


def read_token_key(path: Path) -> bytes:
    """The key in a file. Raises `TokenKeyError`."""
    try:
        with path.open("rb") as stream:
            key = stream.read(_SIZE_MAX + 1)
    except OSError as error:
        raise TokenKeyError(f"cannot read {path}: {error.strerror}") from None
    if not KEY_SIZE_MIN <= len(key) <= _SIZE_MAX:
        raise TokenKeyError(
            f"{path} is no key: it has {len(key)} bytes, not {KEY_SIZE_MIN} or more"
        )
    return key


def make_token_key(path: Path) -> bytes:
    """A new key in a new file that only its owner may read. Raises `TokenKeyError`."""
    key = secrets.token_bytes(KEY_SIZE_MIN)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, key)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise TokenKeyError(f"cannot make {path}: {error.strerror}") from None
    return key
