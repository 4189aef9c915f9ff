"""Messages as frames to clients: encoded once and shared by all that take the same form.

What a client gets is the frame that a publisher sends, ``[1, topic, payload, properties?]``. For
one subscription alone it is ``[2, subscription, …]`` with the same rest, which is made by
exchanging the head. Only what changes while it waits, a remaining time to live, is encoded for one
client alone.
"""

from collections.abc import Callable
from typing import Any

from ganglion.broker.core.message import Message
from ganglion.protocols.native.frames import Frame, pack, pack_json
from ganglion.protocols.native.operations import Operation
from ganglion.protocols.native.properties import to_map

__all__ = ["FORM_JSON", "FORM_MSGPACK", "delivery", "encoder_of", "message_frame", "properties_of"]

# Numbers of wire forms, as `Message.forms` and `Route.split` know them; MQTT has 0 and 1.
FORM_MSGPACK = 2
FORM_JSON = 3

_MESSAGE = int(Operation.MESSAGE)
_JSON_HEAD = len(b"[1,")


def encoder_of(form: int) -> Callable[[Frame], bytes]:
    """What makes bytes of frames in this form."""
    return pack if form == FORM_MSGPACK else pack_json


def properties_of(
    message: Message, now: float, *, retained: bool = False, without_key: bool = False
) -> dict[str, Any]:
    """The properties that a receiver is told; empty if there are none."""
    about = message.properties
    expires_at = message.expires_at
    if about is None and expires_at is None and not retained:
        return {}
    members = to_map(about, without_key=without_key)
    if expires_at is not None:
        members["expires_s"] = round(max(0.0, expires_at - now), 3)
    if retained:
        members["retained"] = True
    return members


def message_frame(message: Message, form: int, now: float, *, retained: bool = False) -> bytes:
    """The frame of a message in this form, made if it was not made before."""
    if message.expires_at is None and not retained:
        forms = message.forms
        if forms is None:
            forms = message.forms = {}
        found = forms.get(form << 3)
        if found is None:
            found = forms[form << 3] = (_encode(message, form, now, retained=False), b"")
        return found[0]
    return _encode(message, form, now, retained=retained)  # it would be kept for good, or go stale


def _encode(message: Message, form: int, now: float, *, retained: bool) -> bytes:
    members = properties_of(message, now, retained=retained)
    frame: Frame = (_MESSAGE, message.topic, message.payload)
    if members:
        frame = (*frame, members)
    return pack(frame) if form == FORM_MSGPACK else pack_json(frame)


def delivery(frame: bytes, form: int, subscription: int) -> bytes:
    """The frame of a message as one for this subscription alone."""
    if form == FORM_MSGPACK:
        # one element more (there are three or four), and the operation
        return bytes((frame[0] + 1, Operation.DELIVERY)) + pack(subscription) + frame[2:]
    return b"[2,%d," % subscription + frame[_JSON_HEAD:]
