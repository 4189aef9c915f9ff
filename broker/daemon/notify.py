"""Tell the service manager how the node is doing (systemd's ``Type=notify``).

The protocol is one datagram of ``NAME=value`` lines to the Unix socket that the environment's
``NOTIFY_SOCKET`` names. Without that variable nobody asked, and nothing is sent.
"""

import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Sends the node's state to the service manager, if there is one."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Take the socket's address from ``environment`` (the process's own unless given)."""
        environment = os.environ if environment is None else environment
        path = environment.get("NOTIFY_SOCKET", "")
        # A leading '@' stands for the zero byte that begins an abstract socket's name.
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self, status: str) -> None:
        """The node serves: units that wait for it may start. ``status`` is shown to people."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self, monotonic_s: float) -> None:
        """A reload has begun at ``monotonic_s`` of CLOCK_MONOTONIC; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s * 1_000_000)}")

    def stopping(self) -> None:
        """The node drains and will end."""
        self._send("STOPPING=1\nSTATUS=draining")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            try:
                channel.sendto(text.encode(), self._address)
            except OSError:
                # The manager has gone or its queue is full. The node's work does not depend on
                # being watched, and the manager reports a missing notification by itself.
                return
