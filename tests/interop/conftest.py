"""The brokers of the interop tests: Ganglion, or Mosquitto with ``TESTED_BROKER=mosquitto``.

There are three, each for the whole run: open to everybody, with a user and a password, and one that
demands a client certificate. The first two listen on TCP and TLS.
"""

import os
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from argon2 import PasswordHasher

from tests.interop.peers import PEERS, Server
from tests.support import BrokerProcess, mosquitto, start_daemon

WITH_MOSQUITTO = os.environ.get("TESTED_BROKER") == "mosquitto"
USER = "alice"
PASSWORD = "correct horse"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of a test's own certificate authority, of the broker and of a client."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority, a certificate for localhost and one for the client ``alice``."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    server = authority.issue_cert("localhost", "127.0.0.1")
    client = authority.issue_cert("alice@example.org", common_name=USER)
    for name, issued in (("server", server), ("client", client)):
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(folder / f"{name}.pem"), append=number > 0)
    return Certificates(
        folder / "authority.pem",
        folder / "server.pem",
        folder / "server.key",
        folder / "client.pem",
        folder / "client.key",
    )


def _tls_table(files: Certificates) -> str:
    return f'[tls]\ncertificate = "{files.server}"\nkey = "{files.server_key}"\n'


def _tls_lines(files: Certificates) -> str:
    return f"cafile {files.authority}\ncertfile {files.server}\nkeyfile {files.server_key}"


@contextmanager
def _open(files: Certificates) -> Generator[BrokerProcess]:
    if WITH_MOSQUITTO:
        listeners = {
            "mqtt": "allow_anonymous true",
            "mqtts": "allow_anonymous true\n" + _tls_lines(files),
            "web": "allow_anonymous true\nprotocol websockets",
            "webs": "allow_anonymous true\nprotocol websockets\n" + _tls_lines(files),
        }
        with mosquitto(listeners=listeners) as broker:
            yield broker
    else:
        flags = [f"--{each}=127.0.0.1:0" for each in ("mqtt", "mqtts", "web", "webs")]
        with start_daemon(*flags, config=_tls_table(files)) as broker:
            yield broker


@contextmanager
def _with_user(files: Certificates, folder: Path) -> Generator[BrokerProcess]:
    users = folder / "users"
    if WITH_MOSQUITTO:
        users.touch(mode=0o644)
        subprocess.run(["mosquitto_passwd", "-b", str(users), USER, PASSWORD], check=True)
        users.chmod(0o644)
        folder.chmod(0o755)
        common = f"allow_anonymous false\npassword_file {users}\n"
        listeners = {"mqtt": common, "mqtts": common + _tls_lines(files)}
        with mosquitto(listeners=listeners | {"web": common + "protocol websockets"}) as broker:
            yield broker
    else:
        hashed = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
        users.write_text(f"{USER}:{hashed}\n")
        users.chmod(0o600)
        config = f"""{_tls_table(files)}
            [access]
            users = "{users}"
            [[rules]]
            effect = "allow"
            users = ["{USER}"]
            action = "all"
            topics = ["interop/#"]
        """
        flags = [f"--{each}=127.0.0.1:0" for each in ("mqtt", "mqtts", "web")]
        with start_daemon(*flags, config=config) as broker:
            yield broker


@contextmanager
def _with_client_certificates(files: Certificates) -> Generator[BrokerProcess]:
    if WITH_MOSQUITTO:
        lines = "allow_anonymous true\nrequire_certificate true\n" + _tls_lines(files)
        with mosquitto(listeners={"mqtts": lines}) as broker:
            yield broker
    else:
        config = f"""{_tls_table(files)}
            client_ca = "{files.authority}"
            client_certificates = "required"
        """
        with start_daemon("--mqtts", "127.0.0.1:0", config=config) as broker:
            yield broker


def _server(broker: BrokerProcess, transport: str, files: Certificates) -> Server:
    if transport == "tcp":
        return Server(broker.ports["mqtt"], host="127.0.0.1")
    return Server(broker.ports["mqtts"], cafile=str(files.authority))


@pytest.fixture(scope="session")
def open_broker(certificates: Certificates) -> Iterator[BrokerProcess]:
    """A broker that everybody may use."""
    with _open(certificates) as broker:
        yield broker


@pytest.fixture(scope="session")
def users_broker(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    """A broker that only ``alice`` may use, with her password."""
    with _with_user(certificates, tmp_path_factory.mktemp("users")) as broker:
        yield broker


@pytest.fixture(scope="session")
def certificates_broker(certificates: Certificates) -> Iterator[BrokerProcess]:
    """A broker that demands a client certificate of the test's authority."""
    with _with_client_certificates(certificates) as broker:
        yield broker


@pytest.fixture(params=["tcp", "tls"])
def transport(request: pytest.FixtureRequest) -> str:
    """How clients reach the broker."""
    return str(request.param)


@pytest.fixture
def server(open_broker: BrokerProcess, transport: str, certificates: Certificates) -> Server:
    """The open broker, by TCP and by TLS."""
    return _server(open_broker, transport, certificates)


@pytest.fixture(params=["ws", "wss"])
def web_server(
    request: pytest.FixtureRequest, open_broker: BrokerProcess, certificates: Certificates
) -> Server:
    """The open broker, by WebSocket over TCP and over TLS."""
    if request.param == "ws":
        return Server(open_broker.ports["web"], host="127.0.0.1", path="/mqtt")
    return Server(open_broker.ports["webs"], cafile=str(certificates.authority), path="/mqtt")


@pytest.fixture
def users_server(users_broker: BrokerProcess, transport: str, certificates: Certificates) -> Server:
    """The broker with a user, by TCP and by TLS."""
    return _server(users_broker, transport, certificates)


@pytest.fixture(scope="session", autouse=True)
def _end_of_peers() -> Iterator[None]:
    yield
    for peer, _ in PEERS.values():
        peer.shut()
