"""Client commands as processes against a daemon: signals, pipes, TLS, transports, passwords."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from ganglion.clients.command_line.failures import (
    EXIT_INTERRUPTED,
    EXIT_IO,
    EXIT_PIPE,
    EXIT_UNAVAILABLE,
)
from tests.support import Daemon, start_daemon, until

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "ganglion"]


def url_of(daemon: Daemon) -> str:
    """Where the daemon speaks the native protocol."""
    return f"ganglion://127.0.0.1:{daemon.ports['native']}"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_interrupting_a_subscriber_is_quiet() -> None:
    """Ctrl-C ends ganglion sub with 130, without a traceback, and the node gets a goodbye."""
    with start_daemon("--native", "127.0.0.1:0") as daemon:
        url = url_of(daemon)
        run("pub", "--url", url, "-r", "t", "there")
        command = [*COMMAND, "sub", "--url", url, "t"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_INTERRUPTED
    assert errors.strip() == b""


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    """A broken pipe gives 141 and no word on standard error, as with other filters."""
    with start_daemon("--native", "127.0.0.1:0") as daemon:
        url = url_of(daemon)
        run("stream", "declare", "s", "--url", url)
        feed = subprocess.Popen(
            [*COMMAND, "stream", "append", "s", "--url", url, "--stdin", "--lines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        feed.communicate(b"x" * 100 + b"\n" + b"y\n" * 1000, timeout=20)
        command = [*COMMAND, "stream", "follow", "s", "--url", url, "--after", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            until(
                lambda: (
                    run("stream", "append", "s", "--url", url, "more").returncode == 0
                    and process.poll() is not None
                ),
                what="the follower ends",
            )
            assert process.stderr is not None
            assert process.stderr.read() == b""
    assert process.returncode == EXIT_PIPE


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">/dev/full", EXIT_IO, b"No space left on device"),
        (">&-", 0, b""),
        ("<&-", 0, b""),
        ("<&- >&- 2>&-", 0, b""),
    ],
)
def test_output_that_cannot_be_written(redirection: str, code: int, words: bytes) -> None:
    """A full disk is told in one line; what was closed on purpose does no harm."""
    with start_daemon("--native", "127.0.0.1:0") as daemon:
        url = url_of(daemon)
        run("pub", "--url", url, "-r", "t", "there")
        for arguments in (f"pub --url {url} t x", f"sub --url {url} t -n 1"):
            done = subprocess.run(
                ["sh", "-c", f"{sys.executable} -m ganglion {arguments} {redirection}"],
                capture_output=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == code, done.stderr
            assert words in done.stderr
            assert b"Traceback" not in done.stderr


def test_a_node_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    """The command ends with 69, and says how many lines were taken; the rest can be sent again."""
    data = str(tmp_path / "data")
    with start_daemon("--native", "127.0.0.1:0", "--data", data) as daemon:
        url = url_of(daemon)
        run("stream", "declare", "s", "--url", url)
        command = [*COMMAND, "stream", "append", "s", "--url", url, "--stdin", "--lines"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b"one\ntwo\n")
            process.stdin.flush()
            until(
                lambda: run("stream", "read", "s", "--url", url).stdout == b"one\ntwo\n",
                what="two records",
            )
            daemon.kill()
            process.stdin.write(b"three\n")
            process.stdin.flush()
            _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_UNAVAILABLE
    assert b"2 of " in errors
    assert b"sent messages were taken" in errors
    with start_daemon("--native", "127.0.0.1:0", "--data", data) as daemon:
        assert run("stream", "read", "s", "--url", url_of(daemon)).stdout == b"one\ntwo\n"


@pytest.mark.parametrize(
    "command",
    [
        ["sub", "t"],
        ["queue", "consume", "q"],
        ["queue", "consume", "q", "--exec", "cat"],
        ["stream", "follow", "s"],
        ["serve-reply", "t", "x"],
        ["serve-reply", "t", "--exec", "cat"],
    ],
    ids=" ".join,
)
def test_a_node_that_stops_ends_what_waits(command: list[str]) -> None:
    """A restart is told with 69, which a supervisor may take for a reason to begin again.

    The node does not have to wait for the command.
    """
    with start_daemon("--native", "127.0.0.1:0", "--limit", "drain_timeout_s=60") as daemon:
        url = url_of(daemon)
        before = daemon.descriptors()
        run("queue", "declare", "q", "--url", url)
        run("stream", "declare", "s", "--url", url)
        until(lambda: daemon.descriptors() == before, what="the end of those connections")
        with subprocess.Popen(
            [*COMMAND, *command, "--url", url], stderr=subprocess.PIPE
        ) as process:
            until(lambda: daemon.descriptors() > before, what="a connection")
            daemon.stop()
            _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_UNAVAILABLE
    assert errors.startswith(b"ganglion: ")
    assert errors.count(b"\n") == 1


@pytest.mark.parametrize("how", ["the node is gone", "Ctrl-C"])
@pytest.mark.parametrize("command", [["queue", "consume", "q"], ["serve-reply", "t"]], ids=" ".join)
def test_commands_that_run_end_with_the_connection(
    command: list[str], how: str, tmp_path: Path
) -> None:
    """What a command has started is stopped as well, and not waited for."""
    with start_daemon("--native", "127.0.0.1:0") as daemon:
        url = url_of(daemon)
        run("queue", "declare", "q", "--url", url)
        run("queue", "send", "q", "x", "--url", url)
        work = f"touch {tmp_path}/begun; sleep 100; touch {tmp_path}/ended"
        arguments = [*COMMAND, *command, "--exec", work, "--url", url]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:

            def has_begun() -> bool:
                if command[0] == "serve-reply":
                    run("request", "t", "x", "--timeout", "0.1", "--url", url)
                return (tmp_path / "begun").exists()

            until(has_begun, what="the command")
            if how == "Ctrl-C":
                process.send_signal(signal.SIGINT)
            else:
                daemon.kill()
            process.communicate(timeout=20)  # the pipe ends: nobody holds it any more
    expected = EXIT_INTERRUPTED if how == "Ctrl-C" else EXIT_UNAVAILABLE
    assert process.returncode == expected
    assert not (tmp_path / "ended").exists()


def test_a_lease_is_extended_while_a_command_runs() -> None:
    """A command may take longer than the lease: nobody else gets the message meanwhile."""
    with start_daemon("--native", "127.0.0.1:0") as daemon:
        url = url_of(daemon)
        run("queue", "declare", "q", "-o", "lease_s=1", "--url", url)
        run("queue", "send", "q", "x", "--url", url)
        done = run("queue", "consume", "q", "-n", "1", "--exec", "sleep 2.5", "--url", url)
        assert (done.returncode, done.stderr) == (0, b"")
        described = json.loads(run("queue", "describe", "q", "--json", "--url", url).stdout)
    statistics = described["statistics"]
    assert (statistics["delivered"], statistics["acknowledged"]) == (1, 1)


def test_a_terminal_gets_no_control_characters() -> None:
    """What others publish cannot do anything to the terminal of a subscriber."""
    with start_daemon("--native", "127.0.0.1:0") as daemon:
        url = url_of(daemon)
        run("pub", "--url", url, "-r", "t", "\x1b[31mred")
        reading, writing = os.openpty()
        command = [*COMMAND, "sub", "--url", url, "t", "-n", "1"]
        assert subprocess.run(command, stdout=writing, timeout=30, check=False).returncode == 0
        shown = os.read(reading, 4096)
        os.close(reading)
        os.close(writing)
        assert shown == b"\\x1b[31mred\r\n"
        piped = subprocess.run(command, stdout=subprocess.PIPE, timeout=30, check=False)
        assert piped.stdout == b"\x1b[31mred\n"


@pytest.mark.parametrize(("listener", "scheme"), [("natives", "ganglions"), ("webs", "wss")])
def test_certificates_are_checked(tmp_path: Path, listener: str, scheme: str) -> None:
    """The commands trust --ca alone, refuse an unknown node, and can be told not to care."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "server.pem"
    )
    with start_daemon(
        f"--{listener}", "127.0.0.1:0", "--tls-cert", str(tmp_path / "server.pem")
    ) as daemon:
        url = f"{scheme}://127.0.0.1:{daemon.ports[listener]}"
        command = ["pub", "--url", url, "t", "x"]
        assert run(*command, "--ca", str(tmp_path / "ca.pem")).returncode == 0
        assert run(*command, "--insecure").returncode == 0
        unknown = run(*command)
        assert unknown.returncode == 69
        assert b"cannot connect" in unknown.stderr
        assert b"Traceback" not in unknown.stderr
        missing = run(*command, "--ca", "missing")
        assert missing.returncode == 1
        assert b"cannot use missing" in missing.stderr


