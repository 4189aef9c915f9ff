"""What ``ganglion pub`` sends and how ``ganglion sub`` shows what arrives."""

import base64
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import BinaryIO

from ganglion.broker.daemon.client import MqttClient
from ganglion.protocols.mqtt.packets import Publish
from ganglion.protocols.mqtt.properties import Properties

__all__ = ["FORMATS", "publish_all", "render", "split_lines", "subscribe_and_print"]

FORMATS = ("text", "hex", "json")
"""The names of the forms in which `render` shows a message."""


def publish_all(
    client: MqttClient,
    topic: str,
    payloads: Iterable[bytes],
    *,
    qos: int,
    retain: bool,
    properties: Properties | None,
) -> int:
    """Publish every payload, wait until the broker has them all, and say how many there were.

    QoS 1 and 2 wait for the acknowledgements. For QoS 0 a ping follows: when it is answered, the
    broker has read what was sent before it, and a refusal that ends the connection is noticed.
    """
    count = 0
    for payload in payloads:
        client.publish(Publish(topic, payload, qos=qos, retain=retain, properties=properties))
        count += 1
    if qos:
        client.settle()
    elif count:
        client.ping()
    return count


def split_lines(stream: BinaryIO) -> Iterator[bytes]:
    r"""The lines of a stream as they come in, without their ``\n`` or ``\r\n``."""
    for line in iter(stream.readline, b""):
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def subscribe_and_print(
    client: MqttClient,
    topic_filters: list[str],
    output: BinaryIO,
    *,
    qos: int,
    count: int | None,
    timeout_s: float | None,
    form: str,
    with_topic: bool,
    terminal: bool,
) -> int:
    """Print messages until there were ``count`` or ``timeout_s`` is over; say how many came.

    A message is acknowledged after it has been written out and flushed. ``terminal`` says that a
    person sees the output, so that control characters of a payload are made harmless.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    client.subscribe(topic_filters, qos)
    seen = 0
    for message in client.messages(deadline):
        output.write(render(message, form, with_topic=with_topic, terminal=terminal) + b"\n")
        output.flush()
        client.acknowledge(message)
        seen += 1
        if seen == count:
            break
    client.settle()
    return seen


def render(message: Publish, form: str, *, with_topic: bool, terminal: bool) -> bytes:
    """One message as one line, without the line's end (a text payload may hold more lines).

    ``text`` is the payload as it is, ``hex`` its bytes in hexadecimal, both after the topic and a
    space when ``with_topic`` says so. ``json`` is an object with topic, qos, retain, the payload
    (as ``payload_base64`` when it is not UTF-8) and the properties that the message has.
    """
    if form == "json":
        return json.dumps(_as_object(message), ensure_ascii=terminal).encode()
    payload = message.payload.hex().encode() if form == "hex" else message.payload
    line = message.topic.encode() + b" " + payload if with_topic else payload
    return _harmless(line) if terminal else line


def _as_object(message: Publish) -> dict[str, object]:
    shown: dict[str, object] = {
        "topic": message.topic,
        "qos": message.qos,
        "retain": message.retain,
    }
    try:
        shown["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        shown["payload_base64"] = base64.b64encode(message.payload).decode()
    if message.properties is not None:
        properties: dict[str, object] = {}
        for each in fields(message.properties):
            value = getattr(message.properties, each.name)
            if isinstance(value, bytes):
                properties[f"{each.name}_base64"] = base64.b64encode(value).decode()
            elif value is not None and value != ():
                properties[each.name] = value
        if properties:
            shown["properties"] = properties
    return shown


def _harmless(line: bytes) -> bytes:
    r"""A line in which control characters are written ``\xNN``.

    A publisher could otherwise move the cursor, change colours or retitle the window of whoever
    subscribes.
    """
    text = line.decode(errors="backslashreplace")
    return "".join(
        each if each in "\t\n" or each.isprintable() else f"\\x{ord(each):02x}" for each in text
    ).encode()
