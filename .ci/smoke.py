"""Proves an installed `ganglion` from outside: version, start, publish and receive, a page, stop.

Usage: ``python smoke.py PATH/TO/ganglion``. Only the standard library and the command are used, so
that it says something about what was installed and nothing about the checkout.
"""

import json
import signal
import subprocess
import sys
import tempfile
from urllib.request import urlopen

_DEADLINE_S = 30


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, timeout=_DEADLINE_S)
    return done.stdout.decode().strip()


def main(ganglion: str) -> None:
    """Run the command at the path `ganglion` through its first minute; raise when it fails."""
    version = _output(ganglion, "version")
    assert version, "`ganglion version` prints nothing"
    with tempfile.TemporaryDirectory() as data:
        listeners = ["--native", "127.0.0.1:0", "--web", "127.0.0.1:0"]
        serve = [ganglion, "serve", *listeners, "--data", data]
        with subprocess.Popen(serve, stderr=subprocess.PIPE) as daemon:
            try:
                addresses = _addresses_when_ready(daemon)
                url = f"ganglion://{addresses['native']}"
                # Retained, so that the subscriber need not be there first.
                _output(ganglion, "pub", "--url", url, "--retain", "smoke/test", "it works")
                got = _output(ganglion, "sub", "--url", url, "--count", "1", "smoke/#")
                assert "it works" in got, f"published 'it works', received {got!r}"
                page = urlopen(f"http://{addresses['web']}/", timeout=_DEADLINE_S).read()
                assert b"Ganglion" in page, f"the page is {page!r}"
                daemon.send_signal(signal.SIGTERM)
                daemon.communicate(timeout=_DEADLINE_S)
            finally:
                daemon.kill()
        assert daemon.returncode == 0, f"SIGTERM ended the daemon with {daemon.returncode}"


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
    main(sys.argv[1])
