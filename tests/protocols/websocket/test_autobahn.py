"""Each case of the Autobahn suite, as it sends it, whole, byte by byte, with bytes behind it."""

import re
from collections import Counter
from collections.abc import Callable

import pytest

from ganglion.broker.core.limits import Limits
from tests.protocols.web_link import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    WebLink,
    byte_by_byte,
    frame,
    whole,
)
from tests.protocols.websocket.autobahn import CASES, LARGE, Case

LIMITS = Limits(connect_size_max_bytes=16 * 1024 * 1024)  # a first message may be as large
SLOW = re.compile(r"9\.[12]\.[456]|9\.[34]\.\d|9\.[56]\.[123]")
"""Those that take more than a quarter of a second."""
SMALL_BYTES = 4096


def play(case: Case, feed: Callable[[bytes], list[bytes]] | None, behind: bytes = b"") -> None:
    """Send what the case says and check all that comes back."""
    link = WebLink(limits=LIMITS)
    peer = link.open("binary" if case.is_binary else "text")
    pieces = list(case.sent) if feed is None else feed(b"".join(case.sent) + behind)
    peer.send(*pieces)
    if feed is None and behind:
        peer.send(behind)
    frames = peer.frames()
    opcode = BINARY if case.is_binary else TEXT
    echoed = [each.payload for each in frames if each.opcode == opcode]
    if case.is_binary:
        assert b"".join(echoed) == b"".join(case.echoed)
    else:
        assert echoed == list(case.echoed)
    pongs = [*case.pongs, *([b"behind"] if behind and case.close is None else [])]
    assert [each.payload for each in frames if each.opcode == PONG] == pongs
    closes = [each.code for each in frames if each.opcode == CLOSE]
    assert closes == ([] if case.close is None else [case.close])
    assert all(each.fin and not each.rsv for each in frames)
    if closes:
        assert frames[-1].opcode == CLOSE
    assert peer.is_closed() == (case.close is not None)
    told = [each for each in link.inner[0].events if each.startswith("lost")]
    assert len(told) == (case.close is not None)


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
small_case = pytest.mark.parametrize(
    "case",
    [case for case in CASES if sum(map(len, case.sent)) <= SMALL_BYTES],
    ids=lambda case: case.number,
)


@every_case
def test_case_as_the_suite_sends_it(case: Case) -> None:
    """What comes back is what the suite expects."""
    play(case, None)


@every_case
def test_case_whole_with_bytes_behind(case: Case) -> None:
    """All at once, and a ping behind it: answered while the connection is open, else ignored."""
    play(case, whole, frame(PING, b"behind"))


@small_case
def test_case_byte_by_byte(case: Case) -> None:
    """How the network cuts it makes no difference."""
    play(case, byte_by_byte)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.slow] if SLOW.fullmatch(number) else [])
        for number in LARGE
    ],
)
def test_large_case(number: str) -> None:
    """Messages of every size, cut and chopped in every way, and many in a row."""
    play(LARGE[number](), None)


def test_the_suite_is_complete() -> None:
    """Each case of the suite is there once: so many there are in each of its categories."""
    numbers = [*(case.number for case in CASES), *LARGE]
    assert len(numbers) == len(set(numbers))
    of_the_suite = Counter(int(each.split(".")[0]) for each in numbers if "-" not in each)
    assert of_the_suite == {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 9: 54, 10: 1}
