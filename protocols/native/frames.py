"""Frames to bytes and back, in MessagePack and in JSON.

`pack` and `FrameReader` are for MessagePack, `pack_json` and `unpack_json` for JSON. A frame is a
tuple whose first element is its operation. What comes in may be hostile: a reader never holds more
than its limits say, and raises `FrameError` for everything that is not a frame.

What a decoder makes of a frame can be many times as large as its bytes: an empty map is one byte on
the wire and 64 in memory. So the elements of a frame are counted while it is read.
"""

import json
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard, cast

import msgpack

from ganglion import GanglionError
from ganglion.protocols.native.operations import BATCH_MAX, Code

__all__ = [
    "ELEMENTS_MAX",
    "OPEN_LIMITS",
    "UNKNOWN_LIMITS",
    "Frame",
    "FrameError",
    "FrameLimits",
    "FrameReader",
    "base64_of",
    "bytes_of",
    "is_array",
    "is_map",
    "pack",
    "pack_json",
    "unpack_json",
]

Frame = tuple[Any, ...]

ELEMENTS_MAX: Final = 65_536
"""Elements of arrays and members of maps of one frame, about."""
_READ_MAX_BYTES = 512 * 1024  # fed at once: more than any read has
_BUFFER_KEPT_MAX = 1024 * 1024  # bytes: the buffer of a reader never shrinks

pack: Callable[[object], bytes] = msgpack.Packer().pack  # a Packer each time would cost 1 µs
"""A frame as MessagePack."""


class FrameError(GanglionError):
    """What came is no frame; `code` is `MALFORMED` or `TOO_LARGE`."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """How large a frame may be."""

    frame_max_bytes: int
    array_max: int = BATCH_MAX
    """Elements of any array."""
    map_max: int = 256
    """Members of any map."""


OPEN_LIMITS: Final = FrameLimits(16 * 1024 * 1024)
"""For a peer that is known; what clients use for what comes from a node is larger."""
UNKNOWN_LIMITS: Final = FrameLimits(64 * 1024, 32, 64)
"""Before a peer has said who it is."""


class FrameReader:
    """Takes bytes of MessagePack as they come and gives whole frames."""

    __slots__ = ("_budget", "_counted_from", "_unpacker", "end", "fed", "limits", "read_bytes")

    def __init__(self, limits: FrameLimits) -> None:
        self.limits = limits
        self._budget = _Budget()
        self._unpacker = msgpack.Unpacker(
            use_list=False,
            strict_map_key=True,
            list_hook=self._budget.count,
            object_hook=self._budget.count,
            max_buffer_size=limits.frame_max_bytes + _READ_MAX_BYTES,
            max_array_len=limits.array_max,
            max_map_len=limits.map_max,
            max_ext_len=0,
        )
        self.fed: int = 0
        """How many bytes were fed, those of `read_bytes` included."""
        self._counted_from: int = -1  # where the frame began whose elements the budget is for
        self.end: int = 0
        """Where the last whole frame ended, in bytes since the first that was fed.

        No beginning of a frame is held where it is the same as `fed`.
        """
        self.read_bytes: Callable[[int], object] = self._unpacker.read_bytes
        """Take so many bytes that begin with a frame and end with one; call `skipped` then."""

    @property
    def is_small(self) -> bool:
        """Whether it holds no more memory than it is worth keeping for."""
        return self.fed < _BUFFER_KEPT_MAX

    def feed(self, data: bytes | memoryview) -> None:
        """These bytes came. Raises `FrameError` when there are more than a frame may have."""
        if self.end != self._counted_from:  # another frame has begun since
            self._counted_from = self.end
            self._budget.left = ELEMENTS_MAX + len(data)
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            raise self._too_large() from None
        self.fed += len(data)

    def skipped(self, size_bytes: int) -> None:
        """So many bytes were taken with `read_bytes`."""
        self.end += size_bytes

    def next(self) -> Frame | None:
        """The next whole frame; None: the rest of it has to come first. Raises `FrameError`."""
        try:
            frame: object = self._unpacker.unpack()
        except msgpack.OutOfData:
            if self.fed - self.end > self.limits.frame_max_bytes:
                raise self._too_large() from None
            return None
        except FrameError:
            raise
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            text = str(error)
            if "exceeds max_" in text and "max_ext" not in text:
                raise FrameError(Code.TOO_LARGE, f"a frame has too many elements: {text}") from None
            what = text or "not MessagePack"
            raise FrameError(Code.MALFORMED, f"a frame cannot be read: {what}") from None
        before, self.end = self.end, self._unpacker.tell()
        if self.end - before > self.limits.frame_max_bytes:
            raise self._too_large()
        return _as_frame(frame)

    def _too_large(self) -> FrameError:
        limit = self.limits.frame_max_bytes
        return FrameError(Code.TOO_LARGE, f"a frame is over {limit} bytes")


class _Budget:
    """How many elements what was fed may still have."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = ELEMENTS_MAX

    def count(self, value: Any) -> Any:
        self.left -= len(value)
        if self.left < 0:
            raise FrameError(Code.TOO_LARGE, f"a frame has over {ELEMENTS_MAX} elements")
        return value


