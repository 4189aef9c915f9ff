"""Frames: read whole, byte by byte, with what follows; and what is no frame."""

import json
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.protocols.native.frames import (
    ELEMENTS_MAX,
    UNKNOWN_LIMITS,
    FrameError,
    FrameLimits,
    FrameReader,
    bytes_of,
    pack,
    pack_json,
    unpack_json,
)
from ganglion.protocols.native.operations import Code

LIMITS = FrameLimits(100_000, 1024, 256)

FRAMES: list[tuple[Any, ...]] = [
    (14,),
    (1, "a/b", b"payload"),
    (33, 7, "a/b", b"\xff\0", {"key": "k", "headers": {"a": "b"}}),
    (34, 8, ("a", "b"), (b"", b"x"), (None, {"text": True})),
    (42, 2**53 - 1, 5, (1, 2, 3), 0.5),
    (31, None, True, -1),
]


def read_all(data: bytes, step: int) -> list[tuple[Any, ...]]:
    """Every frame of the data, fed in pieces of this size."""
    reader = FrameReader(LIMITS)
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        while (frame := reader.next()) is not None:
            found.append(frame)
    assert reader.end == reader.fed
    return found


@pytest.mark.parametrize("frame", FRAMES)
def test_whole_and_byte_by_byte(frame: tuple[Any, ...]) -> None:
    """However the bytes are cut, the same frame comes out."""
    data = pack(frame)
    assert read_all(data, len(data)) == [frame]
    assert read_all(data, 1) == [frame]


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_frames_follow_each_other(step: int) -> None:
    """What comes behind a frame is the next one."""
    assert read_all(b"".join(map(pack, FRAMES)), step) == FRAMES


@pytest.mark.parametrize("frame", FRAMES)
def test_a_beginning_is_no_frame(frame: tuple[Any, ...]) -> None:
    """Without its last byte a frame is not there yet."""
    reader = FrameReader(LIMITS)
    reader.feed(pack(frame)[:-1])
    assert reader.next() is None
    assert reader.end < reader.fed


@pytest.mark.parametrize("frame", FRAMES)
def test_json_says_the_same(frame: tuple[Any, ...]) -> None:
    """A frame in JSON is the frame, but for bytes, which `bytes_of` gives."""
    assert unpack_json(pack_json(frame), LIMITS) == unpack_json(
        json.dumps(json.loads(pack_json(frame))).encode(), LIMITS
    )


@pytest.mark.parametrize("data", [b"", b"text", "ä".encode(), b"\xff\xfe", b"\0", b'"\\'])
def test_bytes_in_json(data: bytes) -> None:
    """Text where it is UTF-8, base64 where not; both come back as they were."""
    (frame,) = unpack_json(pack_json((1, "t", data)), LIMITS)
    assert bytes_of(frame[2]) == data


@pytest.mark.parametrize(
    "value", [1, None, True, ("a",), {"base64": "!"}, {"base64": 1}, {"base64": "", "x": 1}, {}]
)
def test_what_are_no_bytes(value: object) -> None:
    """Only text, bytes, and base64 that is right."""
    assert bytes_of(value) is None


HOSTILE = {
    "not used": b"\xc1",
    "not an array": b"\x01",
    "a map": b"\x80",
    "empty": b"\x90",
    "no operation": b"\x91\xa1x",
    "operation is true": b"\x91\xc3",
    "an extension": b"\x92\x01\xd4\x01\x00",
    "a timestamp": b"\x92\x01\xd6\xff\0\0\0\0",
    "not UTF-8": b"\x92\x01\xa2\xff\xfe",
    "a map with a number as name": b"\x92\x01\x81\x01\x01",
    "a map with an array as name": b"\x92\x01\x81\x90\x01",
    "too deep": b"\x91" * 2000,
}
TOO_LARGE = {
    "an endless array": b"\xdd\xff\xff\xff\xff",
    "too long an array": b"\x92\x01\xdc\x04\x01",
    "an endless map": b"\x92\x01\xdf\xff\xff\xff\xff",
    "too large": b"\x92\x01\xc6\x00\x02\x00\x00" + bytes(0x20000),
    "too many elements": pack((1, [[[None] * 1024] * 100])),
    "too many maps": pack((1, [[{}] * 1024] * 200)),
}


@pytest.mark.parametrize("name", [*HOSTILE, *TOO_LARGE])
@pytest.mark.parametrize("step", [1, 100_000], ids=["bytes", "whole"])
def test_hostile_bytes(name: str, step: int) -> None:
    """Each is found, as soon as it is there, and has its code."""
    data = HOSTILE.get(name) or TOO_LARGE[name]
    if step == 1 and len(data) > 3000:
        step = 1000
    with pytest.raises(FrameError) as caught:
        read_all(data, step)
    assert caught.value.code is (Code.MALFORMED if name in HOSTILE else Code.TOO_LARGE)


