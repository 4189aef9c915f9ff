"""A worker as it should be: what it cannot do is tried again, what nobody can do is set aside.

    python examples/queue_worker.py [HOST [PORT]]

- The queue "jobs" gives out each job to one worker. A job is gone when the worker acknowledges it,
  after the work: a worker that vanishes in between costs nothing but time.
- The worker has one job at a time (credit), so that several share evenly.
- After three attempts in vain a job goes to the queue "jobs-dead", where somebody may look at it.

MQTT 3.1.1 and paho are enough: the options stand in the topic filter. An MQTT 3 client cannot say
that it failed; it leaves the job unacknowledged, and the lease of half a second runs out.

Without an address it brings a broker of its own, sends four jobs, and prints what happens.
"""

import queue
import sys

import paho.mqtt.client as mqtt

import ganglion.testing

JOBS = "$queue/jobs?credit=1&lease_s=0.5&backoff_s=0.1&max_deliveries=3&dead_letter=jobs-dead"
TIMEOUT_S = 30


def connect(host: str, port: int, *, manual_ack: bool = False) -> mqtt.Client:
    """A connected client."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, manual_ack=manual_ack)
    client.connect(host, port)
    client.loop_start()
    return client


def work(host: str, port: int, done: "queue.Queue[str]") -> mqtt.Client:
    """Start a worker, which tells `done` what it did."""
    worker = connect(host, port, manual_ack=True)

    def on_message(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        job = message.payload.decode()
        if job == "impossible":
            done.put(f"failed: {job}")  # not acknowledged: it comes again
        else:
            done.put(f"done: {job}")
            client.ack(message.mid, message.qos)

    worker.on_message = on_message
    worker.subscribe(JOBS, qos=1)
    return worker


def play(host: str, port: int) -> None:
    """Send some jobs, have them done, and look at what nobody could do."""
    done: queue.Queue[str] = queue.Queue()
    dead: queue.Queue[str] = queue.Queue()
    worker = work(host, port, done)
    sender = connect(host, port)
    for job in ("resize", "impossible", "rename", "send"):
        sender.publish("$queue/jobs", job, qos=1).wait_for_publish(TIMEOUT_S)
    happened = [done.get(timeout=TIMEOUT_S) for _ in range(6)]
    for line in sorted(set(happened)):
        print(f"{line} ({happened.count(line)} times)")

    undertaker = connect(host, port)
    undertaker.on_message = lambda _client, _data, message: dead.put(message.payload.decode())
    undertaker.subscribe("$queue/jobs-dead", qos=1)
    print("set aside:", dead.get(timeout=TIMEOUT_S))
    for client in (worker, sender, undertaker):
        client.disconnect()
        client.loop_stop()


def main() -> None:
    """Play against the broker that is named, or against one of our own."""
    if len(sys.argv) > 1:
        play(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1883)
    else:
        with ganglion.testing.broker_thread() as broker:
            play(broker.host, broker.port)


if __name__ == "__main__":
    main()
