"""Nodes by name: a TOML file in the user's configuration directory, readable by the user alone.

``$XDG_CONFIG_HOME/ganglion/contexts.toml`` (``~/.config`` without the variable)::

    current = "prod"

    [contexts.prod]
    url = "ganglions://broker.example.com:7884"
    user = "ada"
    password = "…"

The file is written as a whole, with mode 0600, and replaced in one step.
"""

import json
import os
import stat
import tempfile
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from ganglion import GanglionError

__all__ = ["Context", "ContextError", "Contexts", "contexts_path", "load_contexts"]


class ContextError(GanglionError):
    """The file of contexts cannot be used, or lacks what is wanted; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A node, and who we are there."""

    url: str
    user: str | None = None
    password: str | None = None
    token: str | None = None
    ca: str | None = None
    """File with the authorities to trust (PEM)."""
    cert: str | None = None
    """File with our certificate (PEM)."""
    cert_key: str | None = None
    insecure: bool = False
    """Whether anybody's certificate is good enough."""


_NAMES = {each.name: bool if each.name == "insecure" else str for each in fields(Context)}


@dataclass(slots=True)
class Contexts:
    """All contexts, and the name of the one that is used when nothing else is said."""

    path: Path
    current: str | None = None
    by_name: dict[str, Context] = field(default_factory=dict[str, Context])

    def find(self, name: str) -> Context:
        """The context of this name. Raises `ContextError`."""
        try:
            return self.by_name[name]
        except KeyError:
            known = ", ".join(sorted(self.by_name))
            hint = f"there is {known}" if known else "there is none yet"
            raise ContextError(
                f"there is no context {name}; {hint} (ganglion context add {name} --url URL)"
            ) from None

    def save(self) -> None:
        """Write the file. Raises `ContextError`."""
        lines: list[str] = []
        if self.current is not None:
            lines.append(f"current = {_text(self.current)}\n")
        for name, context in sorted(self.by_name.items()):
            lines.append(f"\n[contexts.{_text(name)}]\n")
            for key in _NAMES:
                value = getattr(context, key)
                if value is True:
                    lines.append(f"{key} = true\n")
                elif value:
                    lines.append(f"{key} = {_text(value)}\n")
        path = self.path.resolve()  # a symbolic link stays, what it names is replaced
        temporary: str | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # mkstemp makes the file with mode 0600.
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
                stream.write("".join(lines))
            Path(temporary).replace(path)
            temporary = None
        except OSError as error:
            raise ContextError(f"cannot write {path}: {error.strerror}") from None
        finally:
            if temporary is not None:
                with suppress(OSError):
                    Path(temporary).unlink()


def contexts_path() -> Path:
    """Where the file is."""
    base = os.environ.get("XDG_CONFIG_HOME")
    directory = Path(base) if base and Path(base).is_absolute() else Path.home() / ".config"
    return directory / "ganglion" / "contexts.toml"


def load_contexts() -> Contexts:
    """The contexts of this user; none when there is no file. Raises `ContextError`.

    A file that holds a secret and that others may read is refused.
    """
    path = contexts_path()
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            values = tomllib.load(stream)
    except FileNotFoundError:
        return Contexts(path)
    except OSError as error:
        raise ContextError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ContextError(f"{path} is not TOML: {error}; mend it, or delete it") from None
    tables = values.get("contexts", {})
    current = values.get("current")
    if not isinstance(tables, dict) or not isinstance(current, str | None):
        raise ContextError(f"{path} needs a text 'current' and a table 'contexts'")
    found = Contexts(path, current)
    for name, table in cast("dict[str, object]", tables).items():
        found.by_name[name] = _context_of(path, name, table)
    if mode & 0o077 and any(each.password or each.token for each in found.by_name.values()):
        raise ContextError(f"{path} holds secrets that others may read: chmod 600 {path}")
    return found


def _context_of(path: Path, name: str, table: object) -> Context:
    options = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    if "url" not in options:
        raise ContextError(f"{path}: context {name} needs a url")
    for key, value in options.items():
        if key not in _NAMES:
            raise ContextError(
                f"{path}: context {name} has no {key}; there are {', '.join(_NAMES)}"
            )
        if not isinstance(value, _NAMES[key]):
            kind = "true or false" if _NAMES[key] is bool else "text"
            raise ContextError(f"{path}: {key} of context {name} must be {kind}")
    return Context(**options)


def _text(value: str) -> str:
    """A basic string of TOML: as in JSON, but that DEL must be escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
