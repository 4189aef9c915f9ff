"""Python asks MQTT devices to do something, and hears what came of it.

    python examples/device_request.py [URL MQTT_HOST MQTT_PORT]

- `mesh.request` does not know, and need not, what protocol the other side speaks.
- A device of MQTT 5 answers as the specification says: to the response topic of the request, with
  its correlation data.
- A device of MQTT 3.1.1 has neither. It subscribes to ``$request/+/…``, and answers to the topic
  that the request came by, with ``$reply`` in place of ``$request``.
- A device that is not there, or that goes away before it has answered, is an error at once.

Without an address it brings a node of its own, and prints what happens. See docs/requests.md.
"""

import asyncio
import sys

import aiomqtt
import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import ganglion
import ganglion.testing


async def new_device(
    host: str, port: int, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
) -> None:
    """A valve of MQTT 5."""
    version = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client(host, port, identifier="valve-1", protocol=version) as client:
        await client.subscribe("valves/1/+", qos=1)
        task_status.started()
        async for request in client.messages:
            asked, about = request.properties, Properties(PacketTypes.PUBLISH)
            assert asked is not None
            about.CorrelationData = asked.CorrelationData
            answer = f"{text_of(request)} percent open"
            await client.publish(asked.ResponseTopic, answer, qos=1, properties=about)


async def old_device(
    host: str, port: int, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
) -> None:
    """A pump of MQTT 3.1.1, which breaks when it is overloaded."""
    async with aiomqtt.Client(host, port, identifier="pump-7") as client:
        await client.subscribe("$request/+/pumps/7/+")
        task_status.started()
        async for request in client.messages:
            topic = str(request.topic)
            if topic.endswith("/overload"):
                return
            answer_topic = topic.replace("$request/", "$reply/", 1)
            await client.publish(answer_topic, f"running at {text_of(request)} percent", qos=1)


def text_of(message: aiomqtt.Message) -> str:
    """The payload of a request."""
    assert isinstance(message.payload, bytes)
    return message.payload.decode()


async def ask(mesh: ganglion.Mesh, topic: str, value: int) -> None:
    """Ask, and print the answer or why there is none."""
    try:
        reply = await mesh.request(topic, value, timeout_s=5)
    except ganglion.NoResponders:
        print(f"{topic}: nobody is there")
    except ganglion.ResponderGone:
        print(f"{topic}: it went away without an answer")
    else:
        print(f"{topic}: {reply.text}")


async def play(url: str, host: str, port: int) -> None:
    """Both devices are asked, before they are there, while they are, and too much."""
    async with ganglion.connect(url) as mesh, anyio.create_task_group() as devices:
        await ask(mesh, "pumps/7/start", 50)
        await devices.start(old_device, host, port)
        await devices.start(new_device, host, port)
        await ask(mesh, "pumps/7/start", 50)
        await ask(mesh, "valves/1/open", 30)
        await ask(mesh, "pumps/7/overload", 200)
        devices.cancel_scope.cancel()


def main() -> None:
    """Play against the node that is named, or against one of our own."""
    if len(sys.argv) > 1:
        asyncio.run(play(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        with ganglion.testing.broker_thread() as broker:
            asyncio.run(play(broker.native_url, broker.host, broker.port))


if __name__ == "__main__":
    main()
