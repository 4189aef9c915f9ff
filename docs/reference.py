"""Writes docs/reference.md, the reference of the public names, from their docstrings.

    make reference

griffe reads the source without running it: names, signatures and docstrings, those of attributes
too. What is said here is only the order of the page, and what of a class is not for its users.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import griffe

__all__ = ["PARTS", "reference"]

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference.md"

PARTS: Final = (
    (
        "Connections",
        "connect Mesh State StateChange States Secret tls_context",
    ),
    ("Messages", "Message MessageOptions Receipt Publisher Subscription Overflow Retained"),
    ("Queues", "Queue Consumer Job QueueOptions QueueDescription StoredMessage"),
    (
        "Streams",
        """Stream Record Appended Follower StreamGroup GroupFollower GroupRecord StreamOptions
        StreamDescription""",
    ),
    ("Requests", "Request Service CircuitBreaker CircuitState CircuitStatistics"),
    ("Workers", "Worker Retry WorkerStatistics HandlerStatistics"),
    ("Values", "Codec JSON MSGPACK ValueCodec"),
    ("Traces", "TraceContext continuing current_trace"),
    (
        "Errors",
        """GanglionError ClientError Unreachable AuthenticationFailed ConnectionLost TimedOut Closed
        BadOption NotDecodable LeaseLost Refused NotAuthorised NotFound QueueFull WrongVersion
        NoResponders RespondersBusy ResponderFailed ResponderGone CircuitOpen
        BrokerNotInstalled""",
    ),
)
"""The headings of the page, and the names of `ganglion` below each."""

INTERNAL: Final = frozenset(
    {
        "at",
        "attach",
        "attachment",
        "begin",
        "call",
        "check",
        "codec",
        "fail",
        "give",
        "handle",
        "is_begun",
        "lease",
        "offer",
        "on_change",
        "on_detached",
        "on_frame",
        "on_opened",
        "on_taken",
        "opened",
        "opening",
        "operation",
        "publish_elements",
        "session",
    }
)
"""Members of channels and their items that only the client itself uses."""

_LINE_MAX: Final = 88
_CONTEXTS: Final = {"__enter__": "with", "__aenter__": "async with"}
_TESTING: Final = "ganglion.testing"

_ITEM = re.compile(r"\b_T\b")
_NAME = re.compile(r"(?<!`)`(\w+)((?:\.\w+)?)`(?!`)")
_CODE_FOLLOWS = re.compile(r"(?m)^::\n\n|(?<=:):$")
_DOCUMENT = re.compile(r"`docs/(\w+\.md)`")


def reference() -> str:
    """The page. Raises `LookupError` for a public name without a place, or without a docstring."""
    package = griffe.load("ganglion", search_paths=[str(ROOT / "src")])
    return _Reference(_actual(package)).page()


class _Reference:
    """The page of a package that griffe has read."""

    def __init__(self, package: griffe.Object) -> None:
        self._package = package
        self._testing = _actual(package["testing"])
        self._names = {name for _, names in PARTS for name in names.split()}
        public = {str(name) for name in package.exports or ()} - {"__version__", "sync"}
        if public != self._names:
            raise LookupError(f"PARTS and ganglion.__all__ differ: {public ^ self._names}")

    def page(self) -> str:
        """All of it."""
        parts = [
            "# Reference of the Python client",
            "Written by `make reference` from the docstrings; [client.md](client.md) explains.",
            "`ganglion.sync` has the same without `await`: [sync.md](sync.md).",
            "\n".join(self._contents()),
        ]
        for heading, names in PARTS:
            parts.append(f"## {heading}")
            for name in names.split():
                parts += self._entry(_actual(self._package[name]), name)
        parts.append("## Testing")
        parts.append(self._text(self._testing, _TESTING))
        for name in map(str, self._testing.exports or ()):
            parts += self._entry(_actual(self._testing[name]), name)
        return "\n\n".join(part for part in parts if part) + "\n"

    def _contents(self) -> Iterator[str]:
        for heading, names in PARTS:
            links = " · ".join(f"[{name}](#{name.lower()})" for name in names.split())
            yield f"- [{heading}](#{heading.lower()}): {links}"
        yield "- [Testing](#testing)"

    def _entry(self, entry: griffe.Object, name: str) -> Iterator[str]:
        """A public name."""
        yield f"### {name}"
        match entry:
            case griffe.Class():
                yield from self._class(entry, name)
            case griffe.Function():
                yield from self._function(entry, name)
            case griffe.Attribute(annotation=None):
                yield _code(f"{name} = {entry.value}")
                yield self._text(entry, name)
            case griffe.Attribute():
                yield _code(f"{name}: {entry.annotation}")
                yield self._text(entry, name)
            case _:
                raise LookupError(f"{name} is neither class nor function nor value")

    def _class(self, entry: griffe.Class, name: str) -> Iterator[str]:
        own = _members(entry)
        bases = [str(base).partition("[")[0] for base in entry.bases]
        # What comes out of a channel: the parameter of its base, which readers do not see.
        item = next(
            (str(base)[:-1].partition("[")[2] for base in entry.bases if "[" in str(base)), ""
        )
        if public := [f"`{base}`" for base in bases if base in self._names]:
            yield self._linked(f"Is a {' and a '.join(public)}.")
        yield self._text(entry, name)
        init = own.get("__init__")
        if isinstance(init, griffe.Function) and init.docstring is not None:
            yield from self._function(init, name)
        members = own
        for base in entry.mro():
            if base.name not in self._names:  # the other bases have entries of their own
                members = {**_members(base), **members}
        shown = {
            each: member
            for each, member in members.items()
            if each not in INTERNAL and not each.startswith("_")
        }
        is_record = init is None or "dataclass" in entry.labels
        yield "\n".join(self._attributes(shown, is_record=is_record))
        for word in _CONTEXTS:
            if word in members and members[word].docstring is not None:
                yield f"`{_CONTEXTS[word]}`: {self._text(members[word], f'{name}.{word}')}"
        for each, member in shown.items():
            if isinstance(member, griffe.Function):
                yield f"#### {name}.{each}"
                for line in self._function(member, each):
                    yield _ITEM.sub(item, line) if item else line

    def _attributes(self, members: dict[str, griffe.Object], *, is_record: bool) -> Iterator[str]:
        for name, member in members.items():
            if not isinstance(member, griffe.Attribute):
                continue
            if member.docstring is None and not is_record:
                continue
            annotation = f": {member.annotation}" if member.annotation else ""
            # What else is assigned is the business of a constructor.
            default = f" = {member.value}" if is_record and member.value is not None else ""
            text = "" if member.docstring is None else f": {self._text(member, name)}"
            yield f"- `{name}{annotation}{default}`{text}"

    def _function(self, function: griffe.Function, name: str) -> Iterator[str]:
        forms = function.overloads or [function]
        yield _code("\n".join(_signature(each, name) for each in forms))
        yield self._text(function, name)

    def _text(self, entry: griffe.Object, name: str) -> str:
        """The docstring in Markdown."""
        if entry.docstring is None:
            raise LookupError(f"{name} has no docstring")
        return self._linked(_CODE_FOLLOWS.sub("", entry.docstring.value))

    def _linked(self, text: str) -> str:
        """The names of this page and the other pages as links."""

        def link(found: re.Match[str]) -> str:
            name, member = found[1], found[2]
            if name not in self._names:
                return found[0]
            return f"[`{name}{member}`](#{name.lower()}{member[1:].lower()})"

        return _NAME.sub(link, _DOCUMENT.sub(r"[\1](\1)", text))


def _actual(found: griffe.Object | griffe.Alias) -> griffe.Object:
    """What a name that is imported stands for."""
    return found.final_target if isinstance(found, griffe.Alias) else found


def _members(entry: griffe.Class) -> dict[str, griffe.Object]:
    return {name: _actual(member) for name, member in entry.members.items()}


def _signature(function: griffe.Function, name: str) -> str:
    """How it is called, over several lines where one is too short."""
    parameters: list[str] = []
    kinds = griffe.ParameterKind
    is_keyword = False
    for each in function.parameters:
        if each.name in ("self", "cls"):
            continue
        if each.kind is kinds.keyword_only and not is_keyword:
            is_keyword = True
            parameters.append("*")
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(each.kind, "")
        is_keyword = is_keyword or stars == "*"
        default = "" if each.default is None or stars else f" = {each.default}"
        parameters.append(f"{stars}{each.name}: {each.annotation}{default}")
    head = f"{'async ' if 'async' in function.labels else ''}{name}("
    is_maker = function.name == "__init__"
    tail = ")" if is_maker or function.returns is None else f") -> {function.returns}"
    line = f"{head}{', '.join(parameters)}{tail}"
    if len(line) <= _LINE_MAX:
        return line
    return "\n".join([head, *(f"    {each}," for each in parameters), tail])


def _code(text: str) -> str:
    quoted = text.replace("'", '"')  # as ruff wants it, which formats the code of pages, too
    return f"```python\n{quoted}\n```"


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
