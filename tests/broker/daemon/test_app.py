"""The daemon as a process: starting, reloading, stopping. All slow: each starts an interpreter."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from ganglion.broker.daemon.probe import ConnectionLost, ProbeError, Refused, Target
from ganglion.broker.daemon.users_file import add_user, delete_user
from ganglion.protocols.mqtt.packets import V311, Publish
from ganglion.protocols.mqtt.reasons import Reason
from tests.mqtt_client import MqttClient, tls_context
from tests.support import Daemon, start_daemon

pytestmark = pytest.mark.slow

RULES = """
[[rules]]
effect = "allow"
topics = ["open/#"]
"""


def target(daemon: Daemon, user: str | None = None, password: bytes | None = None) -> Target:
    """Where the daemon listens for MQTT."""
    return Target(host="127.0.0.1", port=daemon.ports["mqtt"], user=user, password=password)


def may_publish(client: MqttClient, topic: str) -> bool:
    """Whether the client is allowed to publish there."""
    try:
        client.publish(Publish(topic, b"x", qos=1))
        client.settle()
    except Refused as refusal:
        if refusal.reason != Reason.NOT_AUTHORIZED:
            raise
        return False
    return True


def reload_and_wait(daemon: Daemon, event: str) -> dict[str, object]:
    """Reload, and give the log event that tells how it went."""
    seen = len(daemon.events)
    daemon.reload()
    return daemon.wait_event(event, after=seen)


def test_it_says_where_it_listens_and_that_it_is_ready() -> None:
    """Without a terminal standard error has JSON lines: each listener, then ready."""
    with start_daemon("--mqtt", "127.0.0.1:0", "--mqtt", "unix:socket") as daemon:
        listening = [each for each in daemon.events if each["event"] == "listening"]
        assert [each["listener"] for each in listening] == ["mqtt", "mqtt"]
        assert listening[1]["address"] == "unix:socket"
        ready = daemon.events[-1]
        assert ready["event"] == "ready"
        assert ready["pid"] == daemon.pid
        assert "no users are configured" in str(ready["access"])
        for each in (target(daemon), Target(path=str(daemon.directory / "socket"))):
            with MqttClient(each) as client:
                client.ping()
        assert (daemon.directory / "data").stat().st_mode & 0o777 == 0o700


def test_ipv6_is_served() -> None:
    """A listener on ::1 is one like any other."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(reason=f"this machine has no IPv6 loopback: {error}")
    with (
        start_daemon("--mqtt", "[::1]:0") as daemon,
        MqttClient(Target(host="::1", port=daemon.ports["mqtt"])) as client,
    ):
        client.ping()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_stops(number: signal.Signals) -> None:
    """MQTT 5 clients are told that the server shuts down (0x8B), and the exit code is 0."""
    with start_daemon() as daemon:
        with MqttClient(target(daemon)) as client:
            daemon.signal(number)
            with pytest.raises(ConnectionLost, match="server shutting down"):
                list(client.messages(time.monotonic() + 10))
        assert daemon.wait() == 0
        assert daemon.events[-1]["event"] == "stopped"
        assert daemon.events[-1]["complete"] is True


def test_a_peer_that_does_not_read_holds_up_the_end_for_a_bounded_time() -> None:
    """drain_timeout_s bounds the drain; the exit is clean all the same."""
    with (
        start_daemon("--limit", "drain_timeout_s=0.2") as daemon,
        socket.create_connection(("127.0.0.1", daemon.ports["mqtt"])),
    ):
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_rules_of_a_reload_act_on_open_connections(tmp_path: Path) -> None:
    """SIGHUP: what a connected client may do changes without a new connection."""
    users = tmp_path / "users"
    add_user(users, "ada", lambda: "secret")
    with (
        start_daemon("--users", str(users), config=RULES) as daemon,
        MqttClient(target(daemon, "ada", b"secret")) as client,
    ):
        assert may_publish(client, "open/1")
        assert not may_publish(client, "closed/1")
        daemon.config_path.write_text(RULES.replace("open", "closed"))
        event = reload_and_wait(daemon, "reloaded")
        assert event["rules"] == 1
        assert not may_publish(client, "open/1")
        assert may_publish(client, "closed/1")


