"""The examples of docs/protocol.md, parsed from the page and played against a node.

An example is a block of lines: ``C`` and ``N`` say who sends the frame, in JSON; the indented lines
below are the same in MessagePack. ``N~`` marks an answer with values that differ from node to node
(times, versions): of these only the shape is compared.
"""

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
from argon2 import PasswordHasher

from ganglion.broker.core.authentication import ScramSha256, Users
from ganglion.protocols.native.frames import pack_json
from ganglion.protocols.native.operations import (
    BATCH_MAX,
    CHANNELS_MAX,
    CREDIT_MAX,
    FATAL,
    Code,
    Operation,
)
from tests.protocols.native.link import NativeClient, NativeLink

RFC_USER = (
    f"user:{PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash('pencil')}:"
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)
"""The user of the example in RFC 7677, 3, as the users file has it."""

TEXT = (Path(__file__).parents[3] / "docs/protocol.md").read_text("utf-8")


class Example:
    """One frame of an example."""

    def __init__(self, who: str, line: str) -> None:
        self.is_client = who == "C"
        self.is_exact = who == "N"
        self.json = json.loads(line)
        self.hex = ""

    @property
    def msgpack(self) -> bytes:
        """The frame as its indented lines have it."""
        return bytes.fromhex(self.hex)

    @property
    def frame(self) -> list[Any]:
        """The frame that these bytes are."""
        frame: list[Any] = msgpack.unpackb(self.msgpack)
        return frame


def examples() -> dict[str, list[Example]]:
    """The blocks of the page by name, in order."""
    found: dict[str, list[Example]] = {}
    for name, body in re.findall(r"```frames ([\w-]+)\n(.*?)```", TEXT, re.DOTALL):
        frames = found[name] = []
        for line in body.splitlines():
            if line.startswith(" "):
                frames[-1].hex += line.strip() + " "
            else:
                frames.append(Example(*line.split(" ", 1)))
    return found


EXAMPLES = examples()


def as_json(value: Any) -> Any:
    """A frame of MessagePack as the rule for bytes in JSON has it."""
    return json.loads(pack_json(value))


def shape(value: Any) -> Any:
    """What is left of a value without what may differ from node to node."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_the_page_has_examples() -> None:
    """None was overlooked: each is a block with at least one frame."""
    assert len(EXAMPLES) == TEXT.count("```frames") > 12
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_forms_say_the_same(name: str) -> None:
    """The bytes of an example are its JSON."""
    for example in EXAMPLES[name]:
        assert as_json(example.frame) == example.json


@pytest.mark.parametrize("is_json", [False, True], ids=["msgpack", "json"])
def test_the_examples_are_what_a_node_says(is_json: bool) -> None:
    """One session plays all examples in the order of the page, in either form."""
    link = NativeLink()
    refused = link.open(is_json=is_json)
    play(refused, EXAMPLES["hello-refused"])
    assert refused.is_gone
    client = link.open(is_json=is_json)
    for name, frames in EXAMPLES.items():
        if name not in ("hello-refused", "scram"):
            play(client, frames)
    assert not client.is_gone


@pytest.mark.parametrize("is_json", [False, True], ids=["msgpack", "json"])
def test_the_example_of_scram(is_json: bool) -> None:
    """It is that of RFC 7677, down to the node's signature."""
    users = Users.parse(RFC_USER, "users")
    nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    link = NativeLink(mechanisms={ScramSha256.name: lambda: ScramSha256(users, lambda: nonce)})
    greeting = play(link.open(is_json=is_json), EXAMPLES["scram"])[-1]
    expected = EXAMPLES["scram"][-1]
    assert greeting[2]["data"] == (expected.json if is_json else expected.frame)[2]["data"]


def play(client: NativeClient, frames: list[Example]) -> list[list[Any]]:
    """Send what the client says, and compare what comes: that."""
    all_that_came: list[list[Any]] = []
    calls: dict[int, int] = {}  # of the page and of the node
    for example in frames:
        if example.is_client:
            assert client.take() == [], example.json
            frame = example.json if client.is_json else example.frame
            if frame[0] in (Operation.ANSWER, Operation.FAIL):
                frame = [*frame[:3], calls[frame[3]], *frame[4:]]
            if client.is_json or frame != example.frame:
                client.send(frame)
            else:
                client.send_bytes(example.msgpack)
            continue
        came = client.frames()
        assert came, example.json
        frame = came.pop(0)
        all_that_came.append(frame)
        expected = example.json if client.is_json else example.frame
        if frame[0] == Operation.CALL:
            calls[expected[2]] = frame[2]
        if example.is_exact:
            assert frame == expected
        else:
            assert shape(frame) == shape(expected)
    assert client.take() == []
    return all_that_came


def test_every_operation_is_on_the_page() -> None:
    """Number and name of each operation stand together in a heading."""
    headings = "\n".join(line for line in TEXT.splitlines() if line.startswith("### "))
    for each in Operation:
        assert re.search(rf"\b{each.value}\b", headings), each.name


def test_every_error_is_on_the_page() -> None:
    """Codes are in the table, those that end the connection in its second half."""
    table = TEXT[TEXT.index("## 5. Errors") :]
    first, _, second = table.partition("| these end the connection: | | |")
    for code in Code:
        part = second if code in FATAL else first
        assert f"| `{code}` |" in part, code


def test_the_limits_are_those_of_the_code() -> None:
    """What the page says of limits is what is enforced."""
    section = TEXT[TEXT.index("## 6. Limits") :]
    for name, value in (
        ("batch_max", BATCH_MAX),
        ("channels_max", CHANNELS_MAX),
        ("credit_max", CREDIT_MAX),
    ):
        assert f"| `{name}` | {value:,} |" in section
