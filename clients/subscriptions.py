"""Subscriptions to topics, and what happens when a program is slower than the messages.

With ``overflow="block"`` the node sends no more than a program has room for (credit), and keeps as
many back; with ``drop_oldest`` or ``drop_newest`` everything comes as fast as it is published, and
what this program has no room for is dropped here. Both count in ``dropped`` what was lost.

The second kind is *plain* (docs/protocol.md): a message comes once for all plain subscriptions of
the connection, and `Plain` finds those that it is for.
"""

from typing import Any, Final, Literal

from ganglion.broker.core.topics import matches
from ganglion.clients.channels import Attached, Channel, Channels, check_credit
from ganglion.clients.codecs import Codec
from ganglion.clients.errors import BadOption
from ganglion.clients.messages import Message, properties_in
from ganglion.protocols.native.frames import Frame
from ganglion.protocols.native.operations import Operation

__all__ = ["Overflow", "Plain", "Subscription"]

Overflow = Literal["block", "drop_oldest", "drop_newest"]
"""What happens to messages that a subscription has no room for."""

_ROUTES_MAX: Final = 8192
"""Topics whose subscriptions are remembered; about 200 bytes each."""


class Subscription(Channel[Message]):
    """Messages of the topics that a filter matches."""

    operation = Operation.SUBSCRIBE

    def __init__(
        self,
        channels: Channels,
        plain: "Plain",
        codec: Codec,
        topic_filter: str,
        *,
        group: str | None,
        buffer: int,
        overflow: Overflow,
        retained: bool,
        own: bool,
        canary_share: float | None,
    ) -> None:
        super().__init__(channels)
        self.filter = topic_filter
        self._plain = plain
        self._codec = codec
        self._group = group
        self._size = buffer
        self._overflow = overflow
        self._retained = retained
        self._own = own
        self._canary_share = canary_share
        self._is_plain = overflow != "block" and group is None and own
        self._has_credit = overflow == "block"
        self._owed = 0  # taken since the node was last told

    def check(self) -> None:
        """A buffer has room for something, and there are three ways to overflow."""
        check_credit("buffer", self._size)
        if self._overflow not in ("block", "drop_oldest", "drop_newest"):
            raise BadOption(
                f"overflow must be block, drop_oldest or drop_newest, not {self._overflow!r}"
            )
        if self._group is not None and not self._own:
            raise BadOption("own=False is not for a group: its messages go to any member")
        if self._canary_share is not None and self._group is None:
            raise BadOption("canary_share needs a group: it is a part of the group's messages")

    def opening(self) -> tuple[object, ...]:
        """Filter and options."""
        options: dict[str, Any] = {}
        if not self._retained:
            options["retained"] = "none"
        if self._group is not None:
            options["group"] = self._group
        if not self._own:
            options["own"] = False
        if self._canary_share is not None:
            options["canary_share"] = self._canary_share
        if self._has_credit:
            # Those that are here already count: credit is for what there is room for.
            options["credit"] = max(self._size - len(self._buffer), 0)
            options["buffer"] = self._size
            self._owed = 0
        if self._is_plain:
            self._plain.add(self)
        return (self.filter, options or None)

    def on_frame(self, frame: Frame, at: Attached) -> None:
        """A delivery for this subscription alone."""
        self.offer(Message(frame[2], frame[3], properties_in(frame, 4), self._codec))

    def offer(self, message: Message) -> None:
        """A message came."""
        if not self._has_credit and len(self._buffer) >= self._size:
            self.dropped += 1
            if self._overflow == "drop_newest":
                return
            self._buffer.popleft()
        self.give(message)

    def on_taken(self) -> None:
        """Room for more: the node is told of it by halves of the buffer."""
        if self._has_credit:
            self._owed += 1
            if self._owed * 2 >= self._size and self.at is not None:
                self.at.link.notify(Operation.CREDIT, self.at.number, self._owed)
                self._owed = 0

    def fail(self, error: Any) -> None:
        """It has ended, and is no longer among the plain ones."""
        self._plain.remove(self)
        super().fail(error)


class Plain:
    """The plain subscriptions of a client, by the topics that they match."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._subscriptions: dict[Subscription, None] = {}
        self._routes: dict[str, tuple[Subscription, ...]] = {}

    def add(self, subscription: Subscription) -> None:
        """It gets messages from now on. Harmless when repeated."""
        self._subscriptions[subscription] = None
        self._routes.clear()

    def remove(self, subscription: Subscription) -> None:
        """It gets no more."""
        if self._subscriptions.pop(subscription, self) is None:
            self._routes.clear()

    def on_message(self, frame: Frame) -> None:
        """A message for all of them that its topic matches."""
        topic = frame[1]
        route = self._routes.get(topic)
        if route is None:
            route = self._route(topic)
        message = Message(topic, frame[2], properties_in(frame, 3), self._codec)
        for subscription in route:
            subscription.offer(message)

    def _route(self, topic: str) -> tuple[Subscription, ...]:
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        found = tuple(each for each in self._subscriptions if matches(each.filter, topic))
        self._routes[topic] = found
        return found
