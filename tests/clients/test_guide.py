"""The examples of docs/client.md, parsed from the page and run, under asyncio and trio.

Each section is a test. Its blocks share their names, a connected ``mesh`` and the ``Order`` of the
first section; what they print is compared with the text that follows them. What a reader need not
see stands in comments of the page in front of a block: ``<!-- beside f(), g() -->`` runs these
while the block does, ``<!-- for ever -->`` says that it ends only when it is told to, which is done
when it has printed all that the page promises, and ``<!-- in a thread -->`` that it blocks.
"""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio import to_thread

from ganglion.clients.mesh import Mesh, connect
from tests.clients.backends import BACKENDS, eventually, run
from tests.support import free_port, start_daemon

GUIDE = Path(__file__).parents[2] / "docs" / "client.md"
BLOCK = re.compile(
    r"(?:<!-- (?P<comment>[^\n]*) -->\n)?```python\n(?P<code>.*?)```"
    r"(?:\n+```text\n(?P<prints>.*?)```)?",
    re.DOTALL,
)
EVERYTHING = '[[rules]]\neffect = "allow"\ntopics = ["#", "$queue/#", "$stream/#"]\n'

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Example:
    """A block of the page."""

    code: str
    beside: str
    is_endless: bool
    is_blocking: bool
    """Whether it is a program of its own kind, or one with a loop of its own."""
    prints: list[str] | None
    """What the page says that it prints; None: the page says nothing of that."""


def sections() -> dict[str, list[Example]]:
    """The examples of the page, by the heading above them."""
    found: dict[str, list[Example]] = {}
    for section in GUIDE.read_text("utf-8").split("\n## ")[1:]:
        examples = []
        for block in BLOCK.finditer(section):
            comment = block["comment"] or ""
            assert comment in ("", "for ever", "in a thread") or comment.startswith("beside ")
            examples.append(
                Example(
                    block["code"],
                    comment.removeprefix("beside ") if comment.startswith("beside ") else "",
                    comment == "for ever",
                    comment == "in a thread" or "asyncio.run(" in block["code"],
                    None if block["prints"] is None else block["prints"].splitlines(),
                )
            )
        if examples:
            found[section.partition("\n")[0]] = examples
    return found


SECTIONS = sections()


@dataclass(frozen=True)
class Place:
    """A directory with the files that examples read, and where the nodes of the page really are."""

    backend: str
    directory: Path
    native: str
    addresses: dict[str, str]

    def code(self, text: str) -> str:
        """Python of the page, with the addresses of this node."""
        for url, actual in self.addresses.items():
            text = text.replace(f'"{url}"', f'"{actual}"')
        return text


@pytest.fixture(scope="module", params=BACKENDS)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A node with a user, a token and a certificate, of its own for each backend."""
    directory = tmp_path_factory.mktemp("guide")
    data = str(directory / "data")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate = directory / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    command = [sys.executable, "-m", "ganglion"]
    passwd = [*command, "passwd", "add", "billing", "--data", data]
    subprocess.run(passwd, input=b"secret\n", check=True, capture_output=True)
    made = subprocess.run(
        [*command, "token", "billing", "--data", data], check=True, capture_output=True
    )
    (directory / "token").write_bytes(made.stdout)
    with start_daemon(
        *("--native", "127.0.0.1:0", "--natives", "127.0.0.1:0", "--tls-cert", str(certificate)),
        *("--data", data),
        config=f"[access]\nanonymous = true\n{EVERYTHING}",
    ) as daemon:
        native = f"ganglion://127.0.0.1:{daemon.ports['native']}"
        yield Place(
            request.param,
            directory,
            native,
            {
                "ganglion://localhost:7883": native,
                "ganglion://a.example": f"ganglion://127.0.0.1:{free_port()}",
                "ganglion://b.example": native,
                "ganglions://broker.example": f"ganglions://127.0.0.1:{daemon.ports['natives']}",
            },
        )


class Player:
    """Runs the examples of a section, one after the other."""

    def __init__(self, place: Place, mesh: Mesh) -> None:
        self._place = place
        self._mesh = mesh
        self._printed: list[str] = []
        self._names: dict[str, Any] = {"__name__": "guide", "mesh": mesh, "print": self._print}
        exec("import ganglion", self._names)
        (order,) = [each for each in SECTIONS["In five minutes"] if "class Order" in each.code]
        exec(order.code, self._names)

    def _print(self, *values: object) -> None:
        # An editor takes blanks off the end of a line of the page.
        self._printed.append(" ".join(str(value) for value in values).rstrip())

    async def play(self, example: Example) -> None:
        """Run it to its end, and compare."""
        self._printed.clear()
        self._names["mesh"] = self._mesh
        async with anyio.create_task_group() as beside:
            if example.beside:
                beside.start_soon(self._run, f"import anyio\n{all_of(example.beside)}")
                await self._opened(len(calls_in(example.beside)))
            if example.is_endless:
                beside.start_soon(self._run, example.code)
                await eventually(lambda: self._printed == example.prints)
            else:
                await self._run(example.code, is_blocking=example.is_blocking)
            beside.cancel_scope.cancel()
        if example.prints is not None:
            assert self._printed == example.prints, example.code

    async def _run(self, text: str, *, is_blocking: bool = False) -> None:
        code = compile(
            self._place.code(text),
            "guide",
            "exec",
            ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        if is_blocking:
            await to_thread.run_sync(exec, code, self._names)
            return
        running = eval(code, self._names)
        if inspect.iscoroutine(running):
            await running

    async def _opened(self, count: int) -> None:
        channels = self._mesh._session._channels
        await eventually(
            lambda: len(channels) == count and all(each._opened.is_set() for each in channels)
        )


def calls_in(text: str) -> list[str]:
    """The calls that a comment names."""
    return re.findall(r"\w+\([^)]*\)", text)


def all_of(calls: str) -> str:
    """Code that runs these calls beside each other."""
    starts = "\n".join(f"    _tasks.start_soon(lambda: {call})" for call in calls_in(calls))
    return f"async with anyio.create_task_group() as _tasks:\n{starts}\n"


@pytest.mark.parametrize("section", list(SECTIONS))
def test_the_examples_of_the_guide_are_true(
    place: Place, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example of the guide runs, and prints what the guide says."""
    monkeypatch.chdir(place.directory)

    async def main() -> None:
        async with connect(place.native) as mesh:
            player = Player(place, mesh)
            for example in SECTIONS[section]:
                await player.play(example)

    run(place.backend, main)


def test_the_program_of_the_readme_is_true(place: Place) -> None:
    """It does its job, and waits for the next one."""
    text = (GUIDE.parents[1] / "README.md").read_text("utf-8")
    (code,) = [each["code"] for each in BLOCK.finditer(text) if "asyncio.run(" in each["code"]]
    program = [sys.executable, "-u", "-c", place.code(code)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"{'order': 7}\n"
        finally:
            process.kill()


def test_every_block_of_the_guide_is_found() -> None:
    """No block of Python escapes, and neither does what one prints."""
    text = GUIDE.read_text("utf-8")
    found = [each for examples in SECTIONS.values() for each in examples]
    assert len(found) == text.count("```python\n") > 25
    assert len([each for each in found if each.prints is not None]) == text.count("```text\n")
    assert len([each for each in found if each.beside or each.is_endless or each.is_blocking]) == (
        text.count("<!--") + text.count("asyncio.run(")
    )
