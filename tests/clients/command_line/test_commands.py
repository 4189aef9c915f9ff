"""The client commands in this process, against a broker in a thread."""

import json
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread

import pytest
from click.testing import CliRunner, Result

from ganglion.clients.addresses import NodeAddress
from ganglion.clients.command_line import connection as command_connection
from ganglion.clients.command_line.connection import BlockingClient
from ganglion.clients.command_line.root import cli
from ganglion.clients.command_line.sending import batches_of
from ganglion.clients.command_line.streams import parse_time
from ganglion.protocols.native.operations import Operation
from ganglion.testing import RunningBroker, broker_thread
from tests.support import until


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands see a home and a current directory of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def node(ganglion_broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> RunningBroker:
    """A node that the commands talk to when nothing else is said."""
    monkeypatch.setenv("GANGLION_URL", ganglion_broker.native_url)
    return ganglion_broker


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a command as a shell would; standard output and error are kept apart."""
    return CliRunner().invoke(cli, arguments, input=stdin, prog_name="ganglion")


@contextmanager
def background(command: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a program beside the test, and end it with it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(result: Result) -> list[dict[str, object]]:
    """What a command with --json printed."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.usefixtures("node")
def test_what_is_published_is_printed_in_every_form() -> None:
    """Payload, properties and retained flag arrive; templates and JSON show them."""
    sent = run("pub", "a/b", "hé", "-r", "-k", "7", "-H", "x=1", "--content-type", "text/plain")
    assert (sent.exit_code, sent.stdout) == (0, "sent 1 message; nobody gets it\n")
    assert run("sub", "a/#", "-n", "1").stdout == "hé\n"
    assert run("sub", "a/#", "-n", "1", "-v").stdout == "a/b hé\n"
    form = r"{key}\t{header.x}{header.y}|{hex}|{size}"
    assert run("sub", "a/#", "-n", "1", "--format", form).stdout == "7\t1|68c3a9|3\n"
    (shown,) = lines(run("sub", "a/#", "-n", "1", "--json"))
    assert shown == {
        "topic": "a/b",
        "payload": "hé",
        "key": "7",
        "headers": {"x": "1"},
        "content_type": "text/plain",
        "retained": True,
    }
    assert run("sub", "a/#", "--no-retained", "--timeout", "0.05").stdout == ""


@pytest.mark.usefixtures("node")
def test_payloads_come_from_files_and_lines(tmp_path: Path) -> None:
    """A message can be a whole file or standard input, or each line can be one."""
    (tmp_path / "payload").write_bytes(b"\0\xff\n")
    run("queue", "declare", "q", "-b", "#")
    assert run("pub", "t", "--file", "payload").exit_code == 0
    assert run("pub", "t", "--stdin", stdin=b"all\nof it").exit_code == 0
    result = run("pub", "t", "--stdin", "--lines", "--json", stdin="one\r\ntwo\n\nlast")
    (about,) = lines(result)
    assert about == {"topic": "t", "messages": 4, "subscribers": 0, "queues": 4, "streams": 0}
    assert run("pub", "t", "again", "--count", "2", "--rate", "1000").exit_code == 0
    assert run("pub", "t", "quiet", "--unconfirmed").stdout == "sent 1 message\n"
    got = [
        each.get("payload", each.get("payload_base64"))
        for each in lines(run("queue", "consume", "q", "-n", "9", "--json"))
    ]
    expected = ["AP8K", "all\nof it", "one", "two", "", "last", "again", "again", "quiet"]
    assert got == expected


def test_what_comes_while_a_command_waits_is_bounded(
    node: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages beyond the bound are dropped while an answer is waited for, and told of once."""
    monkeypatch.setattr(command_connection, "_INBOX_BYTES_MAX", 2000)
    there = NodeAddress.parse(node.native_url)
    with (
        BlockingClient(there, options={}) as reader,
        BlockingClient(there, options={}) as writer,
    ):
        reader.call(Operation.SUBSCRIBE, "flood")
        for _ in range(10):
            writer.call(Operation.PUBLISH, "flood", b"x" * 100)
        reader.call(Operation.RETAINED_GET, "nothing")  # what was published came before this answer
        frames = reader.frames(time.monotonic() + 10)
        assert [next(frames)[0] for _ in range(4)] == [Operation.MESSAGE] * 4
        assert next(frames) == (Operation.DROPPED, 0, 6)
        writer.call(Operation.PUBLISH, "flood", b"again")
        assert next(frames)[2] == b"again"


@pytest.mark.usefixtures("node")
def test_a_count_that_is_not_reached_is_a_failure() -> None:
    """--timeout ends well by itself, but with 75 when --count messages were wanted."""
    assert run("sub", "nothing", "--timeout", "0.05").exit_code == 0
    result = run("sub", "nothing", "--timeout", "0.05", "-n", "2")
    assert result.exit_code == 75
    assert "0 of 2 messages" in result.stderr


@pytest.mark.usefixtures("node")
def test_consuming_takes_what_was_asked_for_and_no_more() -> None:
    """With --count the rest stays in the queue untouched; --no-ack leaves everything there."""
    run("queue", "declare", "q")
    assert run("queue", "send", "q", "--stdin", "-l", stdin="1\n2\n3\n4\n").exit_code == 0
    assert run("queue", "consume", "q", "-n", "2", "--no-ack").stdout == "1\n2\n"
    assert run("queue", "consume", "q", "-n", "2").stdout == "1\n2\n"
    left = lines(run("queue", "browse", "q", "--json"))
    assert [(each["payload"], each["attempts"]) for each in left] == [("3", 0), ("4", 0)]


@pytest.mark.usefixtures("node")
def test_a_canary_of_a_queue() -> None:
    """--canary makes the consumer one; the share is an option of the queue."""
    run("queue", "declare", "q", "-o", "canary_share=0.5")
    run("queue", "send", "q", "--stdin", "-l", stdin="1\n2\n3\n")
    assert run("queue", "consume", "q", "-n", "1").stdout == "1\n"
    assert run("queue", "consume", "q", "-n", "2", "--canary").stdout == "2\n3\n"  # it is alone
    (described,) = lines(run("queue", "describe", "q", "--json"))
    definition, statistics = described["definition"], described["statistics"]
    assert isinstance(definition, dict)
    assert isinstance(statistics, dict)
    assert definition["canary_share"] == 0.5
    assert (statistics["delivered"], statistics["delivered_to_canaries"]) == (3, 2)


def test_a_canary_of_a_group(node: RunningBroker) -> None:
    """--canary-share 1 gets all messages in a row, though the group has another member."""
    there = NodeAddress.parse(node.native_url)
    is_over = Event()
    with BlockingClient(there, options={}) as other:
        other.call(Operation.SUBSCRIBE, "t", {"group": "g"})

        def publish() -> None:
            with BlockingClient(there, options={}) as client:
                for number in count():
                    client.call(Operation.PUBLISH, "t", str(number).encode())
                    if is_over.is_set():
                        return

        publisher = Thread(target=publish)
        publisher.start()
        result = run("sub", "t", "--group", "g", "--canary-share", "1", "-n", "5")
        is_over.set()
        publisher.join()
    got = [int(line) for line in result.stdout.splitlines()]
    assert got == list(range(got[0], got[0] + 5))


@pytest.mark.slow
@pytest.mark.usefixtures("node")
def test_a_command_decides_what_becomes_of_a_message(tmp_path: Path) -> None:
    """Exit code 0 is an ack and any other a nack; the command sees payload and topic."""
    run("queue", "declare", "q", "-b", "jobs/+")
    for name in ("good", "bad"):
        run("pub", f"jobs/{name}", name)
    command = f'test "$MESSAGE_TOPIC" = jobs/good && cat > {tmp_path}/seen'
    result = run("queue", "consume", "q", "-n", "2", "--exec", command, "--nack-delay", "60")
    assert result.exit_code == 1
    assert "ended with 1: given back" in result.stderr
    assert (tmp_path / "seen").read_text() == "good"
    (described,) = lines(run("queue", "describe", "q", "--json"))
    statistics = described["statistics"]
    assert isinstance(statistics, dict)
    assert (statistics["acknowledged"], statistics["delayed"]) == (1, 1)


@pytest.mark.usefixtures("node")
def test_a_stream_is_read_page_by_page() -> None:
    """More records than one answer holds are read, with sequences, keys and times."""
    run("stream", "declare", "s", "-o", "keyed=true")
    text = "".join(f"{number}\n" for number in range(2500))
    (about,) = lines(run("stream", "append", "s", "--stdin", "-l", "--json", stdin=text))
    assert about == {"stream": "s", "records": 2500, "first": 1, "last": 2500}
    assert run("stream", "read", "s").stdout == text
    assert run("stream", "read", "s", "--after", "2498").stdout == "2498\n2499\n"
    assert run("stream", "read", "s", "--from", "1h", "-n", "1").stdout == "0\n"
    assert run("stream", "append", "s", "x", "-k", "a", "--expected", "0").exit_code == 0
    refused = run("stream", "append", "s", "x", "-k", "a", "--expected", "0")
    assert refused.exit_code == 1
    (record,) = lines(run("stream", "read", "s", "-k", "a", "--json"))
    assert (record["sequence"], record["key"]) == (2501, "a")


@pytest.mark.usefixtures("node")
def test_a_group_goes_on_where_it_was() -> None:
    """A follower of a group acknowledges what it has printed, and no more than --count."""
    run("stream", "declare", "s")
    run("stream", "append", "s", "--stdin", "-l", stdin="1\n2\n3\n")
    assert run("stream", "groups", "s", "--add", "g", "--after", "0").exit_code == 0
    assert run("stream", "follow", "s", "-g", "g", "-n", "2").stdout == "1\n2\n"
    (group,) = lines(run("stream", "groups", "s", "--json"))
    assert (group["name"], group["position"], group["lag"]) == ("g", 2, 1)
    assert run("stream", "follow", "s", "-g", "g", "-n", "1").stdout == "3\n"
    assert lines(run("stream", "groups", "s", "--remove", "g", "--json")) == []


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["request", "q", "x"], 69, "nobody answers"),
        (["request", "q", "x", "--gather"], 69, "nobody answers"),
        (["queue", "describe", "nowhere"], 1, "no queue 'nowhere'"),
        (["queue", "consume", "nowhere", "-n", "1"], 1, "no queue 'nowhere'"),
        (["stream", "follow", "nowhere"], 1, "no stream 'nowhere'"),
        (["queue", "declare", "q", "-o", "colour=red"], 77, "colour"),
        (["pub", "$SYS/x", "y"], 77, "belong to the node"),
        (["pub", "a/#", "y"], 77, "wildcard"),
        (["sub", "$queue/q"], 77, ""),
    ],
)
def test_refusals_have_their_exit_code(arguments: list[str], code: int, words: str) -> None:
    """What the node refuses is told in its own words, with the exit code of its kind."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("ganglion: ")
    assert words in result.stderr


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pub", "\udcff", "x"], "is not text"),
        (["pub", "t", "x", "-k", "\udcff"], "is not text"),
        (["pub", "t", "x", "-H", "a=\udcff"], "is not text"),
        (["sub", "\udcff"], "is not text"),
        (["stream", "read", "s", "--after", str(10**20)], "more than 64 bits"),
        (["queue", "declare", "q", "-o", f"max_messages={10**25}"], "more than 64 bits"),
        (["sub", "t", "--timeout", "nan"], "not a number"),
        (["pub", "t", "x", "--rate", "inf"], "not a number"),
        (["request", "t", "x", "--timeout", "nan"], "not a number"),
        (["queue", "consume", "q", "--timeout", "-1"], "not in the range"),
        (["pub", "t", "x", "--stdin"], "give one of PAYLOAD"),
        (["pub", "t"], "give one of PAYLOAD"),
        (["pub", "t", "x", "-H", "name"], "write it NAME=VALUE"),
        (["sub", "t", "--format", "{colour}"], "no field colour"),
        (["queue", "declare", "q", "-o", "lease_s"], "write it NAME=VALUE"),
        (["queue", "consume", "q", "--no-ack", "--exec", "true"], "--no-ack"),
        (["stream", "append", "s", "x", "--expected", "1"], "--key"),
        (["stream", "read", "s", "--from", "noon"], "15m for 15 minutes ago"),
        (["stream", "read", "s", "--from", "1", "--after", "1"], "not both"),
        (["serve-reply", "t"], "give PAYLOAD, or --exec"),
        (["serve-reply", "t", "x", "--concurrency", "0"], "not in the range"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments: list[str], words: str) -> None:
    """What cannot be meant gives 2, and is said before anything is done."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.usefixtures("node")
def test_what_is_too_large_is_told_before_it_is_sent(tmp_path: Path) -> None:
    """With the size, and the limit of the node by its name."""
    (tmp_path / "big").write_bytes(bytes(17 * 1024 * 1024))
    run("stream", "declare", "s")
    for command in (["pub", "t"], ["stream", "append", "s"], ["request", "t"]):
        result = run(*command, "--file", "big")
        assert result.exit_code == 77
        assert "frame_max_bytes = 16,777,216" in result.stderr


@pytest.mark.usefixtures("node")
def test_how_far_it_came_is_told() -> None:
    """The first refusal ends it, and says how many were taken all the same."""
    run("queue", "declare", "q", "-o", "max_messages=3")
    text = "".join(f"{number}\n" for number in range(5))
    result = run("queue", "send", "q", "--stdin", "--lines", stdin=text)
    assert result.exit_code == 75
    assert result.stderr.endswith("; 3 of 5 sent messages were taken\n")
    assert run("queue", "consume", "q", "-n", "3").stdout == "0\n1\n2\n"
    run("stream", "declare", "s", "-o", "max_record_bytes=4")
    refused = run("stream", "append", "s", "--stdin", "--lines", stdin="one\ntwo\nthree\n")
    assert refused.exit_code == 77
    assert refused.stderr.endswith("; 0 of 3 sent messages were taken\n")
    assert run("stream", "read", "s").stdout == ""


def test_lines_are_appended_in_batches_that_fit() -> None:
    """As many as a frame takes, and as came at once; with a rate twenty batches a second."""
    lines = [b"%d" % number for number in range(2500)]
    assert [len(each) for each in batches_of(iter([lines, [b"x"]]), None)] == [1024, 1024, 452, 1]
    batches = list(batches_of(iter([lines]), None))
    assert [line for batch in batches for line in batch] == lines
    large = [bytes(400_000)] * 7
    assert [len(each) for each in batches_of(iter([large]), None)] == [3, 3, 1]
    assert [len(each) for each in batches_of(iter([lines[:25]]), 200)] == [10, 10, 5]
    assert [len(each) for each in batches_of(iter([lines[:3]]), 1)] == [1, 1, 1]


COMMAND = [sys.executable, "-m", "ganglion"]
WAITS_FOR_ANOTHER = """
    read -r name; [ $name = ready ] && exit
    touch $name; until [ -e one ] && [ -e two ]; do sleep 0.01; done; echo $name
"""
"""A command that ends only when the same one runs for the other message, too."""


@pytest.mark.slow
@pytest.mark.usefixtures("node")
def test_commands_run_beside_each_other(tmp_path: Path) -> None:
    """Messages of a queue, and requests: as many as --concurrency says."""
    run("queue", "declare", "q")
    run("queue", "send", "q", "--stdin", "--lines", stdin="one\ntwo\n")
    done = run(
        "queue", "consume", "q", "-n", "2", "--exec", WAITS_FOR_ANOTHER, "--concurrency", "2"
    )
    assert done.exit_code == 0
    (described,) = lines(run("queue", "describe", "q", "--json"))
    assert isinstance(described["statistics"], dict)
    assert described["statistics"]["acknowledged"] == 2
    for name in ("one", "two"):
        (tmp_path / name).unlink()
    command = [*COMMAND, "serve-reply", "t", "-n", "3", "--concurrency", "2"]
    with background([*command, "--exec", WAITS_FOR_ANOTHER]) as responder:
        until(lambda: run("request", "t", "ready").exit_code == 0)
        with background([*COMMAND, "request", "t", "one"]) as another:
            assert run("request", "t", "two").stdout == "two\n\n"
            printed, _ = another.communicate(timeout=20)
        assert printed == b"one\n\n"
        printed, _ = responder.communicate(timeout=20)
    assert sorted(printed.split()) == [b"one", b"ready", b"two"]
    assert responder.returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("node")
def test_a_reply_that_is_too_large_is_a_failure() -> None:
    """Who asks is told, and the responder goes on."""
    command = ["serve-reply", "large", "--exec", "head -c 17000000 /dev/zero", "-n", "1"]
    with background([*COMMAND, *command]) as responder:
        until(lambda: run("request", "large", "x", "--timeout", "20").exit_code == 1)
        assert responder.wait(timeout=20) == 0


def test_passwords_come_from_files_variables_and_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password and a forbidden topic give 77."""
    rules = [{"effect": "allow", "topics": "ok/#"}]
    with broker_thread(users={"ada": "secret"}, rules=rules) as running:
        command = ["pub", "ok/1", "x"]
        (tmp_path / "pw").write_text("secret\n")
        there = ["--url", running.native_url, "--user", "ada"]
        good = ["--password-file", "pw"]
        assert run(*command, *there, *good).exit_code == 0
        forbidden = run("pub", "no/1", "x", *there, *good)
        assert forbidden.exit_code == 77
        monkeypatch.setenv("GANGLION_PASSWORD", "wrong")
        assert run(*command, *there).exit_code == 77
        assert run("context", "add", "prod", *there, *good).exit_code == 0
        assert run(*command).exit_code == 0
        monkeypatch.setenv("GANGLION_PASSWORD", "secret")
        assert run(*command, *there).exit_code == 0
        assert run(*command, "--context", "prod", "--url", running.native_url).exit_code == 2
        shown = run("context", "show", "prod").stdout
        assert "secret" not in shown
    file = tmp_path / ".config/ganglion/contexts.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_contexts_are_kept(tmp_path: Path) -> None:
    """Contexts are added, chosen and removed; mistakes say what to do next."""
    assert "ganglion context add" in run("context", "list").stderr
    assert run("context", "add", "a b", "--url", "h", "--ca", "ca.pem", "--insecure").exit_code == 0
    assert run("context", "add", "c", "--url", "ws://h/x").exit_code == 0
    listed = lines(run("context", "list", "--json"))
    assert [(each["name"], each["current"]) for each in listed] == [("a b", True), ("c", False)]
    (shown,) = lines(run("context", "show", "--json"))
    assert (shown["ca"], shown["insecure"]) == (str(tmp_path / "ca.pem"), True)
    again = run("context", "add", "c", "--url", "h")
    assert (again.exit_code, "ganglion context remove c" in again.stderr) == (78, True)
    assert run("context", "use", "c").exit_code == 0
    assert "ganglion context use" in run("context", "remove", "c").stdout
    missing = run("pub", "t", "x", "--context", "c")
    assert missing.exit_code == 78
    assert "there is a b" in missing.stderr
    assert "--url URL" in missing.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("contexts = 1", "table 'contexts'"),
        ("[contexts.a]", "needs a url"),
        ("[contexts.a]\nurl = 1", "url of context a must be text"),
        ("[contexts.a]\nurl = 'h'\ncolour = 1", "has no colour"),
        ("[", "is not TOML"),
        ("[contexts.a]\nurl = 'h'\npassword = 'x'", "chmod 600"),
    ],
)
def test_a_broken_file_of_contexts_is_told(tmp_path: Path, text: str, words: str) -> None:
    """What cannot be used is named with the file, and gives 78."""
    file = tmp_path / ".config/ganglion/contexts.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    file.chmod(0o644)
    result = run("pub", "t", "x")
    assert result.exit_code == 78
    assert str(file) in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mqtt://h", "MQTT has its own clients"),
        ("http://h", "must be ganglion://"),
        ("ganglion://h/topic", "must end with the port"),
        ("ganglion://h:x", "is not a URL"),
        ("ganglion://ada:secret@h", "does not belong into a URL"),
    ],
)
def test_other_urls_are_refused(url: str, words: str) -> None:
    """What is no such URL is refused with what would be one; a password is not repeated."""
    result = run("pub", "--url", url, "t", "x")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "secret" not in result.stderr