def test_queues_are_defined_at_the_start_and_by_a_reload() -> None:
    """SIGHUP changes and adds; what cannot be stays as it was, what is not named any more too."""
    first = '[[queues]]\nname = "jobs"\nbindings = "plant/#"\n[[queues]]\nname = "old"\n'
    with start_daemon(config=first) as daemon, MqttClient(target(daemon)) as client:
        client.publish(Publish("plant/a", b"1", qos=1))
        client.settle()
        second = first.replace("plant/#", "house/#").replace('"old"', '"new"')
        daemon.config_path.write_text(second)
        reload_and_wait(daemon, "reloaded")
        assert daemon.wait_event("not in the configuration any more, and kept")["kept"] == [
            "queue old"
        ]
        client.publish(Publish("plant/a", b"2", qos=1))
        client.publish(Publish("house/a", b"3", qos=1))
        client.settle()
        daemon.config_path.write_text(second.replace('"jobs"', '"jobs"\npriorities = 3'))
        reload_and_wait(daemon, "reloaded")
        assert "priorities" in str(daemon.wait_event("kept as it was")["problem"])
        client.subscribe(["$queue/jobs"], 1)
        messages = client.messages(time.monotonic() + 10)
        assert [next(messages).payload for _ in range(2)] == [b"1", b"3"]


def test_users_of_a_reload_are_in_force(tmp_path: Path) -> None:
    """SIGHUP: a new user can log in, a deleted one cannot, although it was verified before."""
    users = tmp_path / "users"
    add_user(users, "ada", lambda: "secret")
    with start_daemon("--users", str(users), config=RULES) as daemon:
        MqttClient(target(daemon, "ada", b"secret")).close()
        with pytest.raises(Refused):
            MqttClient(target(daemon, "bob", b"hidden"))
        add_user(users, "bob", lambda: "hidden")
        delete_user(users, "ada")
        reload_and_wait(daemon, "reloaded")
        MqttClient(target(daemon, "bob", b"hidden")).close()
        with pytest.raises(Refused) as caught:
            MqttClient(target(daemon, "ada", b"secret"))
        assert caught.value.reason == Reason.BAD_USER_NAME_OR_PASSWORD


def test_a_deleted_user_is_disconnected(tmp_path: Path) -> None:
    """SIGHUP: who is no user any more does not stay connected; the others do."""
    users = tmp_path / "users"
    add_user(users, "ada", lambda: "secret")
    add_user(users, "bob", lambda: "hidden")
    with (
        start_daemon("--users", str(users), config=RULES) as daemon,
        MqttClient(target(daemon, "ada", b"secret")) as ada,
        MqttClient(target(daemon, "bob", b"hidden")) as bob,
    ):
        delete_user(users, "ada")
        reload_and_wait(daemon, "reloaded")
        with pytest.raises(ConnectionLost, match="not authorized"):
            list(ada.messages(time.monotonic() + 10))
        bob.ping()


def test_a_broken_reload_changes_nothing(tmp_path: Path) -> None:
    """SIGHUP with a configuration that is not accepted keeps all of the old, and tells why."""
    users = tmp_path / "users"
    add_user(users, "ada", lambda: "secret")
    with start_daemon("--users", str(users), config=RULES) as daemon:
        with MqttClient(target(daemon, "ada", b"secret")) as client:
            assert may_publish(client, "open/1")
            users.write_text("garbage\n")
            daemon.config_path.write_text(
                RULES.replace("open", "closed") + "[limits]\nreceive_max = 0"
            )
            seen = len(daemon.events)
            reload_and_wait(daemon, "reload refused")
            told = [
                str(each["problem"])
                for each in daemon.events[seen:]
                if each["event"] == "configuration not accepted"
            ]
            assert any("limits.receive_max is 0" in each for each in told)
            assert may_publish(client, "open/1")
            assert not may_publish(client, "closed/1")
        MqttClient(target(daemon, "ada", b"secret")).close()


def test_a_reload_says_what_needs_a_restart() -> None:
    """SIGHUP: a changed key that cannot change while the node runs is named, not ignored."""
    with start_daemon(config="[node]\nname = 'one'") as daemon:
        daemon.config_path.write_text("[node]\nname = 'two'\n[log]\nlevel = 'warning'")
        event = reload_and_wait(daemon, "not changed by a reload")
        assert event["keys"] == ["node.name"]
        # 'reloaded' is an info message: after the level has changed it is not logged any more.
        assert "reloaded" not in [each["event"] for each in daemon.events]


def test_limits_of_a_reload_are_announced() -> None:
    """SIGHUP: new connections get the new limits."""
    with start_daemon(config="") as daemon:
        daemon.config_path.write_text("[limits]\npacket_size_max_bytes = 4321")
        reload_and_wait(daemon, "reloaded")
        with MqttClient(target(daemon)) as client:
            assert client.connack.properties is not None
            assert client.connack.properties.maximum_packet_size == 4321


def certificates(directory: Path, authority: trustme.CA) -> None:
    """A server's certificate and key, and the authority behind them, as files."""
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))


