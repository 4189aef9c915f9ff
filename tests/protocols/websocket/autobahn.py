"""The cases of the Autobahn WebSocket test suite for servers, by its numbers.

The suite itself (autobahntestsuite 25.10.1) is Python 2 code: it installs under Python 3 and cannot
be imported there. So each case is written anew from what its description says is sent and what is
expected. All 301 cases of categories 1 to 10 are here; there is no 8, and no 11. The 216 of
compression (12, 13) are in test_deflate.py. What is beside the suite has a number with a word
behind it (``6.6.1-cut``). The suite measures round trips in 9.7 and 9.8: here they only have to be
right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tests.protocols.web_link import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

__all__ = ["CASES", "LARGE", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """What a client sends, and what the server does about it."""

    number: str
    sent: tuple[bytes, ...]
    """Frames, or pieces of them, as the suite sends them: each is a write of its own."""
    echoed: tuple[bytes, ...] = ()
    """Messages that come back."""
    pongs: tuple[bytes, ...] = ()
    close: int | None = None
    """The code of the server's Close; None while the connection stays open."""
    is_binary: bool = False


def _close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def _cut(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[at : at + size] for at in range(0, len(data), size))


def _fragments(opcode: int, payload: bytes, size: int) -> tuple[bytes, ...]:
    pieces = _cut(payload, size) or (b"",)
    last = len(pieces) - 1
    return tuple(
        frame(opcode if not number else CONTINUATION, piece, fin=number == last)
        for number, piece in enumerate(pieces)
    )


def _framing() -> Iterator[Case]:
    sizes = (0, 125, 126, 127, 128, 65_535, 65_536)
    for number, size in enumerate(sizes, 1):
        yield Case(f"1.1.{number}", (frame(TEXT, b"*" * size),), (b"*" * size,))
        payload = b"\xfe" * size
        yield Case(f"1.2.{number}", (frame(BINARY, payload),), (payload,), is_binary=True)
    big = b"*" * 65_536
    yield Case("1.1.8", _cut(frame(TEXT, big), 997), (big,))
    yield Case("1.2.8", _cut(frame(BINARY, big), 997), (big,), is_binary=True)


def _pings() -> Iterator[Case]:
    hello = b"Hello, world!"
    odd = bytes((0x00, 0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0x00, 0xFF))
    yield Case("2.1", (frame(PING),), pongs=(b"",))
    yield Case("2.2", (frame(PING, hello),), pongs=(hello,))
    yield Case("2.3", (frame(PING, odd),), pongs=(odd,))
    yield Case("2.4", (frame(PING, b"\xfe" * 125),), pongs=(b"\xfe" * 125,))
    yield Case("2.5", (frame(PING, b"\xfe" * 126),), close=1002)
    yield Case("2.6", _cut(frame(PING, b"\xfe" * 125), 1), pongs=(b"\xfe" * 125,))
    yield Case("2.7", (frame(PONG),))
    yield Case("2.8", (frame(PONG, b"unsolicited"),))
    yield Case("2.9", (frame(PONG, b"unsolicited"), frame(PING, b"ping")), pongs=(b"ping",))
    ten = [b"payload-%d" % number for number in range(10)]
    pings = tuple(frame(PING, each) for each in ten)
    yield Case("2.10", pings, pongs=tuple(ten))
    yield Case("2.11", _cut(b"".join(pings), 1), pongs=tuple(ten))


def _reserved_bits() -> Iterator[Case]:
    hello = b"Hello, world!"
    text, ping = frame(TEXT, hello), frame(PING)
    yield Case("3.1", (frame(TEXT, hello, rsv=1),), close=1002)
    yield Case("3.2", (text, frame(TEXT, hello, rsv=2), ping), (hello,), close=1002)
    yield Case("3.3", (text + frame(TEXT, hello, rsv=3) + ping,), (hello,), close=1002)
    yield Case("3.4", _cut(text + frame(TEXT, hello, rsv=4) + ping, 1), (hello,), close=1002)
    yield Case("3.5", (frame(BINARY, b"\0\xff\xfe\xfd", rsv=5),), close=1002, is_binary=True)
    yield Case("3.6", (frame(PING, hello, rsv=6),), close=1002)
    yield Case("3.7", (frame(CLOSE, rsv=7),), close=1002)


