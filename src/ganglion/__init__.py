"""Ganglion: a lightweight message broker and event mesh.

What a Python program uses of it: the client and its errors. Every name is imported from its module
when it is first asked for, so that ``import ganglion`` costs next to nothing, a program pays for
what it uses, and no part of the package pays for another. The version and the base of all errors,
which every part shares, are here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers; a test compares them with the table
    from ganglion.clients.errors import (
        AuthenticationFailed,
        ClientError,
        ConnectionLost,
        Refused,
        TimedOut,
        Unreachable,
    )

__all__ = [
    "AuthenticationFailed",
    "BrokerNotInstalled",
    "ClientError",
    "ConnectionLost",
    "GanglionError",
    "Refused",
    "TimedOut",
    "Unreachable",
    "__version__",
]

__version__ = "0.1.0"

_MODULES = {
    "AuthenticationFailed": "ganglion.clients.errors",
    "ClientError": "ganglion.clients.errors",
    "ConnectionLost": "ganglion.clients.errors",
    "Refused": "ganglion.clients.errors",
    "TimedOut": "ganglion.clients.errors",
    "Unreachable": "ganglion.clients.errors",
}
"""Where each public name is that is not in this module."""


class GanglionError(Exception):
    """The base of every error that Ganglion raises on purpose."""


class BrokerNotInstalled(GanglionError, ModuleNotFoundError):
    """A node was wanted, and a package that a node needs is not installed."""

    def __init__(self, module: str | None) -> None:
        super().__init__(
            f"a node needs the package {module}, which is not installed: "
            "pip install 'ganglion[broker]'",
            name=module,
        )


if not TYPE_CHECKING:  # a type checker that saw this would let every wrong name pass

    def __getattr__(name: str) -> Any:
        """Import a public name; from then on it is an ordinary attribute of this module."""
        if name not in _MODULES:
            raise AttributeError(f"module 'ganglion' has no attribute {name!r}", name=name)
        from importlib import import_module  # noqa: PLC0415 - only programs of users come here

        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The names of this module, with those that were not asked for yet."""
    return sorted({*globals(), *_MODULES})
