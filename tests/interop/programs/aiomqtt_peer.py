"""aiomqtt as a peer for the interop tests; see lines.py."""

import asyncio
import contextlib
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.interop.programs.lines import Deliver, Refused, decode, run
from tests.interop.programs.paho_peer import (
    break_connection,
    publish_properties,
    received_properties,
)


class AiomqttSession:
    """An aiomqtt client and the task that reads its messages."""

    def __init__(self, client: aiomqtt.Client, reader: asyncio.Task[None]) -> None:
        """Wrap a connected client."""
        self.client = client
        self.reader = reader
        self.granted: list[int] = []
        self.present: bool | None = None

    async def publish(self, request: dict[str, Any]) -> None:
        """Publish; aiomqtt waits for the acknowledgement itself."""
        await self.client.publish(
            request["topic"],
            decode(request["payload"]),
            request["qos"],
            request["retain"],
            properties=publish_properties(request["properties"]),
        )

    async def _end_reader(self) -> None:
        self.reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiomqtt.MqttError):
            await self.reader

    async def close(self) -> None:
        """Send DISCONNECT and end."""
        await self._end_reader()
        await self.client.__aexit__(None, None, None)

    async def abort(self) -> None:
        """Break the connection below the library, which has no call for that."""
        break_connection(self.client._client)
        await self._end_reader()
        with contextlib.suppress(aiomqtt.MqttError):
            await self.client.__aexit__(None, None, None)


class Aiomqtt:
    """Opens aiomqtt clients."""

    async def open(self, request: dict[str, Any], deliver: Deliver) -> AiomqttSession:
        """Connect and subscribe with aiomqtt."""
        version = request["version"]
        tls = will = properties = None
        if request["cafile"]:
            tls = aiomqtt.TLSParameters(
                ca_certs=request["cafile"], certfile=request["certfile"], keyfile=request["keyfile"]
            )
        if request["will"]:
            wanted = request["will"]
            will = aiomqtt.Will(
                wanted["topic"], decode(wanted["payload"]), wanted["qos"], wanted["retain"]
            )
        if version == 5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = request["expiry_s"]
        client = aiomqtt.Client(
            request["host"],
            request["port"],
            identifier=request["client_id"],
            username=request["user"],
            password=request["password"],
            protocol=aiomqtt.ProtocolVersion(version),
            clean_session=None if version == 5 else request["clean"],
            clean_start=request["clean"] if version == 5 else 3,  # 3: paho's "first only" default
            properties=properties,
            tls_params=tls,
            will=will,
            transport="websockets" if request["path"] else "tcp",
            websocket_path=request["path"],
            timeout=5,  # it does not see that TLS fails, and waits so long for CONNACK
        )
        try:
            await client.__aenter__()
        except aiomqtt.MqttCodeError as error:
            code = error.rc.value if isinstance(error.rc, ReasonCode) else int(error.rc or 0)
            raise Refused(code) from error

        async def read() -> None:
            async for message in client.messages:
                deliver(
                    str(message.topic),
                    bytes(message.payload),
                    message.qos,
                    message.retain,
                    received_properties(message.properties),
                )

        session = AiomqttSession(client, asyncio.create_task(read()))
        if request["filters"]:
            codes = await client.subscribe([(topic, qos) for topic, qos in request["filters"]])
            session.granted = [
                each.value if isinstance(each, ReasonCode) else int(each) for each in codes
            ]
        return session


if __name__ == "__main__":
    run(Aiomqtt())
