"""The command line in this process: what it prints, and which exit codes it gives."""

import json
import stat
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ganglion import __version__
from ganglion.broker.core.limits import Limits, describe_limits
from ganglion.broker.core.tokens import InvalidToken, user_of_token
from ganglion.broker.daemon import app
from ganglion.broker.daemon.cli import serve
from ganglion.broker.daemon.settings import KEYS
from ganglion.clients.command_line import failures
from ganglion.clients.command_line.root import cli
from ganglion.testing import RunningBroker

LIMITS_AND_REASONS = {name: why for name, _, why in describe_limits(Limits())}
DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands see a home, a state directory and a current directory of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a command as a shell would; standard output and error are kept apart."""
    return CliRunner().invoke(cli, arguments, input=stdin, prog_name="ganglion")


def test_version() -> None:
    """The version is that of the package."""
    result = run("version")
    assert (result.exit_code, result.stdout) == (0, f"ganglion {__version__}\n")


def every_command() -> list[tuple[str, click.Command]]:
    """Each command by its full name, those in groups as well."""
    found: list[tuple[str, click.Command]] = []
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {inner}", each) for inner, each in command.commands.items()]
        else:
            found.append((name, command))
    return found


@pytest.mark.parametrize("name", [name for name, _ in every_command()])
def test_every_command_has_help_and_a_section_in_the_guide(name: str) -> None:
    """--help works everywhere, and docs/command-line.md speaks of each command."""
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"ganglion {name}" in result.stdout
    assert f"ganglion {name}" in (DOCS / "command-line.md").read_text()


def test_every_option_is_in_the_guide() -> None:
    """No option of any command is missing in docs/command-line.md."""
    text = (DOCS / "command-line.md").read_text()
    for name, command in every_command():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                long = next(each for each in parameter.opts if each.startswith("--"))
                assert f"`{long}" in text, f"{name} {long}"


def test_the_flags_that_keys_name_are_options_of_serve() -> None:
    """What ganglion check calls a flag of a key can be given to ganglion serve."""
    flags = {flag for option in serve.params for flag in option.opts}
    assert {key.flag for key in KEYS.values() if key.flag is not None} <= flags


def test_check_shows_every_value_and_its_source(tmp_path: Path) -> None:
    """Each key is printed with its effective value and the place that it comes from."""
    (tmp_path / "g.toml").write_text('[log]\nlevel = "warning"')
    result = run("check", "--config", "g.toml", "--mqtt", "127.0.0.1:7", "--limit", "receive_max=9")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert set(KEYS) <= set(lines)
    assert lines["log.level"].split() == ["log.level", '"warning"', "file", "g.toml"]
    assert '["127.0.0.1:7"]' in lines["listeners.mqtt"]
    assert lines["listeners.mqtt"].endswith("flag --mqtt")
    assert lines["limits.receive_max"].split()[1] == "9"
    assert lines["limits.receive_max"].endswith("flag --limit receive_max")
    assert "The configuration is accepted." in result.stdout


def test_check_tells_all_problems_and_fails() -> None:
    """A configuration that is not accepted gives exit code 1 and every reason."""
    result = run("check", "--mqtts", "127.0.0.1", "--limit", "recieve_max=1", "--limit", "x=1")
    assert result.exit_code == 1
    assert "did you mean limits.receive_max?" in result.stderr
    assert "limits.x" in result.stderr
    assert result.stdout == ""
    missing = run("check", "--users", "nobody")
    assert missing.exit_code == 1
    assert "access.users" in missing.stderr


def test_serve_refuses_what_check_refuses() -> None:
    """A configuration that is not accepted ends ganglion serve with 78 before it listens."""
    result = run("serve", "--mqtt", "0.0.0.0:0")
    assert result.exit_code == 78
    assert "--insecure" in result.stderr
    (Path.cwd() / "file").touch()
    result = run("serve", "--mqtt", "127.0.0.1:0", "--data", "file/below")
    assert result.exit_code == 78
    assert "data.directory" in result.stderr


def test_a_port_in_use_is_one_line(ganglion_broker: RunningBroker) -> None:
    """Starting twice on one port ends with 69 and a line that names address and way out."""
    address = f"127.0.0.1:{ganglion_broker.port}"
    result = run("serve", "--mqtt", address, "--log-level", "error")
    assert result.exit_code == 69
    assert len(result.stderr.splitlines()) == 1
    assert address in result.stderr


def test_a_fault_of_our_own_is_logged_and_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the node cannot go on, the traceback is in the log's own form, and the code is 70."""

    async def fail(_broker: app.Broker) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(app.Broker, "run", fail)
    result = run("serve", "--mqtt", "127.0.0.1:0", "--log-format", "json")
    assert result.exit_code == 70
    *log, last = result.stderr.splitlines()
    assert "report it" in last
    assert "by accident" in json.loads(log[-1])["exception"]


