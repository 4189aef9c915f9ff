"""What a configuration names, opened and checked: the users, the rules, the certificates.

`open_materials` either succeeds with all of it or raises with everything that is wrong, so that a
reload can look first and then change everything at once, or nothing.
"""

from dataclasses import dataclass

from ganglion import GanglionError
from ganglion.broker.core.access import Access
from ganglion.broker.core.authentication import Users
from ganglion.broker.daemon.config import Configuration, ConfigurationError, Problem
from ganglion.broker.daemon.token_key import read_token_key
from ganglion.broker.daemon.users_file import read_users
from ganglion.broker.net.tls import TlsContext

__all__ = ["Materials", "open_materials"]


@dataclass(frozen=True, slots=True)
class Materials:
    """What a running node takes over from a configuration at start and at each reload."""

    users: Users
    """Empty when no users file is configured."""
    access: Access
    tls: TlsContext | None
    token_key: bytes | None
    """What signs tokens; None: there are none."""


def open_materials(configuration: Configuration) -> Materials:
    """Open what ``configuration`` names. Raises `ConfigurationError` with all that is wrong."""
    problems: list[Problem] = []
    users = Users()
    if configuration.users_file is not None:
        try:
            users = read_users(configuration.users_file)
        except GanglionError as error:
            hint = ""
            if not configuration.users_file.exists():
                hint = " (ganglion passwd add NAME makes the file)"
            problems.append(_problem(configuration, "access.users", f"{error}{hint}"))
    token_key = None
    if configuration.token_key_file is not None:
        try:
            token_key = read_token_key(configuration.token_key_file)
        except GanglionError as error:
            problems.append(_problem(configuration, "access.token_key", str(error)))
    tls: TlsContext | None = None
    if configuration.tls is not None:
        try:
            tls = TlsContext.load(
                configuration.tls.certificate,
                configuration.tls.key,
                configuration.tls.client_ca,
                configuration.tls.client_certificates,
            )
        except (GanglionError, OSError) as error:  # ssl.SSLError is an OSError
            problems.append(_problem(configuration, "tls.certificate", str(error)))
    if problems:
        raise ConfigurationError(problems)
    access = Access(
        configuration.rules,
        users_exist=configuration.has_users,
        anonymous=configuration.anonymous,
        insecure=configuration.insecure,
    )
    return Materials(users, access, tls, token_key)


def _problem(configuration: Configuration, key: str, text: str) -> Problem:
    return Problem(configuration.sources[key], key, f"cannot be used: {text}")
