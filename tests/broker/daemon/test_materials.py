"""Opening what a configuration names: all of it, or everything that is wrong."""

import ssl
from pathlib import Path

import pytest
import trustme

from ganglion.broker.core.access import Client
from ganglion.broker.daemon.config import Configuration, ConfigurationError, load
from ganglion.broker.daemon.materials import open_materials

ADA = Client("c1", "ada", "127.0.0.1", None)


def configuration(tmp_path: Path, text: str) -> Configuration:
    """The configuration that this text says."""
    file = tmp_path / "ganglion.toml"
    file.write_text(text)
    return load(file=file, environment={"HOME": str(tmp_path)}, directory=tmp_path)


def test_without_users_everything_is_allowed(tmp_path: Path) -> None:
    """An unconfigured node has no users, no certificates and no rules."""
    materials = open_materials(configuration(tmp_path, ""))
    assert len(materials.users) == 0
    assert materials.tls is None
    assert materials.access.publish(ADA, "any", 2, True).allowed
    assert materials.access.connect(None, "127.0.0.1").allowed
    assert not materials.access.connect(None, "192.0.2.1").allowed


def test_an_empty_users_file_denies(tmp_path: Path) -> None:
    """A users file without users is not the same as none: nobody may do anything."""
    (tmp_path / "users").touch()
    materials = open_materials(configuration(tmp_path, 'access.users = "users"'))
    assert not materials.access.connect(None, "127.0.0.1").allowed
    assert not materials.access.publish(ADA, "any", 0, False).allowed


def test_rules_and_switches_arrive(tmp_path: Path) -> None:
    """Rules, anonymous and insecure have their effect on what is allowed."""
    (tmp_path / "users").touch()
    text = """
        [access]
        users = "users"
        anonymous = true
        insecure = true
        [[rules]]
        effect = "allow"
        users = ["ada"]
        topics = ["a/#"]
    """
    access = open_materials(configuration(tmp_path, text)).access
    assert access.connect(None, "192.0.2.1").allowed
    assert access.publish(ADA, "a/b", 0, False).allowed
    assert not access.publish(ADA, "b", 0, False).allowed


def test_certificates_are_loaded(tmp_path: Path) -> None:
    """Certificate, key and authorities give a TLS context that demands what it should."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = authority.issue_cert("localhost")
    server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    text = """
        [tls]
        certificate = "server.pem"
        client_ca = "ca.pem"
        client_certificates = "required"
    """
    tls = open_materials(configuration(tmp_path, text)).tls
    assert tls is not None
    assert tls.context.verify_mode == ssl.CERT_REQUIRED


def test_everything_that_is_wrong_is_told(tmp_path: Path) -> None:
    """A missing users file and a broken certificate are two problems of one error."""
    (tmp_path / "server.pem").write_text("no certificate")
    text = 'access.users = "people"\ntls.certificate = "server.pem"'
    with pytest.raises(ConfigurationError) as caught:
        open_materials(configuration(tmp_path, text))
    users, certificate = caught.value.problems
    assert users.key == "access.users"
    assert "ganglion passwd add NAME" in users.rule
    assert str(tmp_path / "people") in users.rule
    assert certificate.key == "tls.certificate"
    assert str(tmp_path / "server.pem") in certificate.rule