def test_nobody_there_and_strangers_give_69(ganglion_broker: RunningBroker) -> None:
    """A port without a listener, and one that speaks something else."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"ganglion://127.0.0.1:{port}", "unix:/nonexistent", ganglion_broker.url[7:]):
        assert run("pub", "--url", url, "t", "x").exit_code == 69


@pytest.mark.parametrize(
    "arguments",
    [
        ["pub", "t"],
        ["pub", "t", "x", "--lines"],
        ["pub", "t", "x", "--stdin"],
        ["pub", "t", "x", "--header", "novalue"],
        ["sub"],
        ["sub", "t", "--count", "0"],
        ["sub", "t", "--canary-share", "0.1"],
        ["sub", "t", "--group", "g", "--canary-share", "1.1"],
        ["sub", "t", "--format", "{colour}"],
        ["serve-reply", "t"],
        ["serve-reply", "t", "x", "--exec", "y"],
        ["request", "t", "x", "--count", "2"],
        ["queue", "declare", "q", "-o", "novalue"],
        ["queue", "consume", "q", "--no-ack", "--exec", "true"],
        ["stream", "append", "s", "x", "--expected", "1"],
        ["stream", "read", "s", "--after", "1", "--from", "1h"],
        ["stream", "read", "s", "--from", "yesterday"],
        ["stream", "groups", "s", "--after", "1"],
    ],
)
def test_mistakes_of_the_command_line(arguments: list[str]) -> None:
    """What cannot be understood gives 2, before anything is connected."""
    assert run(*arguments).exit_code == 2


def test_times_are_read() -> None:
    """Unix seconds, ISO 8601 and how long ago."""
    assert parse_time("12.5", 0) == 12.5
    assert parse_time("1970-01-01T00:01:00+00:00", 0) == 60
    assert parse_time("90s", 100) == 10
    assert parse_time("1d", 100) == 0