def test_a_huge_length_costs_nothing() -> None:
    """What a frame announces is not reserved before it has come."""
    reader = FrameReader(UNKNOWN_LIMITS)
    reader.feed(b"\x92\x01\xc6\xff\xff\xff\xff")
    assert reader.next() is None  # it may yet be too large
    for _ in range(65):
        reader.feed(bytes(1000))
        assert reader.next() is None
    reader.feed(bytes(1000))
    with pytest.raises(FrameError):
        reader.next()


def test_many_frames_of_many_elements() -> None:
    """The bound on elements is for each frame, not for all that come together."""
    frame = pack((1, [0] * 1000))
    count = 2 * ELEMENTS_MAX // 1000
    assert len(read_all(frame * count, len(frame) * 7)) == count


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[1", Code.MALFORMED),
        ("{}", Code.MALFORMED),
        ("[]", Code.MALFORMED),
        ("[true]", Code.MALFORMED),
        ("[1.5]", Code.MALFORMED),
        ("[1, NaN]", Code.MALFORMED),
        ("[1, Infinity]", Code.MALFORMED),
        ('[1, "\\ud800"]', Code.MALFORMED),
        ("[" * 5000, Code.MALFORMED),
        (f"[1, {[0] * 1025}]", Code.TOO_LARGE),
        ("[1," + ",".join(["[" + ",".join(["[]"] * 1000) + "]"] * 66) + "]", Code.TOO_LARGE),
        ('[1, "' + "x" * 200_000 + '"]', Code.TOO_LARGE),
    ],
)
def test_hostile_text(text: str, code: Code) -> None:
    """The same for JSON."""
    with pytest.raises(FrameError) as caught:
        unpack_json(text.encode(), FrameLimits(150_000))
    assert caught.value.code is code


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_give_frames_or_an_error(data: bytes, step: int) -> None:
    """Never another exception, and always arrays that begin with a number."""
    reader = FrameReader(UNKNOWN_LIMITS)
    with suppress(FrameError):
        for start in range(0, len(data), step):
            reader.feed(data[start : start + step])
            while (frame := reader.next()) is not None:
                assert type(frame[0]) is int


@given(st.text(max_size=200))
def test_any_text_gives_frames_or_an_error(text: str) -> None:
    """The same for JSON."""
    data = text.encode(errors="replace")
    with suppress(FrameError):
        for frame in unpack_json(data, UNKNOWN_LIMITS):
            assert type(frame[0]) is int


_scalars = st.none() | st.booleans() | st.integers(0, 2**53) | st.text(max_size=5) | st.binary()
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@pytest.mark.slow
@given(st.lists(_values, max_size=6), st.integers(0, 127), st.integers(1, 30))
def test_what_is_packed_is_read(rest: list[Any], operation: int, step: int) -> None:
    """Any frame comes back, however it is cut."""
    frame = (operation, *rest)
    assert read_all(pack(frame), step) == [frame]
    assert msgpack.unpackb(pack(frame), use_list=False) == frame


WIDE_LIMITS = FrameLimits(1024 * 1024, array_max=ELEMENTS_MAX * 4)


def read_in_pieces(frame: bytes, piece_bytes: int) -> None:
    """Feed a frame that must never come out."""
    reader = FrameReader(WIDE_LIMITS)
    for start in range(0, len(frame), piece_bytes):
        reader.feed(frame[start : start + piece_bytes])
        assert reader.next() is None


def test_elements_are_counted_for_each_frame() -> None:
    """A peer may send frames for ever, however its bytes are cut: no end of a read ends a frame."""
    frame = pack((1, "topic", ["x"] * 1000))
    reader = FrameReader(WIDE_LIMITS)
    reader.feed(frame[:5])
    rounds = 2 * ELEMENTS_MAX // 1000
    seen = 0
    for _ in range(rounds):
        reader.feed(frame[5:] + frame[:5])
        while reader.next() is not None:
            seen += 1
    assert seen == rounds


@pytest.mark.parametrize("piece_bytes", [1000, 10_000, 50_000])
def test_a_frame_with_too_many_elements_is_refused(piece_bytes: int) -> None:
    """In as many pieces as it may come, one frame has no more elements than it may."""
    frame = pack((1, [[[]] * 1000] * (3 * ELEMENTS_MAX // 1000)))
    with pytest.raises(FrameError) as caught:
        read_in_pieces(frame, piece_bytes)
    assert caught.value.code is Code.TOO_LARGE