def _opcodes() -> Iterator[Case]:
    hello = b"Hello, world!"
    text, ping = frame(TEXT, hello), frame(PING)
    for section, first in ((1, 3), (2, 11)):
        name = f"4.{section}"
        yield Case(f"{name}.1", (frame(first),), close=1002)
        yield Case(f"{name}.2", (frame(first + 1, b"reserved"),), close=1002)
        yield Case(f"{name}.3", (text, frame(first + 2), ping), (hello,), close=1002)
        yield Case(f"{name}.4", (text + frame(first + 3, hello) + ping,), (hello,), close=1002)
        data = text + frame(first + 4, hello) + ping
        yield Case(f"{name}.5", _cut(data, 1), (hello,), close=1002)


def _fragmentation() -> Iterator[Case]:
    one, two, both = b"fragment1", b"fragment2", b"fragment1fragment2"
    first, last = frame(TEXT, one, fin=False), frame(CONTINUATION, two)
    ping, text = frame(PING, b"ping"), frame(TEXT, b"Hello, world!")
    yield Case("5.1", (frame(PING, one, fin=False), last), close=1002)
    yield Case("5.2", (frame(PONG, one, fin=False), last), close=1002)
    yield Case("5.3", (first + last,), (both,))
    yield Case("5.4", (first, last), (both,))
    yield Case("5.5", _cut(first + last, 1), (both,))
    yield Case("5.6", (first + ping + last,), (both,), (b"ping",))
    yield Case("5.7", (first, ping, last), (both,), (b"ping",))
    yield Case("5.8", _cut(first + ping + last, 1), (both,), (b"ping",))
    for number, fin in ((9, True), (12, False)):
        lone = frame(CONTINUATION, b"non-continuation payload", fin=fin)
        yield Case(f"5.{number}", (lone + text,), close=1002)
        yield Case(f"5.{number + 1}", (lone, text), close=1002)
        yield Case(f"5.{number + 2}", _cut(lone + text, 1), close=1002)
    lone = frame(CONTINUATION, b"fragment3", fin=False)
    yield Case("5.15", (first, last, lone, frame(TEXT, b"fragment4")), (both,), close=1002)
    for number, fin in ((16, False), (17, True)):
        lone = frame(CONTINUATION, one, fin=fin)
        yield Case(f"5.{number}", (lone, frame(TEXT, two, fin=False), last), close=1002)
    yield Case("5.18", (first, frame(TEXT, two)), close=1002)
    parts = [b"fragment%d" % number for number in range(1, 6)]
    frames = [frame(TEXT, parts[0], fin=False)]
    frames += [frame(CONTINUATION, each, fin=False) for each in parts[1:4]]
    frames.append(frame(CONTINUATION, parts[4]))
    pings = [frame(PING, b"pongme %d!" % number) for number in (1, 2)]
    mixed = (*frames[:2], pings[0], *frames[2:4], pings[1], frames[4])
    answers = (b"pongme 1!", b"pongme 2!")
    yield Case("5.19", mixed, (b"".join(parts),), answers)
    yield Case("5.20", _cut(b"".join(mixed), 1), (b"".join(parts),), answers)


_VALID = "κόσμε Hello-µ@ßöäüàá-UTF-8!! ✓ 𝄞".encode()
_BROKEN = "Hello-µ@ßöäüàá-UTF-8!!".encode() + b"\xed\xa0\x80" + b"edited"