def test_limits_are_listed_with_their_reasons(tmp_path: Path) -> None:
    """Every limit is shown with value, source and why, for people and for programs."""
    (tmp_path / "g.toml").write_text("[limits]\nreceive_max = 3")
    shown = json.loads(run("limits", "--json", "--config", "g.toml").stdout)
    assert [each["name"] for each in shown] == list(LIMITS_AND_REASONS)
    by_name = {each["name"]: each for each in shown}
    assert by_name["receive_max"]["value"] == 3
    assert by_name["receive_max"]["source"] == "file g.toml"
    assert by_name["inflight_max"]["source"] == "default"
    table = run("limits", "--limit", "receive_max=4").stdout
    for name, why in LIMITS_AND_REASONS.items():
        assert name in table
        assert why in table


def test_a_limit_needs_a_value() -> None:
    """--limit without = is a mistake of the command line."""
    result = run("limits", "--limit", "receive_max")
    assert result.exit_code == 2
    assert "NAME=VALUE" in result.stderr


@pytest.mark.slow
def test_users_are_managed_by_passwd(tmp_path: Path) -> None:
    """Passwords come from standard input; the default file is found by every command."""
    assert run("passwd", "add", "ada", stdin="first\n").exit_code == 0
    file = tmp_path / ".local/state/ganglion/users"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("passwd", "change", "ada", stdin="second").exit_code == 0
    again = run("passwd", "add", "ada", stdin="x\n")
    assert again.exit_code == 1
    assert "already" in again.stderr
    assert run("passwd", "list").stdout == "ada\n"
    assert f"1 user of {file}" in run("check").stdout
    assert run("passwd", "delete", "ada").exit_code == 0
    assert run("passwd", "delete", "ada").exit_code == 1
    assert run("passwd", "list").stdout == ""
    assert run("passwd", "list", "--users", "missing").exit_code == 1


