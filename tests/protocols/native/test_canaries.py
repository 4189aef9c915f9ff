"""Canaries over the native protocol: consumers of queues, and members of groups."""

from typing import Any

import pytest

from ganglion.broker.core.canaries import is_for_canaries
from ganglion.protocols.native.operations import Code
from ganglion.protocols.native.operations import Operation as Op
from tests.protocols.native.link import NativeClient, NativeLink

SHARE = 0.3
KEYS = [f"order-{number}" for number in range(30)]
FOR_CANARIES = [key for key in KEYS if is_for_canaries(SHARE, key, 0)]
FOR_OTHERS = [key for key in KEYS if key not in FOR_CANARIES]

JSON_TOO = pytest.mark.parametrize("is_json", [False, True], ids=["msgpack", "json"])


def publish(client: NativeClient, topic: str) -> None:
    """A message for each key, which is its payload too."""
    for key in KEYS:
        client.publish(topic, key.encode(), {"key": key})


def keys(client: NativeClient) -> list[str]:
    """The keys of the jobs or deliveries that came."""
    found: list[str] = []
    for frame in client.take():
        if frame[0] == Op.JOBS:
            found += [job[3]["key"] for job in frame[2]]
        elif frame[0] == Op.DELIVERY:
            found.append(frame[4]["key"])
    return found


class TestQueues:
    """`consume` with the option `canary`."""

    def declared(self, link: NativeLink, **options: Any) -> NativeClient:
        """A client that has made the queue."""
        client = link.connect()
        client.call(Op.QUEUE_DECLARE, "q", options)
        return client

    @JSON_TOO
    def test_canaries_get_their_share(self, is_json: bool) -> None:
        """By key; the statistics say how much that was."""
        link = NativeLink()
        owner = self.declared(link, canary_share=SHARE)
        canary, other = (link.connect(is_json=is_json) for _ in range(2))
        canary.opened(Op.CONSUME, "q", {"credit": 100, "canary": True})
        other.opened(Op.CONSUME, "q", {"credit": 100, "canary": False})
        publish(owner, "$queue/q")
        assert (keys(canary), keys(other)) == (FOR_CANARIES, FOR_OTHERS)
        found = owner.call(Op.QUEUE_DESCRIBE, "q")
        assert found["definition"]["canary_share"] == SHARE
        figures = found["statistics"]
        assert figures["canaries"] == 1
        assert figures["waiting_for_canaries"] == 0
        assert figures["delivered_to_canaries"] == len(FOR_CANARIES)

    def test_the_share_is_changed_while_they_consume(self) -> None:
        """By `declare`, which needs no more than the option."""
        link = NativeLink()
        owner = self.declared(link, canary_share=0)
        canary, other = link.connect(), link.connect()
        canary.opened(Op.CONSUME, "q", {"credit": 1000, "canary": True})
        other.opened(Op.CONSUME, "q", {"credit": 1000})
        for share in (0, 0.3, 1, 0):
            owner.call(Op.QUEUE_DECLARE, "q", {"canary_share": share})
            publish(owner, "$queue/q")
            expected = [key for key in KEYS if is_for_canaries(share, key, 0)]
            assert keys(canary) == expected
            assert len(keys(other)) == len(KEYS) - len(expected)

    def test_a_restart_changes_nothing(self) -> None:
        """Share and sides are as they were."""
        link = NativeLink()
        self.declared(link, canary_share=SHARE)
        link = link.restart()
        canary, other = link.connect(), link.connect()
        canary.opened(Op.CONSUME, "q", {"credit": 100, "canary": True})
        other.opened(Op.CONSUME, "q", {"credit": 100})
        publish(link.connect(), "$queue/q")
        assert (keys(canary), keys(other)) == (FOR_CANARIES, FOR_OTHERS)

    def test_a_canary_without_credit_holds_up_for_a_lease_at_most(self) -> None:
        """What waits for it goes to others then; with credit it is back."""
        link = NativeLink()
        owner = self.declared(link, canary_share=SHARE, lease_s=10)
        canary, other = link.connect(), link.connect()
        channel = canary.opened(Op.CONSUME, "q", {"credit": 0, "canary": True})
        other.opened(Op.CONSUME, "q", {"credit": 1000})
        publish(owner, "$queue/q")
        assert keys(other) == FOR_OTHERS
        statistics = owner.call(Op.QUEUE_DESCRIBE, "q")["statistics"]
        assert statistics["waiting_for_canaries"] == len(FOR_CANARIES)
        link.advance(10.1)
        assert keys(other) == FOR_CANARIES
        canary.send([Op.CREDIT, channel, 1000])
        publish(owner, "$queue/q")
        assert (keys(canary), keys(other)) == (FOR_CANARIES, FOR_OTHERS)

    def test_what_a_canary_could_not_do(self) -> None:
        """Another consumer gets it, and is told that it failed once."""
        link = NativeLink()
        owner = self.declared(link, canary_share=1.0)
        canary, other = link.connect(), link.connect()
        channel = canary.opened(Op.CONSUME, "q", {"canary": True})
        other.opened(Op.CONSUME, "q")
        owner.publish("$queue/q", b"x")
        ((_, _, ((lease, _, _),)),) = canary.take()
        canary.call(Op.NACK, channel, lease, 0)
        ((_, _, ((_, _, payload, _, attempts),)),) = other.take()
        assert (payload, attempts) == (b"x", 1)
        assert canary.take() == []

    @pytest.mark.parametrize("share", [-0.1, 1.1, "half", True])
    def test_a_share_that_is_none(self, share: object) -> None:
        """It is refused, and the queue is as it was."""
        client = self.declared(NativeLink())
        assert client.refused(Op.QUEUE_DECLARE, "q", {"canary_share": share}) == Code.INVALID
        assert client.call(Op.QUEUE_DESCRIBE, "q")["definition"]["canary_share"] == 0

    def test_a_mark_that_is_none(self) -> None:
        """It is refused, and nothing consumes."""
        client = self.declared(NativeLink())
        assert client.refused(Op.CONSUME, "q", {"canary": 0.1}) == Code.INVALID
        assert client.call(Op.QUEUE_DESCRIBE, "q")["statistics"]["consumers"] == 0


