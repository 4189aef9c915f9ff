"""Readings of MQTT devices, worked off by Python: nothing is lost, and no worker does all of it.

    python examples/telemetry.py [URL MQTT_HOST MQTT_PORT]

- The devices know nothing of queues. They publish readings to topics of their own, with QoS 1.
- The queue "readings" is bound to these topics: it keeps every reading until a worker is done.
- Two workers share it. They append what they make of it to the stream "temperatures", and keep an
  alarm as the last value of a topic. Start this part as often as the work needs.
- What is no reading is set aside in the queue "readings-dead", with the reason.

Without an address it brings a node of its own, and prints what happens. The devices use aiomqtt,
which is of asyncio; the workers would run under trio as well.
"""

import asyncio
import sys

import aiomqtt
import anyio
from anyio.abc import TaskStatus
from msgspec import Struct

import ganglion
import ganglion.testing

HOT_CELSIUS = 80.0
SENT = {"a": ["21.5", "22.0", "22.5"], "b": ["78.0", "93.5", "79.0"], "c": ["19.0", "n/a", "19.5"]}


class Temperature(Struct):
    """What a worker makes of a reading."""

    pump: str
    celsius: float


async def device(host: str, port: int, pump: str, readings: list[str]) -> None:
    """A device, with any MQTT library."""
    async with aiomqtt.Client(host, port, identifier=f"pump-{pump}") as client:
        for reading in readings:
            await client.publish(f"plant/{pump}/temperature", reading, qos=1)


async def work(url: str, *, task_status: TaskStatus[ganglion.Worker]) -> None:
    """A worker, with a connection of its own."""
    async with ganglion.connect(url) as mesh:
        worker = mesh.worker(concurrency=4)
        temperatures = mesh.stream("temperatures")

        @worker.queue("readings")
        async def deal(celsius: float, job: ganglion.Job) -> None:
            pump = job.topic.split("/")[1]
            await temperatures.append(Temperature(pump, celsius), key=pump)
            if celsius > HOT_CELSIUS:
                await mesh.retained.put(f"alarms/{pump}", Temperature(pump, celsius))

        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            task_status.started(worker)


async def play(url: str, host: str, port: int) -> None:
    """Three devices, two workers, and somebody who looks at what comes of it."""
    async with ganglion.connect(url) as mesh, anyio.create_task_group() as tasks:
        await mesh.queue("readings-dead").declare()
        await mesh.queue("readings").declare(
            bindings=["plant/+/temperature"], dead_letter="readings-dead"
        )
        await mesh.stream("temperatures").declare(keyed=True, max_age_s=86_400)
        begin = (await mesh.stream("temperatures").describe()).statistics["last"]
        workers = [await tasks.start(work, url), await tasks.start(work, url)]
        for pump, readings in SENT.items():
            tasks.start_soon(device, host, port, pump, readings)

        highest: dict[str, float] = {}
        async with mesh.stream("temperatures").follow(after=begin) as records:
            async for record in records:
                temperature = record.decode(Temperature)
                known = highest.get(temperature.pump, temperature.celsius)
                highest[temperature.pump] = max(known, temperature.celsius)
                if record.sequence == begin + 8:
                    break
        for pump, celsius in sorted(highest.items()):
            print(f"pump {pump}: {celsius} at most")
        async with mesh.subscribe("alarms/+") as alarms:  # the last value is there at once
            async for alarm in alarms:
                print("alarm:", alarm.decode(Temperature))
                break
        async with mesh.queue("readings-dead").consume() as dead_letters:
            async for letter in dead_letters:
                async with letter:
                    print("set aside:", letter.topic, letter.text)
                break
        for worker in workers:
            worker.stop()


def main() -> None:
    """Play against the node that is named, or against one of our own."""
    if len(sys.argv) > 1:
        asyncio.run(play(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        with ganglion.testing.broker_thread() as broker:
            asyncio.run(play(broker.native_url, broker.host, broker.port))


if __name__ == "__main__":
    main()
