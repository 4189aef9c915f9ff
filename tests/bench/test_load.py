"""The load program against a broker that others wrote: what it counts is what was there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import load
from bench.brokers import BenchmarkError, Broker, start

pytestmark = [pytest.mark.interop, pytest.mark.slow]


def quick(broker: Broker, words: Sequence[str], *, tls: bool = False) -> load.Run:
    """A run as short as one that means something can be."""
    return load.run(broker, words, duration_s=0.3, warmup_s=0.05, tls=tls)


@pytest.mark.parametrize("version", [[], ["--v5"]], ids=["3.1.1", "5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_every_delivery_is_counted_once(tmp_path: Path, qos: str, version: list[str]) -> None:
    """Over all versions and qualities of service nothing is lost, doubled or out of order."""
    words = ["--pubs", "4", "--subs", "6", "--topics", "2", "--qos", qos, *version]
    with start("mosquitto", tmp_path / "broker") as broker:
        run = quick(broker, words)
    assert run.delivered_per_s > 0
    assert (run.lost, run.disordered, run.refused) == (0, 0, 0)


@pytest.mark.parametrize("size", ["16", "200", "70000"])
def test_over_websocket_it_is_the_same(tmp_path: Path, size: str) -> None:
    """Frames of each form of length, one for each packet, and whatever the broker puts in one."""
    words = ["--web", "--pubs", "2", "--subs", "4", "--topics", "2", "--qos", "1", "--size", size]
    which = "mosquitto" if size != "70000" else "ganglion"  # Mosquitto 2.0.11 passes none so long
    with start(which, tmp_path / "broker") as broker:
        run = quick(broker, words)
    assert run.delivered_per_s > 0
    assert (run.lost, run.disordered, run.refused) == (0, 0, 0)


def test_tls_and_passwords_and_rules(tmp_path: Path) -> None:
    """The load passes a broker that asks for a password, over a certificate that is verified."""
    with start("mosquitto-acl", tmp_path / "broker") as broker:
        assert quick(broker, [], tls=True).lost == 0


def test_a_fixed_rate_is_kept(tmp_path: Path) -> None:
    """With a rate, that many messages are sent, and their delays are measured."""
    with start("mosquitto", tmp_path / "broker") as broker:
        run = quick(broker, ["--rate", "500"])
    assert run.published_per_s == pytest.approx(500, rel=0.5)
    assert 0 < run.p50_us <= run.p99_us


def test_messages_to_many_filters_reach_each_its_holder(tmp_path: Path) -> None:
    """Each measured topic matches exactly one of the filters, whatever their form."""
    words = ["--filters", "400", "--match", "--spread", "400", "--subs", "0", "--qos", "1"]
    with start("mosquitto", tmp_path / "broker") as broker:
        run = quick(broker, words)
    assert run.delivered_per_s > 0
    assert (run.lost, run.disordered) == (0, 0)


def test_idle_connections_stay_until_they_are_let_go(tmp_path: Path) -> None:
    """All of them are connected when the program says so."""
    with (
        start("mosquitto", tmp_path / "broker") as broker,
        load.hold(broker, ["--idle", "50"]) as told,
    ):
        assert (told["connections"], told["idle_lost"]) == (50, 0)


def test_a_refused_connection_is_an_error(tmp_path: Path) -> None:
    """A run that could not take place gives no figures but the reason."""
    with (
        start("mosquitto-acl", tmp_path / "broker") as broker,
        pytest.raises(BenchmarkError, match="refused to connect"),
    ):
        quick(replace(broker, password="wrong"), [])
