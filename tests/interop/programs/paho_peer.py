"""Eclipse Paho (paho-mqtt) as a peer for the interop tests; see lines.py."""

import asyncio
import socket
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.interop.programs.lines import Deliver, Refused, decode, encode, run


def publish_properties(wanted: dict[str, Any]) -> Properties | None:
    """The properties of a publish request in the form of paho, None without any."""
    if not wanted:
        return None
    properties = Properties(PacketTypes.PUBLISH)
    if "user" in wanted:
        properties.UserProperty = [tuple(pair) for pair in wanted["user"]]
    if "response_topic" in wanted:
        properties.ResponseTopic = wanted["response_topic"]
    if "correlation" in wanted:
        properties.CorrelationData = decode(wanted["correlation"])
    if "content_type" in wanted:
        properties.ContentType = wanted["content_type"]
    return properties


def received_properties(properties: Properties | None) -> dict[str, Any]:
    """What the interop tests look at in the properties of a received message."""
    found: dict[str, Any] = {}
    if properties is None:
        return found
    if hasattr(properties, "UserProperty"):
        found["user"] = [list(pair) for pair in properties.UserProperty]
    if hasattr(properties, "ResponseTopic"):
        found["response_topic"] = properties.ResponseTopic
    if hasattr(properties, "CorrelationData"):
        found["correlation"] = encode(properties.CorrelationData)
    if hasattr(properties, "ContentType"):
        found["content_type"] = properties.ContentType
    return found


def break_connection(client: paho.Client) -> None:
    """Break the connection below the library, which has no call for that."""
    connection = client.socket()
    below = getattr(connection, "_socket", connection)  # what paho's wrapper for WebSocket has
    assert isinstance(below, socket.socket)
    below.shutdown(socket.SHUT_RDWR)


class PahoSession:
    """A paho client with its network thread."""

    def __init__(self, client: paho.Client) -> None:
        """Wrap a connected client."""
        self.client = client
        self.granted: list[int] = []
        self.present: bool | None = None

    async def publish(self, request: dict[str, Any]) -> None:
        """Publish and wait for the acknowledgement, if the QoS has one."""
        info = self.client.publish(
            request["topic"],
            decode(request["payload"]),
            request["qos"],
            request["retain"],
            publish_properties(request["properties"]),
        )
        await asyncio.to_thread(info.wait_for_publish, 10)
        assert info.is_published()

    async def close(self) -> None:
        """Send DISCONNECT and end the network thread."""
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    async def abort(self) -> None:
        """Break the connection."""
        break_connection(self.client)
        await asyncio.to_thread(self.client.loop_stop)


class Paho:
    """Opens paho clients."""

    async def open(self, request: dict[str, Any], deliver: Deliver) -> PahoSession:
        """Connect and subscribe with paho."""
        loop = asyncio.get_running_loop()
        version = request["version"]
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=request["client_id"],
            clean_session=None if version == 5 else request["clean"],
            protocol=MQTTProtocolVersion(version),
            transport="websockets" if request["path"] else "tcp",
            reconnect_on_failure=False,
        )
        if request["path"]:
            client.ws_set_options(request["path"])
        if request["user"] is not None:
            client.username_pw_set(request["user"], request["password"])
        if request["cafile"]:
            client.tls_set(request["cafile"], request["certfile"], request["keyfile"])
        if request["will"]:
            will = request["will"]
            client.will_set(will["topic"], decode(will["payload"]), will["qos"], will["retain"])
        connected: asyncio.Future[tuple[bool, ReasonCode]] = loop.create_future()
        subscribed: asyncio.Future[list[int]] = loop.create_future()

        def on_connect(
            _client: paho.Client,
            _data: object,
            flags: paho.ConnectFlags,
            reason: ReasonCode,
            _properties: Properties | None,
        ) -> None:
            loop.call_soon_threadsafe(connected.set_result, (flags.session_present, reason))

        def on_connect_fail(_client: paho.Client, _data: object) -> None:
            error = ConnectionError("paho could not connect")
            loop.call_soon_threadsafe(connected.set_exception, error)

        def on_disconnect(
            _client: paho.Client,
            _data: object,
            _flags: paho.DisconnectFlags,
            reason: ReasonCode,
            _properties: Properties | None,
        ) -> None:
            def fail() -> None:
                if not connected.done():
                    connected.set_exception(ConnectionError(f"closed before CONNACK: {reason}"))

            loop.call_soon_threadsafe(fail)

        def on_subscribe(
            _client: paho.Client,
            _data: object,
            _identifier: int,
            reasons: list[ReasonCode],
            _properties: Properties | None,
        ) -> None:
            loop.call_soon_threadsafe(subscribed.set_result, [each.value for each in reasons])

        def on_message(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            deliver(
                message.topic,
                bytes(message.payload),
                message.qos,
                message.retain,
                received_properties(message.properties),
            )

        client.on_connect = on_connect
        client.on_connect_fail = on_connect_fail
        client.on_disconnect = on_disconnect
        client.on_subscribe = on_subscribe
        client.on_message = on_message
        session = PahoSession(client)
        properties = None
        if version == 5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = request["expiry_s"]
        await asyncio.to_thread(
            client.connect,
            request["host"],
            request["port"],
            clean_start=request["clean"] if version == 5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        client.loop_start()
        session.present, reason = await asyncio.wait_for(connected, 10)
        if reason.is_failure:
            await session.close()
            raise Refused(reason.value)
        if request["filters"]:
            client.subscribe([(topic, qos) for topic, qos in request["filters"]])
            session.granted = await asyncio.wait_for(subscribed, 10)
        return session


if __name__ == "__main__":
    run(Paho())