class TestGroups:
    """`subscribe` with the options `group` and `canary_share`."""

    @JSON_TOO
    def test_canaries_get_their_share(self, is_json: bool) -> None:
        """By key, as in a queue with this share."""
        link = NativeLink()
        canary, other = (link.connect(is_json=is_json) for _ in range(2))
        canary.opened(Op.SUBSCRIBE, "t", {"group": "g", "canary_share": SHARE})
        other.opened(Op.SUBSCRIBE, "t", {"group": "g"})
        publish(link.connect(), "t")
        assert (keys(canary), keys(other)) == (FOR_CANARIES, FOR_OTHERS)
        canary.cut()
        publish(link.connect(), "t")
        assert keys(other) == KEYS

    def test_the_largest_share_counts(self) -> None:
        """While its member is there."""
        link = NativeLink()
        first, second, other = (link.connect() for _ in range(3))
        first.opened(Op.SUBSCRIBE, "t", {"group": "g", "canary_share": 0.1})
        channel = second.opened(Op.SUBSCRIBE, "t", {"group": "g", "canary_share": SHARE})
        other.opened(Op.SUBSCRIBE, "t", {"group": "g"})
        publish(other, "t")
        assert sorted(keys(first) + keys(second)) == sorted(FOR_CANARIES)
        second.call(Op.CLOSE, channel)
        other.take()
        publish(other, "t")
        assert keys(first) == [key for key in KEYS if is_for_canaries(0.1, key, 0)]

    def test_a_canary_without_credit(self) -> None:
        """It holds up nothing: another member that has credit gets the message."""
        link = NativeLink()
        canary, other = link.connect(), link.connect()
        channel = canary.opened(
            Op.SUBSCRIBE, "t", {"group": "g", "canary_share": 1, "credit": 0, "buffer": 0}
        )
        other.opened(Op.SUBSCRIBE, "t", {"group": "g", "credit": 1000})
        publish(other, "t")
        assert keys(other) == KEYS
        canary.send([Op.CREDIT, channel, 2])
        publish(other, "t")
        assert (keys(canary), keys(other)) == (KEYS[:2], KEYS[2:])

    def test_what_a_canary_was_not_sent(self) -> None:
        """The others get it when it leaves."""
        link = NativeLink()
        canary, other = link.connect(), link.connect()
        canary.opened(Op.SUBSCRIBE, "t", {"group": "g", "canary_share": 1, "credit": 0})
        publish(other, "t")
        other.opened(Op.SUBSCRIBE, "t", {"group": "g"})
        canary.cut()
        assert keys(other) == KEYS

    @pytest.mark.parametrize(
        "options",
        [
            {"canary_share": 0.1},
            {"canary_share": 0.1, "credit": 5},
            {"group": "g", "canary_share": 1.1},
            {"group": "g", "canary_share": -1},
            {"group": "g", "canary_share": True},
            {"group": "g", "canary_share": "0.1"},
        ],
    )
    def test_what_cannot_be(self, options: dict[str, Any]) -> None:
        """It is refused, and leaves nothing behind."""
        link = NativeLink()
        client = link.connect()
        assert client.refused(Op.SUBSCRIBE, "t", options) == Code.INVALID
        assert link.node.router.subscription_count == 0
        assert client.connection.channels == {}
