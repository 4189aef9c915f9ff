"""How a test drives an MQTT library in another process: JSON lines in, JSON lines out.

A request is ``{"id": 1, "op": "open" | "publish" | "close" | "abort", "session": "s1", …}``; its
answer has the same id and either ``result``, or ``refused`` (the broker said no, with its code) or
``failed`` (anything else). A message that a session receives is a line with ``session`` and
``topic`` and without id. Payloads and correlation data travel in base64. `run` serves one
`Library` under asyncio.
"""

import asyncio
import base64
import json
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Deliver", "Library", "Refused", "Session", "decode", "encode", "run"]

Deliver = Callable[[str, bytes, int, bool, dict[str, Any]], None]
"""Hands over a received message: topic, payload, QoS, retain flag and properties."""


class Refused(Exception):
    """The broker refused what was asked for; `code` is the return or reason code."""

    def __init__(self, code: int) -> None:
        """Remember the code."""
        super().__init__(f"refused with {code}")
        self.code = code


class Session(Protocol):
    """An open connection of a library."""

    granted: list[int]
    present: bool | None

    async def publish(self, request: dict[str, Any]) -> None:
        """Publish and return when the broker has taken the message as its QoS demands."""
        ...

    async def close(self) -> None:
        """Leave with DISCONNECT."""
        ...

    async def abort(self) -> None:
        """Let the connection break without DISCONNECT."""
        ...


class Library(Protocol):
    """What a program knows of its library: how to open a connection."""

    async def open(self, request: dict[str, Any], deliver: Deliver) -> Session:
        """Connect and subscribe as the request says. Raises `Refused`."""
        ...


def encode(data: bytes) -> str:
    """Bytes as they travel in a line."""
    return base64.b64encode(data).decode("ascii")


def decode(data: str) -> bytes:
    """Bytes as they came in a line."""
    return base64.b64decode(data)


_output = threading.Lock()


def _write(line: dict[str, Any]) -> None:
    with _output:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _deliver_to(session: str) -> Deliver:
    def deliver(
        topic: str, payload: bytes, qos: int, retain: bool, properties: dict[str, Any]
    ) -> None:
        _write(
            {
                "session": session,
                "topic": topic,
                "payload": encode(payload),
                "qos": qos,
                "retain": retain,
                "properties": properties,
            }
        )

    return deliver


async def _answer(
    library: Library, sessions: dict[str, Session], request: dict[str, Any]
) -> dict[str, Any]:
    name, operation = request["session"], request["op"]
    try:
        if operation == "open":
            opened = await library.open(request, _deliver_to(name))
            sessions[name] = opened
            return {"result": {"granted": opened.granted, "present": opened.present}}
        if operation == "publish":
            await sessions[name].publish(request)
        elif operation == "close":
            await sessions.pop(name).close()
        else:
            assert operation == "abort"
            await sessions.pop(name).abort()
    except Refused as refusal:
        return {"refused": refusal.code}
    except Exception:  # noqa: BLE001 - it is the answer to the test, which raises it there
        return {"failed": traceback.format_exc()}
    return {"result": {}}


async def _serve(library: Library) -> None:
    sessions: dict[str, Session] = {}
    requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(requests.put_nowait, json.loads(line))
        loop.call_soon_threadsafe(requests.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    while (request := await requests.get()) is not None:
        _write({"id": request["id"], **await _answer(library, sessions, request)})


def run(library: Library) -> None:
    """Serve requests from standard input until it ends."""
    asyncio.run(_serve(library))
