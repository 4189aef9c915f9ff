"""Every example is run as its head says, and prints what it promises."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ganglion import connect
from tests.support import start_daemon

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PRINTS = {
    "embedded.py": [
        "plant/a/temperature 21.5",
        "plant/b/temperature 19.0",
        "plant/c/temperature 23.25",
    ],
    "queue_worker.py": [
        "done: rename (1 times)",
        "done: resize (1 times)",
        "done: send (1 times)",
        "failed: impossible (3 times)",
        "set aside: impossible",
    ],
    "stream_follow.py": [
        "1: plant/a/temperature 21.5",
        "2: plant/b/temperature 19.0",
        "3: plant/control pause",
        "back again",
        "4: plant/a/temperature 22.5",
        "another one, behind number 1",
        "2: plant/b/temperature 19.0",
    ],
    "device.py": [
        "status: online",
        "status: offline",
        "status: online",
        "command that waited: start",
    ],
    "request_reply.py": [
        "start: nobody answers there",
        "start: start at half speed: done",
        "stop: stop at once: done",
        "overload: error responder-left: the responder went away",
    ],
    "telemetry.py": [
        "pump a: 22.5 at most",
        "pump b: 93.5 at most",
        "pump c: 19.5 at most",
        "alarm: Temperature(pump='b', celsius=93.5)",
        "set aside: plant/c/temperature n/a",
    ],
    "device_request.py": [
        "pumps/7/start: nobody is there",
        "pumps/7/start: running at 50 percent",
        "valves/1/open: 30 percent open",
        "pumps/7/overload: it went away without an answer",
    ],
    "orders": [
        "a lamp, good card: accepted, in stock, paid, on its way",
        "a lamp, stolen card: accepted, in stock, payment declined, cancelled",
        "a unicorn, good card: accepted, sold out",
        "told twice, and heard to the end again: events/shipped",
        "the bank was called 3 times, charged 1, 1 parcel, 9 lamps left",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example_prints_what_it_promises(name: str) -> None:
    """An example runs to its end by itself: a file, or a folder by `python -m`."""
    what = [str(EXAMPLES / name)] if name.endswith(".py") else ["-m", f"examples.{name}"]
    done = subprocess.run(
        [sys.executable, *what], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTS[name]


def test_every_example_is_run() -> None:
    """No example is left to rot."""
    files = {path.name for path in EXAMPLES.glob("*.py")}
    folders = {path.parent.name for path in EXAMPLES.glob("*/__main__.py")}
    assert files | folders == set(PRINTS)


@pytest.mark.slow
def test_services_of_the_order_flow_run_by_themselves() -> None:
    """Each service in a process of its own, and one of them away for a while: nothing is lost."""
    with start_daemon("--native", "127.0.0.1:0") as daemon, ExitStack() as stack:
        url = f"ganglion://127.0.0.1:{daemon.ports['native']}"

        def start(service: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "examples.orders", url, service]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == f"running: {service}\n"
            return process

        running = [start(each) for each in ("stock", "payment", "shipping", "notification")]
        running.append(start("order"))  # takes orders when all others have their queues
        stock = running[0]
        stock.terminate()
        assert stock.wait(20) == 0

        async def buy() -> list[str]:
            async with connect(url) as mesh, mesh.subscribe("orders/+/status") as statuses:
                await mesh.request("shop/order", {"item": "a lamp"})
                steps = [(await anext(statuses)).json()["status"]]
                running[0] = start("stock")
                steps += [(await anext(statuses)).json()["status"] for _ in range(3)]
                return steps

        assert anyio.run(buy) == ["accepted", "in stock", "paid", "on its way"]
        for process in running:
            process.terminate()
        assert [process.wait(20) for process in running] == [0] * 5
