"""The rules of the house that no linter knows.

Each rule is a function from a module's source to the places where it is broken. It is held against
every module of the tree, and against a piece of source that breaks it: a rule that finds nothing
anywhere would promise nothing.
"""

import ast
import importlib
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_FOLDERS = ("bridges", "broker", "clients", "protocols")

LINES_MAX = 900
"""A longer module probably holds a second concern."""

LONG_MODULES: dict[str, str] = {}
"""Modules that may be longer, each with the reason why it is one concern."""

VAGUE_WORDS = frozenset({"common", "helper", "helpers", "manager", "misc", "util", "utils"})

OUTSIDE = frozenset(
    {
        *("socket", "_socket", "socketserver", "ssl", "_ssl", "http"),
        *("select", "selectors", "signal", "subprocess", "multiprocessing"),
        *("threading", "_thread", "concurrent", "queue", "sched", "time"),
        *("trio", "_trio", "anyio", "asyncio"),
    }
)
"""What brings the world in: input and output, threads, clocks."""

CLOCKS = frozenset({"now", "today", "utcnow"})

DIRECTIVE = re.compile(r"#\s*(noqa|type:\s*ignore|pyright:|ruff:\s*noqa|pragma)")
DIRECTIVE_WITH_REASON = re.compile(
    r"#\s*(?:noqa:\s*[A-Z]+\d++(?:,\s*[A-Z]+\d++)*+"
    r"|type:\s*ignore\[[a-z, -]+\]"
    r"|pyright:\s*(?:ignore\[\w+(?:,\s*\w+)*\]|basic|\w+=\w+)"
    r"|ruff:\s*noqa:\s*[A-Z]+\d++(?:,\s*[A-Z]+\d++)*+"
    r"|pragma:\s*no cover)"
    r"[\s#:,-]*\w+.*\w"
)

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def modules_of_package() -> list[Path]:
    """Every module that is shipped, by its path in the checkout."""
    found = [path for path in (ROOT / "src" / "ganglion").glob("*.py") if path.is_file()]
    for folder in PACKAGE_FOLDERS:
        found += (ROOT / folder).rglob("*.py")
    return sorted(found)


def modules_of_checkout() -> list[Path]:
    """Every module that is shipped, and those that test, measure and explain it."""
    found = modules_of_package()
    for folder in ("tests", "bench", "examples", "docs"):
        found += sorted(
            path for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts
        )
    return found


def name_of(path: Path) -> str:
    """The path of a module from the root of the checkout."""
    return path.relative_to(ROOT).as_posix()


def import_name_of(path: Path) -> str:
    """The name under which a shipped module is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else ("ganglion", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those inside of functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def vague_words(name: str) -> list[str]:
    """The words of a module's name that say nothing of what it is for."""
    return [word for word in Path(name).stem.split("_") if word in VAGUE_WORDS]


def outside_imports(source: str) -> list[str]:
    """Imports, and calls of clocks, through which a module would learn of the world by itself."""
    broken = [
        f"line {line}: {name}"
        for line, name in imports_of(source)
        if name.split(".")[0] in OUTSIDE or name == "importlib"
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id="open" | "input" | "print" | "__import__" as name):
                broken.append(f"line {node.lineno}: {name}()")
            case ast.Attribute(value=ast.Name(id="datetime" | "date"), attr=name) if name in CLOCKS:
                broken.append(f"line {node.lineno}: .{name}()")
            case _:
                pass
    return broken


def foreign_imports(source: str) -> list[str]:
    """Imports that are relative, or that name a folder of the checkout in place of the package."""
    return [
        f"line {line}: {name}"
        for line, name in imports_of(source)
        if name.startswith(".") or name.split(".")[0] in {*PACKAGE_FOLDERS, "src"}
    ]


def unexplained_directives(source: str) -> list[str]:
    """Ignored rules that do not say which one is ignored and why."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"line {token.start[0]}: {token.string}"
        for token in tokens
        if token.type == tokenize.COMMENT
        and DIRECTIVE.search(token.string)
        and not DIRECTIVE_WITH_REASON.search(token.string)
    ]


def unfinished(source: str) -> list[str]:
    """Marks of work that is left undone, in code and in comments."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"line {token.start[0]}: {token.string.strip()}"
        for token in tokens
        if token.type in (tokenize.COMMENT, tokenize.NAME) and UNFINISHED.search(token.string)
    ]


