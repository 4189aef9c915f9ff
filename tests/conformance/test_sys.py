"""What a broker publishes of itself."""

import pytest

from tests.conformance.exchanges import new_name
from tests.support import RawClient, until


def test_sys_topics(port: int) -> None:
    """The broker's figures are there under the names that Mosquitto uses, retained."""
    names = {
        "$SYS/broker/version",
        "$SYS/broker/uptime",
        "$SYS/broker/clients/connected",
        "$SYS/broker/clients/total",
        "$SYS/broker/clients/maximum",
        "$SYS/broker/messages/received",
        "$SYS/broker/messages/sent",
        "$SYS/broker/bytes/received",
        "$SYS/broker/bytes/sent",
        "$SYS/broker/subscriptions/count",
        "$SYS/broker/retained messages/count",
        "$SYS/broker/publish/messages/received",
        "$SYS/broker/publish/messages/sent",
        "$SYS/broker/publish/messages/dropped",
        "$SYS/broker/store/messages/count",
        "$SYS/broker/store/messages/bytes",
        "$SYS/broker/load/messages/received/1min",
        "$SYS/broker/load/connections/15min",
    }
    seen: set[str] = set()

    def look() -> bool:
        with RawClient(port) as client:
            client.join(new_name("c"))
            client.subscribe("$SYS/#")
            client.send(b"\xc0\x00")
            while (packet := client.read_packet()).kind == 3:
                seen.add(packet.body[2 : 2 + int.from_bytes(packet.body[:2], "big")].decode())
        return seen >= names

    try:
        until(look, deadline_s=25)
    except AssertionError:
        pytest.fail(f"missing: {sorted(names - seen)}")