def test_a_token_lets_in(tmp_path: Path) -> None:
    """What ganglion token prints is good in place of a password, by variable, file and context."""
    data = str(tmp_path / "data")
    subprocess.run([*COMMAND, "passwd", "add", "ada", "--data", data], input=b"x\n", check=True)
    token = run("token", "ada", "--data", data).stdout.decode().strip()
    (tmp_path / "token").write_text(token)
    config = '[[rules]]\neffect = "allow"\ntopics = "#"\n'
    with start_daemon("--native", "127.0.0.1:0", "--data", data, config=config) as daemon:
        command = ["pub", "--url", url_of(daemon), "t", "x"]
        assert run(*command).returncode == 77
        assert run(*command, GANGLION_TOKEN=token).returncode == 0
        assert run(*command, GANGLION_TOKEN=token[:-2]).returncode == 77
        assert run(*command, "--token-file", str(tmp_path / "token")).returncode == 0
        home = {"XDG_CONFIG_HOME": str(tmp_path)}
        add = ["context", "add", "c", "--url", url_of(daemon), "--token-file"]
        assert run(*add, str(tmp_path / "token"), **home).returncode == 0
        assert run("pub", "t", "x", **home).returncode == 0


def test_help_and_version_import_no_broker() -> None:
    """What only shows help pays neither for the broker nor for a protocol."""
    code = (
        "import sys; from ganglion.clients.command_line.root import cli; "
        "cli(['queue', 'consume', '--help'], standalone_mode=False); "
        "print([n for n in sys.modules if n.startswith(('ganglion.broker', 'trio', "
        "'msgpack', 'wsproto', 'ganglion.protocols'))], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr.strip() == b"[]"


def test_a_command_over_tcp_does_not_pay_for_websocket() -> None:
    """Importing wsproto and h11 takes longer than a publish: it is done for ws:// alone."""
    with start_daemon("--native", "127.0.0.1:0", "--web", "127.0.0.1:0") as daemon:
        code = (
            "import sys; from ganglion.clients.command_line.root import cli; "
            "cli(['pub', '--url', sys.argv[1], 't', 'x'], standalone_mode=False); "
            "print('wsproto' in sys.modules)"
        )
        web = f"ws://127.0.0.1:{daemon.ports['web']}/ws"
        for url, imported in ((url_of(daemon), b"False"), (web, b"True")):
            command = [sys.executable, "-c", code, url]
            done = subprocess.run(command, capture_output=True, check=True)
            assert done.stdout.splitlines()[-1] == imported
