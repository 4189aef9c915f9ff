"""Last values: what was published to a topic with ``retain``, kept by the node."""

from typing import Any, Final, Unpack

from ganglion.clients.messages import Message, MessageOptions
from ganglion.clients.session import Session
from ganglion.protocols.native.operations import Operation

__all__ = ["Retained"]

_NOTHING: Final[dict[str, Any]] = {}
_PAGE: Final = 500  # values that are asked for at once


class Retained:
    """The last values of a node."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, topic: str) -> Message | None:
        """The last value of a topic; None: there is none."""
        found = await self._session.ask_again(Operation.RETAINED_GET, topic)
        return None if found is None else self._message(topic, *found)

    async def put(self, topic: str, value: object, **about: Unpack[MessageOptions]) -> None:
        """Publish and keep. Returns when it is on disk."""
        _, payload, properties = self._session.publication(topic, value, about)
        await self._session.ask_again(Operation.RETAINED_PUT, topic, payload, properties)

    async def delete(self, topic: str) -> None:
        """There is no last value any more; subscribers get an empty message."""
        await self._session.ask_again(Operation.RETAINED_DELETE, topic)

    async def list(self, topic_filter: str = "#", *, count: int = 1000) -> list[Message]:
        """The last values of matching topics, by topic, ``count`` at most."""
        found: list[Message] = []
        after: str | None = None
        while len(found) < count:
            options: dict[str, Any] = {"count": min(count - len(found), _PAGE)}
            if after is not None:
                options["after"] = after
            page = await self._session.ask_again(Operation.RETAINED_LIST, topic_filter, options)
            found += [self._message(*each) for each in page["messages"]]
            if not page["more"] or not page["messages"]:
                break
            after = found[-1].topic
        return found

    def _message(self, topic: str, payload: bytes, about: Any = None) -> Message:
        return Message(
            topic, payload, {**(about or _NOTHING), "retained": True}, self._session.settings.codec
        )
