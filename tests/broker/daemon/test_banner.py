"""What the node says of itself when it is ready."""

from pathlib import Path

import pytest

from ganglion.broker.daemon.banner import banner, near, who_may_connect
from ganglion.broker.daemon.config import Configuration, load
from ganglion.broker.net.addresses import Address


def configuration(tmp_path: Path, text: str = "") -> Configuration:
    """The configuration that this text says."""
    file = tmp_path / "ganglion.toml"
    file.write_text(text)
    return load(file=file, environment={"HOME": str(tmp_path)}, directory=tmp_path)


USERS = 'access.users = "users"\n'
RULE = "[[rules]]\neffect = 'allow'\ntopics = '#'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["anybody on this machine", "no users are configured", "ganglion passwd add"]),
        ("access.insecure = true", ["anybody who can reach", "--insecure"]),
        (USERS, ["2 users of", "no rule allows them anything yet"]),
        (USERS + RULE, ["2 users of", "1 rule say"]),
        (USERS + "access.anonymous = true\n" + RULE, ["anybody on this machine, anonymously"]),
    ],
)
def test_who_may_connect_is_one_true_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    """The sentence names the users, the anonymous and the way to change it."""
    sentence = who_may_connect(configuration(tmp_path, text), 2)
    for each in words:
        assert each in sentence
    assert "\n" not in sentence


def test_the_screen_shows_what_is_needed_and_fits(tmp_path: Path) -> None:
    """Listeners, data, who may connect and what to try: on one screen of 24 lines."""
    listening = [("native", Address("0.0.0.0", 1884)), ("mqtts", Address("127.0.0.1", 8883))]
    screen = banner(configuration(tmp_path), listening, 0)
    assert len(screen.splitlines()) <= 24
    for words in (
        "0.0.0.0:1884   (other machines can reach it)",
        "127.0.0.1:8883\n",
        str(tmp_path / ".local/state/ganglion"),
        "anybody on this machine",
        "ganglion sub --url ganglion://127.0.0.1:1884 'hello/#'",
        "ganglion pub --url ganglion://127.0.0.1:1884 hello/world",
    ):
        assert words in screen


def test_a_node_without_a_native_listener_gives_no_commands_to_try(tmp_path: Path) -> None:
    """The commands speak the native protocol: without a listener for it nothing is shown."""
    screen = banner(configuration(tmp_path), [("web", Address("127.0.0.1", 8080))], 0)
    assert "  web     127.0.0.1:8080\n" in screen
    assert "ganglion sub" not in screen


def test_what_to_try_is_short_on_the_default_port(tmp_path: Path) -> None:
    """Where the default reaches the node, the commands to try carry no URL."""
    screen = banner(configuration(tmp_path), [("native", Address("127.0.0.1", 7883))], 0)
    assert "  ganglion sub 'hello/#'" in screen


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        (Address("0.0.0.0", 1), Address("127.0.0.1", 1)),
        (Address("::", 1), Address("::1", 1)),
        (Address("192.0.2.1", 1), Address("192.0.2.1", 1)),
        (Address(path="/run/g"), Address(path="/run/g")),
    ],
)
def test_a_wide_listener_is_reached_nearby(address: Address, reached: Address) -> None:
    """A listener on all addresses is reached by this machine's loopback address."""
    assert near(address) == reached