@pytest.mark.slow
def test_an_open_container_can_get_its_first_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where serve refuses for want of users, passwd adds the first one, and serve would start."""
    monkeypatch.setenv("GANGLION_LISTENERS_MQTT", "0.0.0.0:1883")
    assert run("check").exit_code == 1
    assert run("limits").exit_code == 0
    assert run("passwd", "add", "ada", stdin="secret\n").exit_code == 0
    assert run("check").exit_code == 0


def test_a_password_is_never_an_argument() -> None:
    """No password can be given on the command line, where others could see it."""
    for name, command in every_command():
        options = {flag for parameter in command.params for flag in parameter.opts}
        assert "--password" not in options, name
    assert run("passwd", "add", "ada", "secret").exit_code == 2
    empty = run("passwd", "add", "ada", stdin="")
    assert empty.exit_code == 2
    assert "no password" in empty.stderr


ACCESS = """
[access]
users = "users"
[[rules]]
effect = "deny"
topics = ["home/private/#"]
[[rules]]
effect = "allow"
users = ["ada"]
action = "publish"
topics = ["home/#", "client/%c"]
"""


@pytest.fixture
def access_configuration(tmp_path: Path) -> str:
    """A configuration with rules, and a users file that nobody is in."""
    (tmp_path / "users").touch()
    (tmp_path / "g.toml").write_text(ACCESS)
    return "g.toml"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ada", "publish", "home/light"], 0, "rule 2"),
        (["ada", "publish", "home/private/x"], 1, "rule 1"),
        (["ada", "subscribe", "home/light"], 1, "denied by default"),
        (["bob", "publish", "home/light"], 1, "denied by default"),
        (["ada", "publish", "client/c7", "--client-id", "c7"], 0, "rule 2"),
        (["ada", "publish", "client/c7", "--client-id", "c8"], 1, "denied by default"),
        ([":anonymous", "publish", "home/light"], 1, "anonymous clients may not connect"),
    ],
)
def test_access_is_explained(
    access_configuration: str, arguments: list[str], code: int, words: str
) -> None:
    """The deciding rule is named, and the exit code says whether it is allowed."""
    result = run("acl", "explain", *arguments, "--config", access_configuration)
    assert result.exit_code == code, result.output
    assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["publish", "$queue/in"], 0, "make it where it is not there: denied: no rule"),
        (["publish", "$queue/in", "--retain"], 1, "they take no retained ones"),
        (["publish", "$queue/own"], 0, "make it where it is not there: allowed"),
        (["publish", "$queue/other"], 1, "denied by default"),
        (["publish", "$SYS/x"], 1, "belong to the node"),
        (["subscribe", "$queue/own"], 0, "make it where it is not there: allowed"),
        (["subscribe", "$queue/in"], 1, "denied by default"),
        (["subscribe", "$queue/own?lease_s=5/open/#"], 0, "change it to be so: allowed"),
        (["subscribe", "$queue/own/secret/#"], 1, "change it to be so: denied: no rule"),
        (["subscribe", "$share/g/$stream/own"], 0, "make it where it is not there: allowed"),
    ],
)
def test_access_to_queues_is_explained(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    """For a queue or stream it is told as well whether the client may make it or bind to it."""
    config = tmp_path / "config.toml"
    config.write_text(
        """
        [[rules]]
        effect = "allow"
        topics = ["$queue/own", "$stream/own", "open/#"]
        [[rules]]
        effect = "allow"
        action = "publish"
        topics = "$queue/in"
        [access]
        users = "users"
        """
    )
    (tmp_path / "users").write_text("")
    result = run("acl", "explain", "ann", *arguments, "--config", str(config))
    assert result.exit_code == code, result.output
    assert words in result.stdout


def test_an_unknown_user_is_pointed_out(access_configuration: str) -> None:
    """Explaining for a name that is in no users file says so, as it may be a slip."""
    result = run("acl", "explain", "ada", "publish", "home/x", "--config", access_configuration)
    assert "note: ada is not in" in result.stdout


def test_nobody_there_is_not_health() -> None:
    """A broker that is not there gives 1 for the health check."""
    assert run("health", "--url", "unix:/nonexistent").exit_code == 1


def test_health_asks_the_configured_listener(
    ganglion_broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the health check finds the broker by the same variables."""
    monkeypatch.setenv("GANGLION_LISTENERS_MQTT", f"127.0.0.1:{ganglion_broker.port}")
    result = run("health")
    assert (result.exit_code, result.stdout) == (0, f"{ganglion_broker.url} answers\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["passwd", "add"],
        ["store", "backup"],
        ["acl", "explain", "ada", "fly", "t"],
    ],
)
def test_mistakes_of_the_command_line(arguments: list[str]) -> None:
    """What cannot be understood gives 2, before anything is connected."""
    assert run(*arguments).exit_code == 2


def test_exit_codes_are_documented() -> None:
    """docs/command-line.md has a row for each exit code of its own."""
    text = (DOCS / "command-line.md").read_text()
    codes = [value for name, value in vars(failures).items() if name.startswith("EXIT_")]
    assert len(codes) == 10
    for code in codes:
        assert f"| {code} |" in text


def test_tokens_are_made_for_users(tmp_path: Path) -> None:
    """The first one makes the key, which only its owner may read; later ones use it."""
    data = ("--data", str(tmp_path))
    assert run("passwd", "add", "ada", *data, stdin="a password\n").exit_code == 0
    first = run("token", "ada", "--valid", "90s", *data)
    assert first.exit_code == 0
    key_file = tmp_path / "token.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    second = run("token", "ada", *data)
    for result, seconds in ((first, 90), (second, 3600)):
        token = result.stdout.strip().splitlines()[-1]
        now_s = time.time()
        assert user_of_token(key_file.read_bytes(), token, now_s + seconds - 30) == "ada"
        with pytest.raises(InvalidToken):
            user_of_token(key_file.read_bytes(), token, now_s + seconds + 30)
    assert run("token", "bob", *data).exit_code != 0
    assert run("token", "ada", "--valid", "soon", *data).exit_code != 0
    key_file.write_bytes(b"short")
    assert "is no key" in run("token", "ada", *data).output