def hopeful_sleeps(source: str) -> list[str]:
    """Sleeps outside of a loop: they hope that something has happened when they end."""
    broken: list[str] = []

    def visit(node: ast.AST, in_loop: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            in_loop = False
        elif isinstance(node, (ast.While, ast.For, ast.AsyncFor)):
            in_loop = True
        elif isinstance(node, ast.Call) and not in_loop:
            match node.func:
                case ast.Attribute(value=ast.Name(id=module), attr="sleep"):
                    broken.append(f"line {node.lineno}: {module}.sleep()")
                case ast.Name(id="sleep"):
                    broken.append(f"line {node.lineno}: sleep()")
                case _:
                    pass
        for child in ast.iter_child_nodes(node):
            visit(child, in_loop)

    visit(ast.parse(source), in_loop=False)
    return broken


def skipped_tests(source: str) -> list[str]:
    """Tests that are skipped or expected to fail without a word why."""
    nodes = list(ast.walk(ast.parse(source)))
    explained = [
        node.func
        for node in nodes
        if isinstance(node, ast.Call) and any(each.arg == "reason" for each in node.keywords)
    ]
    broken: list[str] = []
    for node in nodes:
        match node:
            case ast.Attribute(
                value=ast.Attribute(attr="mark"), attr="skip" | "skipif" | "xfail" as mark
            ) if node not in explained:
                broken.append(f"line {node.lineno}: pytest.mark.{mark} without a reason")
            case _:
                pass
    return broken


def is_command(decorator: ast.expr) -> bool:
    """Whether a decorator makes a function a command, or a group of commands, of click."""
    match decorator:
        case ast.Call(func=ast.Attribute(attr="command" | "group")):
            return True
        case _:
            return False


package_module = pytest.mark.parametrize("path", modules_of_package(), ids=name_of)
checkout_module = pytest.mark.parametrize("path", modules_of_checkout(), ids=name_of)
sans_io_module = pytest.mark.parametrize(
    "path",
    [
        path
        for path in modules_of_package()
        if path.relative_to(ROOT).parts[:2] == ("broker", "core")
        or path.relative_to(ROOT).parts[0] == "protocols"
    ],
    ids=name_of,
)


@sans_io_module
def test_protocols_and_core_are_sans_io(path: Path) -> None:
    """Nothing under protocols/ and broker/core does I/O, starts threads or reads a clock."""
    assert outside_imports(path.read_text("utf-8")) == []


@checkout_module
def test_imports_name_the_package(path: Path) -> None:
    """Imports are absolute and name `ganglion`, not the folders that it is made of."""
    assert foreign_imports(path.read_text("utf-8")) == []


@checkout_module
def test_module_names_say_what_they_hold(path: Path) -> None:
    """No module is called util, helper, common, manager or misc."""
    assert vague_words(path.name) == []


@checkout_module
def test_ignored_rules_are_explained(path: Path) -> None:
    """A rule ignored on a line is named there, and the reason stands behind it."""
    assert unexplained_directives(path.read_text("utf-8")) == []


@package_module
def test_nothing_is_left_undone(path: Path) -> None:
    """No shipped module carries a note of what it should do and does not."""
    assert unfinished(path.read_text("utf-8")) == []


@package_module
def test_modules_have_one_concern(path: Path) -> None:
    """A module over 900 lines says in LONG_MODULES why it is one concern."""
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LINES_MAX or name_of(path) in LONG_MODULES


@package_module
def test_modules_say_what_they_are_for(path: Path) -> None:
    """Every module opens with a docstring of at least one full sentence."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert text is not None
    assert text.split("\n\n")[0].rstrip().endswith((".", ":"))


@package_module
def test_public_exports_are_bound_and_documented(path: Path) -> None:
    """Each name in a module's `__all__` exists, once, and its class or function says what it is."""
    module = importlib.import_module(import_name_of(path))
    exports: list[str] = list(getattr(module, "__all__", []))
    assert len(exports) == len(set(exports))
    for export in exports:
        value = getattr(module, export)
        if inspect.isclass(value) or inspect.isroutine(value):
            # A dataclass without a docstring is given its signature as one: that says nothing.
            text = value.__doc__ or ""
            assert text, f"{export} has no docstring"
            assert not text.startswith(f"{value.__name__}("), f"{export} has no docstring"


@package_module
def test_public_names_are_exported(path: Path) -> None:
    """Where a module has an `__all__`, it names every public class and function defined there.

    A command of the command line is no export: its group calls it.
    """
    module = importlib.import_module(import_name_of(path))
    if not hasattr(module, "__all__"):
        return
    defined = {
        node.name
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and not node.name.startswith("_")
        and not any(is_command(each) for each in node.decorator_list)
    }
    assert defined - set(module.__all__) == set()


@pytest.mark.parametrize(
    "path", [each for each in modules_of_checkout() if "tests" in each.parts], ids=name_of
)
def test_tests_wait_for_the_thing_itself(path: Path) -> None:
    """A test may sleep between two looks at a condition, never in the hope that it came true."""
    assert hopeful_sleeps(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "path", [each for each in modules_of_checkout() if "tests" in each.parts], ids=name_of
)
def test_skipped_tests_are_explained(path: Path) -> None:
    """A test that is skipped or expected to fail says why."""
    assert skipped_tests(path.read_text("utf-8")) == []


def test_every_ignored_lint_rule_carries_its_reason() -> None:
    """In pyproject.toml each rule that ruff is told to ignore is followed by a comment."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.flake8")]
    ignored = section[section.index("ignore = [") :].splitlines()
    rules = [line for line in ignored if re.match(r'\s*(".*"\s*=\s*\[)?"[A-Z]+\d*"', line)]
    assert len(rules) > 10
    assert [line for line in rules if not re.search(r"# \S+ \S+", line)] == []


@pytest.mark.skipif(sys.platform == "win32", reason="a checkout there may have no links")
def test_root_folders_are_linked_into_the_package() -> None:
    """`src/ganglion` holds relative links to the folders of the architecture, and only these."""
    links = {path.name: path for path in (ROOT / "src/ganglion").iterdir() if path.is_symlink()}
    assert sorted(links) == list(PACKAGE_FOLDERS)
    for name, path in links.items():
        assert path.readlink() == Path(f"../../{name}")


@pytest.mark.parametrize(
    "source",
    [
        "import trio",
        "import os.path, socket",
        "from ssl import SSLContext",
        "def f():\n    from time import monotonic",
        "def f():\n    import threading.local",
        "import importlib",
        "x = open('x')",
        "x = __import__('socket')",
        "from datetime import datetime\nx = datetime.now()",
    ],
)
def test_rule_of_sans_io_finds_breaks(source: str) -> None:
    """Each way to the world is found, also inside of a function."""
    assert outside_imports(source)


def test_rule_of_sans_io_lets_the_rest_pass() -> None:
    """Names that only resemble the forbidden ones are no breaks."""
    source = "import trioed\nfrom ganglion.broker.core import timers\nx.open()\nfrom a import time"
    assert outside_imports(source) == []


@pytest.mark.parametrize(
    "source", ["from . import x", "from ..a import x", "import broker.core", "from src.a import b"]
)
def test_rule_of_imports_finds_breaks(source: str) -> None:
    """Relative imports and imports of the bare folders are found."""
    assert foreign_imports(source)


@pytest.mark.parametrize("name", ["utils.py", "mqtt_helpers.py", "session_manager.py", "misc.py"])
def test_rule_of_names_finds_breaks(name: str) -> None:
    """A vague word is found alone and as a part of a name."""
    assert vague_words(name)


@pytest.mark.parametrize(
    "comment",
    ["noqa", "noqa: E501", "noqa: E501, S104", "type: ignore", "type: ignore[attr-defined]"],
)
def test_rule_of_directives_finds_breaks(comment: str) -> None:
    """A directive without a reason is found, and one without a rule even if it has a reason."""
    assert unexplained_directives(f"x = 1  # {comment}\n")
    bare = comment in ("noqa", "type: ignore")
    assert bool(unexplained_directives(f"x = 1  # {comment}  # the text is a URL\n")) == bare


@pytest.mark.parametrize(
    "comment",
    [
        "noqa: S104 - all addresses is what was asked for",
        "noqa: S104, E501: all addresses is what was asked for",
        "type: ignore[misc]  # the stub is wrong",
        "pyright: ignore[reportPrivateUsage]  # the test looks inside",
        "an ordinary comment on types",
    ],
)
def test_rule_of_directives_lets_reasons_pass(comment: str) -> None:
    """A reason may follow in the directive's comment or in one of its own."""
    assert unexplained_directives(f"x = 1  # {comment}\n") == []


@pytest.mark.parametrize("source", ["# FIXME: later\n", "raise NotImplementedError\n"])
def test_rule_of_unfinished_work_finds_breaks(source: str) -> None:
    """Notes in comments and stubs in code are found."""
    assert unfinished(source)


def test_rule_of_sleeps_finds_breaks() -> None:
    """A sleep outside of a loop is found, one between two looks at a condition passes."""
    assert hopeful_sleeps("async def test():\n    await trio.sleep(1)\n")
    assert hopeful_sleeps("for x in y:\n    def test():\n        time.sleep(1)\n")
    assert hopeful_sleeps("while not ready():\n    time.sleep(0.01)\n") == []


def test_rule_of_skips_finds_breaks() -> None:
    """A skip or an expected failure without `reason=` is found."""
    assert skipped_tests("@pytest.mark.skip\ndef test(): ...\n")
    assert skipped_tests("@pytest.mark.xfail()\ndef test(): ...\n")
    assert skipped_tests("@pytest.mark.skipif(a, reason='no IPv6')\ndef test(): ...\n") == []
