"""amqtt's client (MQTT 3.1.1 only) as a peer for the interop tests; see lines.py."""

import asyncio
import contextlib
import logging
from typing import Any
from urllib.parse import quote

from amqtt.client import MQTTClient
from amqtt.errors import ConnectError

from tests.interop.programs.lines import Deliver, Refused, decode, run


class AmqttSession:
    """An amqtt client and the task that reads its messages."""

    def __init__(self, client: MQTTClient, reader: asyncio.Task[None]) -> None:
        """Wrap a connected client."""
        self.client = client
        self.reader = reader
        self.granted: list[int] = []
        self.present: bool | None = None

    async def publish(self, request: dict[str, Any]) -> None:
        """Publish; amqtt waits for the acknowledgement itself."""
        await self.client.publish(
            request["topic"], decode(request["payload"]), request["qos"], request["retain"]
        )

    async def _end_reader(self) -> None:
        self.reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.reader

    async def close(self) -> None:
        """Send DISCONNECT and end."""
        await self._end_reader()
        await self.client.disconnect()

    async def abort(self) -> None:
        """Break the connection below the library, which has no call for that."""
        handler = self.client._handler
        assert handler is not None
        assert handler.writer is not None
        handler.writer._writer.transport.abort()
        await self._end_reader()
        with contextlib.suppress(Exception):  # what the library says about it is not tested here
            await self.client.disconnect()


class Amqtt:
    """Opens amqtt clients."""

    async def open(self, request: dict[str, Any], deliver: Deliver) -> AmqttSession:
        """Connect and subscribe with amqtt."""
        config: dict[str, Any] = {"auto_reconnect": False, "keep_alive": 60}
        if request["will"]:
            will = request["will"]
            config["will"] = {
                "topic": will["topic"],
                "message": decode(will["payload"]).decode(),
                "qos": will["qos"],
                "retain": will["retain"],
            }
        if request["certfile"]:
            config["connection"] = {
                "uri": "",
                "certfile": request["certfile"],
                "keyfile": request["keyfile"],
            }
        client = MQTTClient(client_id=request["client_id"], config=config)
        user = ""
        if request["user"] is not None:
            user = f"{quote(request['user'])}:{quote(request['password'])}@"
        scheme = "mqtts" if request["cafile"] else "mqtt"
        try:
            await client.connect(
                f"{scheme}://{user}{request['host']}:{request['port']}/",
                cleansession=request["clean"],
                cafile=request["cafile"],
            )
        except ConnectError as error:
            code = getattr(error, "return_code", None)
            if code is None:
                raise
            raise Refused(int(code)) from error

        async def read() -> None:
            while True:
                message = await client.deliver_message()
                if message is None or message.publish_packet is None:
                    return
                packet = message.publish_packet
                deliver(
                    packet.topic_name or "",
                    bytes(packet.data or b""),
                    packet.qos or 0,
                    bool(packet.retain_flag),
                    {},
                )

        session = AmqttSession(client, asyncio.create_task(read()))
        if request["filters"]:
            session.granted = await client.subscribe(
                [(topic, qos) for topic, qos in request["filters"]]
            )
        return session


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    run(Amqtt())
