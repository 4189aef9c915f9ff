"""Proves an installed `ganglion` from outside: a node from one environment, a client from another.

Usage: ``python smoke.py NODE CLIENT``, two virtual environments: ``ganglion[broker]`` is in the
first and ``ganglion`` alone in the second. Only the standard library and the commands are used, so
that it says something about what was installed and nothing about the checkout.
"""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

_DEADLINE_S = 30
_OF_THE_NODE = ("argon2", "prometheus_client", "rocksdict", "structlog", "trio")
_PROGRAM = """
import asyncio, sys, ganglion

async def main():
    async with ganglion.connect(sys.argv[1]) as mesh:
        async with mesh.subscribe("smoke/python") as messages:
            await mesh.publish("smoke/python", {"works": True})
            async for message in messages:
                print(message.decode())
                break
        async with mesh.queue("jobs").consume() as jobs:
            async for job in jobs:
                async with job:
                    print(job.text)
                break

asyncio.run(main())
"""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=_DEADLINE_S)


def _output(*command: str) -> str:
    done = _run(*command)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def main(node: str, client: str) -> None:
    """Take both environments through their first minute; raise when something fails."""
    _check_client_alone(Path(client, "bin"))
    command = str(Path(node, "bin", "ganglion"))
    assert _output(command, "version") == _output(str(Path(client, "bin", "ganglion")), "version")
    with tempfile.TemporaryDirectory() as data:
        listeners = ["--native", "127.0.0.1:0", "--web", "127.0.0.1:0"]
        serve = [command, "serve", *listeners, "--data", data]
        with subprocess.Popen(serve, stderr=subprocess.PIPE) as daemon:
            try:
                addresses = _addresses_when_ready(daemon)
                url = f"ganglion://{addresses['native']}"
                _talk(str(Path(client, "bin", "ganglion")), url)
                got = _output(str(Path(client, "bin", "python")), "-c", _PROGRAM, url)
                assert got.splitlines() == ["{'works': True}", "by Python"], got
                page = urlopen(f"http://{addresses['web']}/", timeout=_DEADLINE_S).read()
                assert b"Ganglion" in page, f"the page is {page!r}"
                daemon.send_signal(signal.SIGTERM)
                daemon.communicate(timeout=_DEADLINE_S)
            finally:
                daemon.kill()
        assert daemon.returncode == 0, f"SIGTERM ended the daemon with {daemon.returncode}"


def _check_client_alone(programs: Path) -> None:
    """The client has no package of the node, and says so where one would be needed."""
    python, ganglion = str(programs / "python"), str(programs / "ganglion")
    find = f"import importlib.util as u; print(*filter(u.find_spec, {_OF_THE_NODE}))"
    found = _output(python, "-c", find)
    assert not found, f"a client needs none of {found}"
    names = "import ganglion; print(*(getattr(ganglion, name) for name in ganglion.__all__))"
    assert "GanglionError" in _output(python, "-c", names)
    shown = _output(python, "-m", "ganglion", "--help")
    assert "Run the broker" in shown, f"the help is {shown!r}"
    refused = _run(ganglion, "serve")
    assert refused.returncode == 69, f"`ganglion serve` ended with {refused.returncode}"
    assert "pip install 'ganglion[broker]'" in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr


def _talk(ganglion: str, url: str) -> None:
    """Publish and receive, send to a queue and consume from it."""
    # Retained, so that the subscriber need not be there first.
    _output(ganglion, "pub", "--url", url, "--retain", "smoke/test", "it works")
    got = _output(ganglion, "sub", "--url", url, "--count", "1", "smoke/#")
    assert "it works" in got, f"published 'it works', received {got!r}"
    _output(ganglion, "queue", "declare", "jobs", "--url", url)
    _output(ganglion, "queue", "send", "jobs", "to do", "--url", url)
    got = _output(ganglion, "queue", "consume", "jobs", "--count", "1", "--url", url)
    assert "to do" in got, f"sent 'to do', consumed {got!r}"
    _output(ganglion, "queue", "send", "jobs", "by Python", "--url", url)  # for the program


def _addresses_when_ready(daemon: subprocess.Popen[bytes]) -> dict[str, str]:
    assert daemon.stderr is not None
    addresses: dict[str, str] = {}
    seen = b""
    for line in daemon.stderr:
        seen += line
        if not line.startswith(b"{"):
            continue  # not a log line but an error, told in full when the output ends
        event = json.loads(line)
        if event["event"] == "listening":
            addresses[event["listener"]] = event["address"]
        elif event["event"] == "ready":
            return addresses
    raise SystemExit(f"the daemon ended before it was ready:\n{seen.decode()}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
