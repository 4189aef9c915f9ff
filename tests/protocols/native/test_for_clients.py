"""What clients use of this package comes without the broker."""

import subprocess
import sys

ALLOWED = {
    "ganglion.broker",
    "ganglion.broker.core",
    "ganglion.broker.core.message",
    "ganglion.protocols",
    "ganglion.protocols.native",
    "ganglion.protocols.native.frames",
    "ganglion.protocols.native.operations",
    "ganglion.protocols.native.properties",
}


def test_clients_do_not_load_the_broker() -> None:
    """Frames, operations and properties import msgpack and the message, and nothing else of it."""
    code = (
        "import sys, ganglion.protocols.native.frames, ganglion.protocols.native.operations, "
        "ganglion.protocols.native.properties; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    loaded = set(done.stdout.split())
    assert {each for each in loaded if each.startswith("ganglion.")} == ALLOWED
    assert not loaded & {"trio", "rocksdict", "h11", "wsproto", "argon2", "ssl"}
