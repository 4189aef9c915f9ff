"""The configuration: where values come from, and what is refused with which words."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganglion.broker.core.limits import Limits
from ganglion.broker.core.queue_definition import QueueDefinition
from ganglion.broker.core.stream_definition import StreamDefinition
from ganglion.broker.daemon.config import (
    Configuration,
    ConfigurationError,
    Flag,
    Problem,
    load,
    shown,
)
from ganglion.broker.daemon.settings import KEYS, TABLES, variable_of
from ganglion.broker.net.addresses import Address
from ganglion.clients.command_line.failures import EXIT_CONFIGURATION
from ganglion.protocols.mqtt.server import MqttSettings

DOCS = Path(__file__).resolve().parents[3] / "docs"
PACKAGING = DOCS.parent / "packaging"


def read(
    tmp_path: Path,
    text: str | None = None,
    environment: dict[str, str] | None = None,
    *flags: Flag,
) -> Configuration:
    """Load with only what is given: an own home, no variables of whoever runs the tests."""
    file = None
    if text is not None:
        file = tmp_path / "ganglion.toml"
        file.write_text(text)
    environment = {"HOME": str(tmp_path), **(environment or {})}
    return load(file=file, environment=environment, flags=flags, directory=tmp_path)


def problems(
    tmp_path: Path,
    text: str | None = None,
    environment: dict[str, str] | None = None,
    *flags: Flag,
) -> tuple[Problem, ...]:
    """What is wrong with a configuration that must not be accepted."""
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text, environment, *flags)
    assert caught.value.problems
    return caught.value.problems


def test_nothing_configured_is_a_node_on_loopback(tmp_path: Path) -> None:
    """Without file, environment and flags only this machine can reach the node."""
    configuration = read(tmp_path)
    assert [
        (each.scheme, str(each.address), each.optional) for each in configuration.listeners
    ] == [
        ("mqtt", "127.0.0.1:1883", False),
        ("mqtt", "[::1]:1883", True),
        ("native", "127.0.0.1:7883", False),
        ("native", "[::1]:7883", True),
        ("web", "127.0.0.1:8080", False),
        ("web", "[::1]:8080", True),
    ]
    assert all(each.address.is_loopback for each in configuration.listeners)
    assert configuration.limits == Limits()
    assert configuration.users_file is None
    assert not configuration.has_users
    assert configuration.data_directory == tmp_path / ".local/state/ganglion"
    assert set(configuration.sources) == set(KEYS)
    assert {name for name, source in configuration.sources.items() if source != "default"} == {
        "listeners.mqtts",
        "listeners.natives",
        "listeners.webs",
    }


def test_the_state_directory_of_the_user_is_respected(tmp_path: Path) -> None:
    """XDG_STATE_HOME moves the default data directory; a relative one is ignored as XDG demands."""
    moved = read(tmp_path, None, {"XDG_STATE_HOME": str(tmp_path / "state")})
    assert moved.data_directory == tmp_path / "state" / "ganglion"
    assert read(tmp_path, None, {"XDG_STATE_HOME": "state"}).data_directory == (
        tmp_path / ".local/state/ganglion"
    )


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    """Each key takes the value of the strongest source, and remembers which one it was."""
    text = """
        [log]
        level = "error"
        format = "json"
        [node]
        name = "from the file"
    """
    environment = {"GANGLION_LOG_LEVEL": "warning", "GANGLION_LOG_FORMAT": "human"}
    configuration = read(tmp_path, text, environment, Flag("log.level", "debug", "--log-level"))
    assert configuration.log_level == "debug"
    assert configuration.log_format == "human"
    assert configuration.node_name == "from the file"
    assert configuration.sources["log.level"] == "flag --log-level"
    assert configuration.sources["log.format"] == "environment GANGLION_LOG_FORMAT"
    assert configuration.sources["node.name"] == f"file {tmp_path / 'ganglion.toml'}"


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    """GANGLION_CONFIG is the configuration file when no flag names one."""
    (tmp_path / "other.toml").write_text('log.level = "error"')
    assert read(tmp_path, None, {"GANGLION_CONFIG": "other.toml"}).log_level == "error"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A configuration file that cannot be read is an error, never silently ignored."""
    (problem,) = problems(tmp_path, None, {"GANGLION_CONFIG": "missing.toml"})
    assert problem.source == f"file {tmp_path / 'missing.toml'}"
    assert problem.rule == "cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"[log\n", "is not TOML: "),
        (b"log.level = '\xff'", "is not UTF-8 (byte 13)"),
        (b"#" * (4 * 1024 * 1024 + 1), "is too large to be a configuration"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    """What cannot be read as TOML gives one problem that says why."""
    (tmp_path / "bad.toml").write_bytes(content)
    (problem,) = problems(tmp_path, None, {"GANGLION_CONFIG": "bad.toml"})
    assert problem.rule.startswith(rule)


def test_naming_one_listener_replaces_all_defaults(tmp_path: Path) -> None:
    """--mqtt alone listens there and nowhere else, even when a certificate is configured."""
    configuration = read(
        tmp_path,
        None,
        None,
        Flag("listeners.mqtt", ("127.0.0.1:7000", "unix:/run/ganglion"), "--mqtt"),
        Flag("tls.certificate", "server.pem", "--tls-cert"),
    )
    assert [str(each.address) for each in configuration.listeners] == [
        "127.0.0.1:7000",
        "unix:/run/ganglion",
    ]
    assert not any(each.optional for each in configuration.listeners)


def test_a_certificate_brings_tls_listeners(tmp_path: Path) -> None:
    """With a certificate and no listener named, MQTT over TLS is served on loopback as well."""
    configuration = read(tmp_path, '[tls]\ncertificate = "server.pem"')
    assert [str(each.address) for each in configuration.listeners if each.scheme == "mqtts"] == [
        "127.0.0.1:8883",
        "[::1]:8883",
    ]
    assert configuration.tls is not None
    assert configuration.tls.certificate == tmp_path / "server.pem"


def test_a_list_in_the_environment_is_separated_by_commas(tmp_path: Path) -> None:
    """Listeners can be listed in one variable; a bare port means loopback."""
    configuration = read(tmp_path, None, {"GANGLION_LISTENERS_MQTT": "1884, [::1]:1884"})
    assert [each.address for each in configuration.listeners] == [
        Address("127.0.0.1", 1884),
        Address("::1", 1884),
    ]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Every key is checked, whatever was wrong before it, and each problem names its source."""
    text = """
        lisstener = 3
        [log]
        level = "loud"
        [limits]
        recieve_max = 3
        inflight_max = 0
        drain_timeout_s = "long"
        [mqtt]
        sys_interval_s = true
    """
    found = problems(
        tmp_path, text, {"GANGLION_DATA_DIRECTRY": "x"}, Flag("limits.nonsense", "1", "--limit")
    )
    variable = (
        "environment: GANGLION_DATA_DIRECTRY is not a known variable; "
        "did you mean GANGLION_DATA_DIRECTORY?"
    )
    assert {str(problem).removeprefix(f"file {tmp_path}/ganglion.toml: ") for problem in found} == {
        "lisstener is not a known key; did you mean listeners?",
        "log.level must be one of debug, info, warning, error",
        "limits.recieve_max is not a known key; did you mean limits.receive_max?",
        "limits.inflight_max is 0; it must be a whole number from 1 to 65535",
        "limits.drain_timeout_s must be a number from 0 to 3600",
        "mqtt.sys_interval_s must be a number from 0 to 86400",
        variable,
        "flag --limit: limits.nonsense is not a known key",
    }


def test_a_table_must_be_a_table(tmp_path: Path) -> None:
    """A key in the place of a table is told so, and an unknown empty table is not overlooked."""
    rules = {problem.key: problem.rule for problem in problems(tmp_path, "log = 3\n[listenrs]")}
    assert rules == {
        "log": "must be a table, written [log]",
        "listenrs": "is not a known key; did you mean listeners?",
    }


def test_variables_of_kubernetes_services_are_not_settings(tmp_path: Path) -> None:
    """A service called ganglion, or ganglion-mqtt, does not keep the node from starting."""
    links = {
        "GANGLION_SERVICE_HOST": "10.0.0.1",
        "GANGLION_SERVICE_PORT": "1883",
        "GANGLION_SERVICE_PORT_MQTT": "1883",
        "GANGLION_PORT": "tcp://10.0.0.1:1883",
        "GANGLION_PORT_1883_TCP": "tcp://10.0.0.1:1883",
        "GANGLION_PORT_1883_TCP_ADDR": "10.0.0.1",
        "GANGLION_MQTT_SERVICE_HOST": "10.0.0.1",
        "GANGLION_MQTT_PORT_1883_TCP_PROTO": "tcp",
    }
    assert read(tmp_path, None, links).limits == Limits()


def test_variables_of_the_client_are_not_settings(tmp_path: Path) -> None:
    """What ganglion pub reads from the environment does not disturb ganglion serve."""
    names = ("URL", "CONTEXT", "USER", "PASSWORD", "TOKEN")
    own = {f"GANGLION_{name}": "x" for name in names}
    assert read(tmp_path, None, own).limits == Limits()


@pytest.mark.parametrize("address", ["0.0.0.0:1883", "[::]:1883", "192.0.2.1:1883", "example.org"])
def test_an_open_node_is_not_exposed(tmp_path: Path, address: str) -> None:
    """A listener that others can reach is refused without users, with what to do about it."""
    flag = Flag("listeners.mqtt", (address,), "--mqtt")
    (problem,) = problems(tmp_path, None, None, flag)
    assert problem.source == "flag --mqtt"
    for way_out in ("ganglion passwd add", "127.0.0.1", "--insecure"):
        assert way_out in problem.rule


def test_an_open_node_may_be_exposed_on_demand(tmp_path: Path) -> None:
    """--insecure is the one way to serve everybody without users."""
    flags = [
        Flag("listeners.mqtt", ("0.0.0.0:1883",), "--mqtt"),
        Flag("access.insecure", True, "--insecure"),
    ]
    assert read(tmp_path, None, None, *flags).insecure


def test_users_allow_a_wide_listener(tmp_path: Path) -> None:
    """With a users file the node may be reached from everywhere."""
    configuration = read(
        tmp_path, '[listeners]\nmqtt = ["0.0.0.0"]\n[access]\nusers = "people"', None
    )
    assert configuration.has_users
    assert configuration.users_file == tmp_path / "people"


def test_certificates_as_users_allow_a_wide_listener(tmp_path: Path) -> None:
    """Clients that show who they are by certificates are users as well."""
    text = """
        listeners.mqtts = ["0.0.0.0"]
        [tls]
        certificate = "server.pem"
        client_ca = "ca.pem"
        client_certificates = "required"
        use_certificate_as_user = true
    """
    assert read(tmp_path, text).has_users


def test_the_users_file_of_the_data_directory_is_used(tmp_path: Path) -> None:
    """What ganglion passwd made without being told where is in force without being configured."""
    data = tmp_path / "data"
    data.mkdir()
    flag = Flag("data.directory", str(data), "--data")
    assert read(tmp_path, None, None, flag).users_file is None
    (data / "users").touch()
    assert read(tmp_path, None, None, flag).users_file == data / "users"
    assert read(tmp_path, None, None, flag).has_users


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('listeners.mqtts = ["127.0.0.1"]', "listeners.mqtts"),
        ('tls.key = "key.pem"', "tls.key"),
        ('tls.client_certificates = "required"', "tls.client_certificates"),
        ("tls.use_certificate_as_user = true", "tls.use_certificate_as_user"),
        (
            'tls = { certificate = "c.pem", client_certificates = "required" }',
            "tls.client_certificates",
        ),
        (
            'tls = { certificate = "c.pem", use_certificate_as_user = true }',
            "tls.use_certificate_as_user",
        ),
        ("listeners.mqtt = []", "listeners.mqtt"),
        ('listeners.mqtt = ["127.0.0.1:1", "127.0.0.1:1"]', "listeners.mqtt"),
        ('listeners.mqtt = "127.0.0.1"', "listeners.mqtt"),
        ("listeners.mqtt = [1883]", "listeners.mqtt"),
        ('listeners.mqtt = ["127.0.0.1:70000"]', "listeners.mqtt"),
        ('node.name = ""', "node.name"),
        ('access.anonymous = "yes"', "access.anonymous"),
        ("mqtt.maximum_qos = 3", "mqtt.maximum_qos"),
        ("limits.connect_timeout_s = nan", "limits.connect_timeout_s"),
        ("limits.receive_max = 3.5", "limits.receive_max"),
        ("rules = 3", "rules"),
        ('rules = ["allow"]', "rules"),
        ("queues = 3", "queues"),
        ("streams = [3]", "streams"),
        ('[[streams]]\nname = "a/b"', "streams[1]"),
    ],
)
def test_what_cannot_mean_anything_is_refused(tmp_path: Path, text: str, key: str) -> None:
    """A value or a combination that cannot be meant is one problem under its key."""
    (problem,) = problems(tmp_path, text)
    assert problem.key == key


def test_a_client_authority_alone_asks_for_certificates(tmp_path: Path) -> None:
    """Naming authorities for client certificates without more makes certificates optional."""
    configuration = read(tmp_path, 'tls = { certificate = "c.pem", client_ca = "ca.pem" }')
    assert configuration.tls is not None
    assert configuration.tls.client_certificates == "optional"


def test_rules_keep_their_order_and_say_what_is_wrong(tmp_path: Path) -> None:
    """Rules are read in order; a wrong field is named with the number of its rule."""
    text = """
        [[rules]]
        effect = "deny"
        action = "publish"
        topics = "secret/#"
        [[rules]]
        effect = "allow"
        users = ["ada", "*"]
        topics = ["#"]
    """
    rules = read(tmp_path, text).rules
    assert [(rule.effect, rule.topics) for rule in rules] == [
        ("deny", ("secret/#",)),
        ("allow", ("#",)),
    ]
    found = problems(tmp_path, text + '[[rules]]\neffekt = "allow"\ntopics = ["a/#/b"]')
    assert {(problem.key, problem.rule) for problem in found} == {
        ("rules[3].effekt", "is not a field of a rule; did you mean effect?"),
        ("rules[3].effect", "is missing"),
    }


def test_queues_and_streams_are_tables(tmp_path: Path) -> None:
    """Queues and streams are defined in the file, or in the environment of a container."""
    text = """
        [[queues]]
        name = "jobs"
        bindings = ["plant/#"]
        dead_letter = "dead"
        [[queues]]
        name = "dead"
        [[streams]]
        name = "log"
        max_age_s = 86400
    """
    configuration = read(tmp_path, text)
    assert configuration.queues == (
        QueueDefinition(name="dead"),
        QueueDefinition(name="jobs", bindings=("plant/#",), dead_letter="dead"),
    )
    assert configuration.streams == (StreamDefinition(name="log", max_age_s=86_400.0),)
    values = {key.name: shown(key, configuration.values[key.name]) for key in KEYS.values()}
    assert (values["queues"], values["streams"]) == ("2 queues", "1 stream")
    environment = {"GANGLION_QUEUES": '[{name = "a"}]', "GANGLION_STREAMS": "[{}]"}
    (problem,) = problems(tmp_path, None, environment)
    assert (problem.source, problem.key) == ("environment GANGLION_STREAMS", "streams[1].name")


def test_rules_can_come_from_the_environment(tmp_path: Path) -> None:
    """A container without a file can have rules: GANGLION_RULES is a TOML list of inline tables."""
    value = '[{effect = "allow", topics = ["public/#"], action = "subscribe"}]'
    (rule,) = read(tmp_path, None, {"GANGLION_RULES": value}).rules
    assert (rule.effect, rule.action, rule.topics) == ("allow", "subscribe", ("public/#",))
    (problem,) = problems(tmp_path, None, {"GANGLION_RULES": "[{"})
    assert problem.key == "rules"


@given(
    st.sampled_from(sorted(KEYS)),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_any_text_in_a_variable_is_accepted_or_explained(name: str, value: str) -> None:
    """Whatever a variable holds, it gives a value or a problem that names its key, no exception."""
    environment = {"HOME": "/nonexistent", variable_of(name): value}
    try:
        configuration = load(environment=environment, directory=Path("/nonexistent"))
    except ConfigurationError as refusal:
        told = [(problem.source, problem.key) for problem in refusal.problems]
    else:
        told = [(configuration.sources[name], name)]
    source = f"environment {variable_of(name)}"
    assert any(told_of == source and key.startswith(name) for told_of, key in told)


@pytest.mark.parametrize("value", ["TRUE", " on ", "1", "yes"])
def test_truth_has_several_spellings_in_the_environment(tmp_path: Path, value: str) -> None:
    """In a variable true may be written as people do; in the file only as TOML does."""
    assert read(tmp_path, None, {"GANGLION_ACCESS_INSECURE": value}).insecure
    assert not read(tmp_path, None, {"GANGLION_ACCESS_INSECURE": "off"}).insecure


def test_relative_paths_of_the_file_are_relative_to_the_file(tmp_path: Path) -> None:
    """A configuration can be moved together with what it names."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "g.toml").write_text('access.users = "users"\ndata.directory = "../data"')
    configuration = load(
        file=tmp_path / "etc" / "g.toml", environment={"HOME": "/"}, directory=Path("/somewhere")
    )
    assert configuration.users_file == tmp_path / "etc" / "users"
    assert configuration.data_directory == tmp_path / "etc" / ".." / "data"


def test_a_reload_knows_what_it_cannot_change(tmp_path: Path) -> None:
    """Changed keys that need a restart are listed; those that SIGHUP takes over are not."""
    old = read(tmp_path)
    new = read(
        tmp_path, 'log.level = "debug"\nnode.name = "other"\n[limits]\nreceive_max = 7', None
    )
    assert old.changed_beside_reload(new) == ["node.name"]
    assert old.changed_beside_reload(old) == []


def test_every_limit_is_a_key() -> None:
    """No limit of the node is without its place in the configuration."""
    for each in fields(Limits):
        key = KEYS[f"limits.{each.name}"]
        assert key.why == each.metadata["why"]
        assert key.reloads


def test_every_mqtt_setting_is_a_key_with_its_default(tmp_path: Path) -> None:
    """What the MQTT server can be set to can be configured, and the defaults are its own."""
    settings = MqttSettings(**read(tmp_path).mqtt)
    assert settings == MqttSettings()
    names = {each.name for each in fields(MqttSettings)} - {"certificate_is_user"}
    assert names == set(read(tmp_path).mqtt)


def test_every_key_is_documented() -> None:
    """docs/configuration.md has a section for each table and names each key but the limits'."""
    text = (DOCS / "configuration.md").read_text()
    for table in TABLES:
        assert f"[{table}]" in text
    for name in KEYS:
        if not name.startswith("limits."):
            assert f"`{name}`" in text, name


def test_values_are_shown_on_one_line(tmp_path: Path) -> None:
    """Ganglion check prints each value in TOML's spelling."""
    configuration = read(tmp_path, "rules = [{ effect = 'deny', topics = 'a' }]")
    values = {name: shown(KEYS[name], value) for name, value in configuration.values.items()}
    assert values["listeners.mqtt"] == '["127.0.0.1:1883", "[::1]:1883"]'
    assert values["access.insecure"] == "false"
    assert values["tls.certificate"] == "(none)"
    assert values["rules"] == "1 rule"
    assert values["log.level"] == '"info"'
    assert values["limits.receive_max"] == "1024"


def test_the_example_is_accepted() -> None:
    """packaging/ganglion.toml can be used as it is, once the files that it names are there."""
    configuration = load(file=PACKAGING / "ganglion.toml", environment={"HOME": "/"})
    assert configuration.users_file == PACKAGING / "users"
    assert len(configuration.rules) == 3
    assert configuration.node_name == "plant-1"


def test_the_unit_knows_our_exit_code() -> None:
    """The example unit does not restart a node whose configuration is not accepted."""
    unit = (PACKAGING / "ganglion.service").read_text()
    assert f"RestartPreventExitStatus={EXIT_CONFIGURATION}" in unit
    assert "Type=notify" in unit
    assert "kill -HUP" in unit


def test_what_the_web_listener_is_asked_for(tmp_path: Path) -> None:
    """Origins, compression and proxies come from the file or from variables."""
    configuration = read(
        tmp_path,
        """
        [web]
        origins = ["https://shop.example.com", "http://localhost:3000"]
        compression = true
        [proxy]
        trusted = ["10.0.0.0/8"]
        """,
        {"GANGLION_PROXY_LISTENERS": "mqtt, webs"},
    )
    assert configuration.origins == ("https://shop.example.com", "http://localhost:3000")
    assert configuration.compression
    assert configuration.trusted == ("10.0.0.0/8",)
    assert configuration.proxied == ("mqtt", "webs")


@pytest.mark.parametrize(
    ("text", "key", "word"),
    [
        ('web.origins = ["shop.example.com"]', "web.origins", "https://example.com"),
        ('web.origins = ["https://shop.example.com/path"]', "web.origins", "without a path"),
        ('web.origins = "https://a.example"', "web.origins", "list"),
        ("web.origins = [1]", "web.origins", "list of texts"),
        ('proxy.trusted = ["10.0.0.1/8"]', "proxy.trusted", "wrong address"),
        ('proxy.trusted = ["10.0.0.1"]\nproxy.listeners = ["http"]', "proxy.listeners", "none of"),
        ('proxy.listeners = ["mqtt"]', "proxy.listeners", "without proxy.trusted"),
        ('listeners.webs = ["127.0.0.1"]', "listeners.webs", "certificate"),
    ],
)
def test_what_is_wrong_with_the_web_is_named(
    tmp_path: Path, text: str, key: str, word: str
) -> None:
    """Each with its key and the rule."""
    (problem,) = problems(tmp_path, text)
    assert problem.key == key
    assert word in problem.rule


def test_a_certificate_brings_the_web_over_tls(tmp_path: Path) -> None:
    """As for MQTT: on loopback, at the port of the scheme."""
    configuration = read(tmp_path, '[tls]\ncertificate = "server.pem"')
    assert [str(each.address) for each in configuration.listeners if each.scheme == "webs"] == [
        "127.0.0.1:8443",
        "[::1]:8443",
    ]
