"""Frames of MessagePack in pieces: what a reader may hold is counted frame by frame."""

import pytest

from ganglion.protocols.native.frames import (
    ELEMENTS_MAX,
    FrameError,
    FrameLimits,
    FrameReader,
    pack,
)
from ganglion.protocols.native.operations import Code

LIMITS = FrameLimits(1024 * 1024, array_max=ELEMENTS_MAX * 4)


def read_in_pieces(frame: bytes, piece_bytes: int) -> None:
    """Feed a frame that must never come out."""
    reader = FrameReader(LIMITS)
    for start in range(0, len(frame), piece_bytes):
        reader.feed(frame[start : start + piece_bytes])
        assert reader.next() is None


def test_elements_are_counted_for_each_frame() -> None:
    """A peer may send frames for ever, however its bytes are cut: no end of a read ends a frame."""
    frame = pack((1, "topic", ["x"] * 1000))
    reader = FrameReader(LIMITS)
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
