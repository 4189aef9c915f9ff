"""What all native connections of a node share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ganglion.broker.core.authentication import Mechanism, PasswordCheck
from ganglion.broker.core.node import Node
from ganglion.broker.core.producers import Producers
from ganglion.protocols.native.frames import FrameLimits, FrameReader

__all__ = ["NativeServer", "NativeSettings"]

_JSON_FRAME_MAX_BYTES = 1024 * 1024
"""Text is decoded at once, and takes some thirty times its size for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeSettings:
    """What a node says and asks of native clients."""

    certificate_is_user: bool = False
    """The common name of a verified client certificate is the user; no password is asked for."""
    addresses: tuple[str, ...] = ()
    """Other nodes that clients may turn to, as URLs; a client is told when it connects, and again
    when the node stops."""


class NativeServer:
    """Makes connections what they are. Attributes may be replaced at any time (reload)."""

    def __init__(
        self,
        node: Node,
        settings: NativeSettings | None = None,
        *,
        software: str = "ganglion",
        authenticator: PasswordCheck | None = None,
        mechanisms: Mapping[str, Callable[[], Mechanism]] | None = None,
    ) -> None:
        """Without `authenticator` nobody needs a password."""
        self.node = node
        self.settings = settings or NativeSettings()
        self.software = software
        self.authenticator = authenticator
        self.mechanisms = mechanisms or {}
        self.tokens: Callable[[str], str] | None = None
        """Whose token it is; raises `InvalidToken`. None: nobody needs one."""
        journal = node.journal
        self.producers = Producers(
            journal.shelf.store, journal.commits, node.timers, journal.shelf.wall_clock_offset_s
        )
        self._reader: FrameReader | None = None
        self._node_limits = node.limits
        self._frame_limits = self.limits(is_json=False)  # made from those of the node

    def limits(self, *, is_json: bool) -> FrameLimits:
        """How large the frames of a known client may be."""
        most = self.node.limits.packet_size_max_bytes
        return FrameLimits(
            min(most, _JSON_FRAME_MAX_BYTES) if is_json else most,
            map_max=self.node.limits.properties_per_packet_max,
        )

    def lend_reader(self) -> FrameReader:
        """A reader for what one connection has just received.

        A connection that holds no beginning of a frame needs none of its own: most have none.
        """
        reader, self._reader = self._reader, None
        if self._node_limits is not self.node.limits:
            self._node_limits = self.node.limits
            self._frame_limits = self.limits(is_json=False)
        if reader is None or reader.limits is not self._frame_limits:
            return FrameReader(self._frame_limits)
        return reader

    def take_back(self, reader: FrameReader) -> None:
        """It holds nothing any more."""
        if reader.is_small:
            self._reader = reader