_GREEK = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"  # a word with U+1F79 in it
_LEADS = ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
_INCOMPLETE = [
    *(b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
    *(b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf"),
]
_HIGH_SURROGATES = (b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf")
_UTF8: dict[str, list[bytes]] = {
    "6.5": [f"hello{each}world".encode() for each in "$¢€𤭢"] + [_GREEK],
    "6.6": [_GREEK[:size] for size in range(1, len(_GREEK) + 1)],
    "6.7": [b"\0", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"],
    "6.8": [b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"],
    "6.9": [b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"],
    "6.10": [b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"],
    "6.11": [
        *(b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"),
        b"\xf4\x90\x80\x80",
    ],
    "6.12": [
        *(b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80", b"\x80\xbf\x80\xbf"),
        *(b"\x80\xbf\x80\xbf\x80", b"\x80\xbf\x80\xbf\x80\xbf", bytes(range(0x80, 0xBF))),
    ],
    "6.13": [b"".join(b"%c " % lead for lead in range(*leads)) for leads in _LEADS],
    "6.14": _INCOMPLETE,
    "6.15": [b"".join(_INCOMPLETE)],
    "6.16": [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"],
    "6.17": [
        *(b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf"),
        b"\xfc\x80\x80\x80\x80\xaf",
    ],
    "6.18": [
        *(b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf"),
        b"\xfc\x83\xbf\xbf\xbf\xbf",
    ],
    "6.19": [
        *(b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80"),
        b"\xfc\x80\x80\x80\x80\x80",
    ],
    "6.20": [*_HIGH_SURROGATES, b"\xed\xb0\x80", b"\xed\xbe\x80", b"\xed\xbf\xbf"],
    "6.21": [high + low for high in _HIGH_SURROGATES for low in (b"\xed\xb0\x80", b"\xed\xbf\xbf")],
    "6.22": [chr(plane << 16 | low).encode() for plane in range(17) for low in (0xFFFE, 0xFFFF)],
    "6.23": [chr(0xFFF9 + number).encode() for number in range(7)],
}
"""Payloads of text messages, by section; whether one is UTF-8 is Python's to say."""


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8() -> Iterator[Case]:
    yield Case("6.1.1", (frame(TEXT),), (b"",))
    nothing = [frame(TEXT, fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION)]
    yield Case("6.1.2", tuple(nothing), (b"",))
    nothing[1] = frame(CONTINUATION, b"middle frame payload", fin=False)
    yield Case("6.1.3", tuple(nothing), (b"middle frame payload",))
    yield Case("6.2.1", (frame(TEXT, _VALID),), (_VALID,))
    yield Case("6.2.2", _fragments(TEXT, _VALID, len(_VALID) // 2), (_VALID,))
    yield Case("6.2.3", _fragments(TEXT, _VALID, 1), (_VALID,))
    yield Case("6.2.4", _fragments(TEXT, _GREEK, 1), (_GREEK,))
    yield Case("6.3.1", (frame(TEXT, _BROKEN),), close=1007)
    yield Case("6.3.2", _fragments(TEXT, _BROKEN, 1), close=1007)
    # 6.4: it fails at the first byte that cannot be, though the message is not complete
    begun = _GREEK
    yield Case("6.4.1", (frame(TEXT, begun + b"\xf4\x90", fin=False),), close=1007)
    opened = (frame(TEXT, begun, fin=False), frame(CONTINUATION, b"\xf4\x90", fin=False))
    yield Case("6.4.2", opened, close=1007)
    header = frame(TEXT, begun + b"\xf4\x90\x80\x80edited")
    cut = len(header) - len(b"\x80\x80edited")
    yield Case("6.4.3", (header[:cut],), close=1007)
    yield Case("6.4.4", _cut(header[:cut], 1), close=1007)
    for number, texts in _UTF8.items():
        for index, text in enumerate(texts, 1):
            echoed, close = ((text,), None) if _is_utf8(text) else ((), 1007)
            yield Case(f"{number}.{index}", (frame(TEXT, text),), echoed, close=close)
            if len(text) > 1:
                pieces = _fragments(TEXT, text, 1)
                yield Case(f"{number}.{index}-cut", pieces, echoed, close=close)


def _closing() -> Iterator[Case]:
    hello, text = b"Hello World!", frame(TEXT, b"Hello World!")
    first = frame(TEXT, b"fragment1", fin=False)
    last = frame(CONTINUATION, b"fragment2")
    normal = _close(1000)
    yield Case("7.1.1", (text, normal), (hello,), close=1000)
    yield Case("7.1.2", (normal, normal), close=1000)
    yield Case("7.1.3", (normal, frame(PING)), close=1000)
    yield Case("7.1.4", (normal, text), close=1000)
    yield Case("7.1.5", (first, normal, last), close=1000)
    large = b"BAsd7&jh23" * 26_214
    yield Case("7.1.6", (frame(TEXT, large), normal, frame(PING)), (large,), close=1000)
    yield Case("7.3.1", (frame(CLOSE),), close=1005)
    yield Case("7.3.2", (frame(CLOSE, b"a"),), close=1002)
    yield Case("7.3.3", (normal,), close=1000)
    yield Case("7.3.4", (_close(1000, hello),), close=1000)
    yield Case("7.3.5", (_close(1000, b"*" * 123),), close=1000)
    yield Case("7.3.6", (_close(1000, b"*" * 124),), close=1002)
    yield Case("7.5.1", (_close(1000, _BROKEN),), close=1007)
    valid = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    for number, code in enumerate(valid, 1):
        yield Case(f"7.7.{number}", (_close(code),), close=code)
    for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield Case(f"7.9.{number}", (_close(code),), close=1002)
        yield Case(f"7.9.{number}-reason", (_close(code, b"why"),), close=1002)
    yield Case("7.13.1", (_close(5000),), close=1002)
    yield Case("7.13.2", (_close(65_535),), close=1002)
    yield Case("7.13.2-long", (frame(CLOSE, (65_536).to_bytes(4, "big")),), close=1002)


def _limits() -> Iterator[tuple[str, Callable[[], Case]]]:
    kib, mib = 1024, 1024 * 1024
    for section, opcode in ((1, TEXT), (2, BINARY)):
        for number, size in enumerate((64 * kib, 256 * kib, mib, 4 * mib, 8 * mib, 16 * mib), 1):
            name = f"9.{section}.{number}"
            yield name, partial(_large, name, opcode, size, _whole)
    sizes = (64, 256, kib, 4 * kib, 16 * kib, 64 * kib, 256 * kib, mib, 4 * mib)
    for section, opcode in ((3, TEXT), (4, BINARY)):
        for number, size in enumerate(sizes, 1):
            name = f"9.{section}.{number}"
            yield name, partial(_large, name, opcode, 4 * mib, partial(_fragments, size=size))
    for section, opcode in ((5, TEXT), (6, BINARY)):
        for number, size in enumerate((64, 128, 256, 512, kib, 2 * kib), 1):
            name = f"9.{section}.{number}"
            yield name, partial(_large, name, opcode, mib, partial(_chopped, size=size))
    for section, opcode in ((7, TEXT), (8, BINARY)):
        for number, size in enumerate((0, 16, 64, 256, kib, 4 * kib), 1):
            name = f"9.{section}.{number}"
            yield name, partial(_thousand, name, opcode, size)
    yield "10.1.1", partial(_large, "10.1.1", TEXT, 65_536, partial(_fragments, size=1300))


def _whole(opcode: int, data: bytes) -> tuple[bytes, ...]:
    return (frame(opcode, data),)


def _chopped(opcode: int, data: bytes, size: int) -> tuple[bytes, ...]:
    return _cut(frame(opcode, data), size)


def _large(
    number: str, opcode: int, size: int, send: Callable[[int, bytes], tuple[bytes, ...]]
) -> Case:
    data = b"*" * size
    return Case(number, send(opcode, data), (data,), is_binary=opcode == BINARY)


def _thousand(number: str, opcode: int, size: int) -> Case:
    data = b"*" * size
    frames = (frame(opcode, data),) * 1000
    return Case(number, frames, (data,) * 1000, is_binary=opcode == BINARY)


CASES = [
    *_framing(),
    *_pings(),
    *_reserved_bits(),
    *_opcodes(),
    *_fragmentation(),
    *_utf8(),
    *_closing(),
]
"""Those of categories 1 to 7."""

LARGE: dict[str, Callable[[], Case]] = dict(_limits())
"""Those of categories 9 and 10 by number, made when they are played: they are large."""