def serial_seen_by(port: int, ca: Path) -> int:
    """The serial number of the certificate that the daemon shows."""
    context = tls_context(ca=ca, certificate=None, key=None, verify=True)
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        shown = connection.getpeercert()
        assert shown is not None
        assert connection.selected_alpn_protocol() == "mqtt"
        return int(str(shown["serialNumber"]), 16)


def test_certificates_are_exchanged_without_a_drop(tmp_path: Path) -> None:
    """SIGHUP: new connections see the new certificate, those that are there stay."""
    authority = trustme.CA()
    certificates(tmp_path, authority)
    flags = ["--mqtts", "127.0.0.1:0", "--tls-cert", str(tmp_path / "server.pem")]
    with start_daemon(*flags) as daemon:
        port = daemon.ports["mqtts"]
        context = tls_context(ca=tmp_path / "ca.pem", certificate=None, key=None, verify=True)
        there = Target(host="127.0.0.1", port=port, tls=True)
        with MqttClient(there, tls=context) as client:
            before = serial_seen_by(port, tmp_path / "ca.pem")
            certificates(tmp_path, authority)
            reload_and_wait(daemon, "reloaded")
            assert serial_seen_by(port, tmp_path / "ca.pem") != before
            client.ping()


def test_a_certificate_can_be_the_user(tmp_path: Path) -> None:
    """With use_certificate_as_user the rules know a client by its certificate's name."""
    authority = trustme.CA()
    certificates(tmp_path, authority)
    ada = authority.issue_cert(common_name="ada")
    ada.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "ada.pem"))
    config = f"""
        listeners.mqtts = ["127.0.0.1:0"]
        [tls]
        certificate = "{tmp_path}/server.pem"
        client_ca = "{tmp_path}/ca.pem"
        client_certificates = "required"
        use_certificate_as_user = true
        [[rules]]
        effect = "allow"
        users = ["ada"]
        topics = ["ada/#"]
    """
    with start_daemon("--mqtt", "127.0.0.1:0", config=config) as daemon:
        there = Target(host="127.0.0.1", port=daemon.ports["mqtts"], tls=True)
        mine = tls_context(
            ca=tmp_path / "ca.pem", certificate=tmp_path / "ada.pem", key=None, verify=True
        )
        with MqttClient(there, tls=mine) as client:
            assert may_publish(client, "ada/1")
            assert not may_publish(client, "bob/1")
        nobody = tls_context(ca=tmp_path / "ca.pem", certificate=None, key=None, verify=True)
        with pytest.raises(ProbeError):
            MqttClient(there, tls=nobody).ping()
        with pytest.raises(Refused):
            MqttClient(target(daemon), version=V311)


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    """Under Type=notify: ready when it serves, reloading and ready around a reload, stopping."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)

        def told() -> str:
            return manager.recv(4096).decode().partition("\n")[0]

        with start_daemon(env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as daemon:
            assert told() == "READY=1"
            daemon.reload()
            assert told() == "RELOADING=1"
            assert told() == "READY=1"
            daemon.signal(signal.SIGTERM)
            assert told() == "STOPPING=1"


def test_a_person_gets_one_screen(tmp_path: Path) -> None:
    """On a terminal the start is the banner, and no JSON."""
    reading, writing = os.openpty()
    environment = {**os.environ, "NO_COLOR": "1", "HOME": str(tmp_path), "XDG_STATE_HOME": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "ganglion", "serve", "--native", "127.0.0.1:0"],
        stderr=writing,
        env=environment,
    )
    try:
        os.close(writing)
        text = ""
        while "Ctrl-C stops." not in text:
            text += os.read(reading, 4096).decode()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        os.close(reading)
    assert text.startswith("ganglion ")
    assert "{" not in text
    assert "ganglion sub --url ganglion://127.0.0.1:" in text


def test_kubernetes_variables_do_not_disturb() -> None:
    """The daemon starts beside a service of its own name."""
    with (
        start_daemon(env={"GANGLION_PORT": "tcp://10.0.0.1:1883"}) as daemon,
        MqttClient(target(daemon)) as client,
    ):
        client.ping()


def test_json_lines_stay_json() -> None:
    """Everything on standard error of a daemon without a terminal is a JSON object per line."""
    with start_daemon("--log-level", "debug") as daemon:
        with socket.create_connection(("127.0.0.1", daemon.ports["mqtt"])) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            raw.settimeout(10)
            raw.recv(100)
        daemon.stop()
        assert daemon.lines
        for line in daemon.lines:
            assert isinstance(json.loads(line), dict)
