"""Functions that deal with what comes: what they want of it, how they are called, when again.

A handler says by its annotations what it wants: a parameter whose type is a `Message` or one of its
kinds (`Job`, `GroupRecord`, `Request`) gets the item itself, another one the payload, decoded to
its type. Asynchronous functions are awaited; plain ones run in threads, for they may block.
"""

import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
from anyio import to_thread

from ganglion.clients.errors import BadOption
from ganglion.clients.messages import Message

__all__ = ["Face", "Handler", "Retry"]

Face = Callable[[Any], Message]
"""Makes of an item what a handler sees of it."""

_DOUBLINGS_MAX: Final = 32  # lest the power of a count that nobody bounds grows without one


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often something is tried when its handler raises, and when again."""

    attempts: int = 5
    """Tries in all, those of other workers among them; after the last one it is set aside."""
    backoff_s: float = 1.0
    """Seconds until the second try; each further one doubles them. Up to half is taken off by
    chance, lest all come back at once."""
    backoff_max_s: float = 300.0
    """The longest pause in seconds."""
    on: tuple[type[Exception], ...] = (Exception,)
    """The errors that may be gone next time; after any other one it is set aside at once."""

    def __post_init__(self) -> None:
        """Raise `BadOption` for what cannot be."""
        if self.attempts < 1:
            raise BadOption(f"attempts must be 1 or more, not {self.attempts}")
        for name, value in (("backoff_s", self.backoff_s), ("backoff_max_s", self.backoff_max_s)):
            if not value >= 0:
                raise BadOption(f"{name} must be 0 or more, not {value:g}")

    def allows(self, attempt: int, error: Exception) -> bool:
        """Whether it is tried again after this try, counted from 1, has ended so."""
        return attempt < self.attempts and isinstance(error, self.on)

    def delay_s(self, attempt: int) -> float:
        """The pause after this try, in seconds."""
        doubled: float = self.backoff_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX)
        return min(doubled, self.backoff_max_s) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Handler:
    """A function for items of one kind."""

    def __init__(
        self, function: Callable[..., Any], kind: type[Message], faces: Mapping[type[Message], Face]
    ) -> None:
        """``faces``: further types that a parameter may have, and how they are made of an item.

        Raises `BadOption` for a function that cannot be called with such items.
        """
        self.name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self._function = function
        self._takes = tuple(self._parameters(function, kind, faces))
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - asked for what kind it is, not whether
        )

    def arguments(self, item: Message) -> list[Any]:
        """What it is called with for an item. Raises `NotDecodable`."""
        return [take(item) for take in self._takes]

    async def call(self, arguments: list[Any], threads: anyio.CapacityLimiter) -> Any:
        """Its result. A plain function that is cancelled goes on in its thread, unheeded."""
        if self._is_async:
            return await self._function(*arguments)
        function = partial(self._function, *arguments)
        return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=threads)

    def _parameters(
        self, function: Callable[..., Any], kind: type[Message], faces: Mapping[type[Message], Face]
    ) -> list[Callable[[Any], Any]]:
        try:
            signature = inspect.signature(function, eval_str=True)
        except (NameError, SyntaxError, TypeError, ValueError) as error:
            raise BadOption(f"the parameters of {self.name} cannot be read: {error}") from None
        takes: list[Callable[[Any], Any]] = []
        has_payload = False
        for parameter in signature.parameters.values():
            if parameter.default is not parameter.empty or parameter.kind in _GATHERING:
                continue
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise BadOption(
                    f"{self.name}: nothing is there for the parameter {parameter.name}: a handler "
                    "is called with positions"
                )
            wanted = parameter.annotation
            if isinstance(wanted, type) and issubclass(wanted, Message):
                if wanted in faces:
                    takes.append(faces[wanted])
                elif issubclass(kind, wanted):
                    takes.append(_itself)
                else:
                    raise BadOption(
                        f"{self.name}: the parameter {parameter.name} is to be a "
                        f"{wanted.__name__}, and what comes is a {kind.__name__}"
                    )
                continue
            if has_payload:
                raise BadOption(
                    f"{self.name}: {parameter.name} would be a second payload; a parameter for the "
                    f"item itself is annotated as {kind.__name__}"
                )
            has_payload = True
            takes.append(partial(_decoded, Any if wanted is parameter.empty else wanted))
        return takes


_GATHERING: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _itself(item: Message) -> Message:
    return item


def _decoded(wanted: Any, item: Message) -> Any:
    return item.decode(wanted)