def _as_frame(value: Any) -> Frame:
    if value.__class__ is not tuple or not value or type(value[0]) is not int:
        raise FrameError(
            Code.MALFORMED, "a frame is an array that begins with the number of an operation"
        )
    frame: Frame = value
    return frame


def is_array(value: object) -> TypeGuard[tuple[object, ...]]:
    """Whether an element of a frame is an array."""
    return isinstance(value, tuple)


def is_map(value: object) -> TypeGuard[dict[str, object]]:
    """Whether an element of a frame is a map. Its names are text."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in cast("Any", value))


# -- JSON ------------------------------------------------------------------------------------------


def pack_json(frame: Sequence[object]) -> bytes:
    """A frame as a line of JSON."""
    text = json.dumps(_to_json(frame), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _to_json(value: object) -> object:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64_of(value)
    if isinstance(value, (list, tuple, range)):
        return [_to_json(each) for each in cast("Sequence[object]", value)]
    if isinstance(value, dict):
        return {key: _to_json(each) for key, each in cast("dict[str, object]", value).items()}
    return value


def base64_of(data: bytes) -> dict[str, str]:
    """Bytes as JSON has them where they are not UTF-8."""
    return {"base64": b64encode(data).decode()}


def bytes_of(value: object) -> bytes | None:
    """Bytes from what a frame has in their place; None: it is nothing of the kind."""
    if type(value) is bytes:
        return value
    if type(value) is str:
        return value.encode()
    if is_map(value):
        text = value.get("base64")
        if type(text) is str and len(value) == 1:
            try:
                return b64decode(text, validate=True)
            except (BadBase64, ValueError):
                return None
    return None


def unpack_json(data: bytes, limits: FrameLimits) -> list[Frame]:
    """The frames of a text message, one a line. Raises `FrameError`."""
    frames: list[Frame] = []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        if len(line) > limits.frame_max_bytes:
            raise FrameError(Code.TOO_LARGE, f"a frame is over {limits.frame_max_bytes} bytes")
        try:
            frame: object = json.loads(line.decode(), parse_constant=_no_constant)
            if b"\\u" in line:
                json.dumps(frame, ensure_ascii=False).encode()  # no half of a surrogate pair
        except (ValueError, RecursionError) as error:
            raise FrameError(Code.MALFORMED, f"a frame cannot be read: {error}") from None
        _check_size(frame, limits, ELEMENTS_MAX)
        frames.append(_as_frame(_frozen(frame)))
    return frames


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_size(value: object, limits: FrameLimits, left: int) -> int:
    """What is left of the elements that it may have. Raises `FrameError`."""
    inner: Sequence[object]
    if isinstance(value, list):
        inner = cast("list[object]", value)
        limit, what = limits.array_max, "array"
    elif isinstance(value, dict):
        inner = list(cast("dict[str, object]", value).values())
        limit, what = limits.map_max, "map"
    else:
        return left
    left -= len(inner)
    if len(inner) > limit or left < 0:
        raise FrameError(
            Code.TOO_LARGE, f"a frame has too many elements: {len(inner)} in one {what}"
        )
    for each in inner:
        left = _check_size(each, limits, left)
    return left


def _frozen(value: object) -> object:
    """Arrays as tuples, as MessagePack gives them."""
    if isinstance(value, list):
        return tuple(_frozen(each) for each in cast("list[object]", value))
    if isinstance(value, dict):
        members = cast("dict[str, object]", value)
        return {key: _frozen(each) for key, each in members.items()}
    return value
