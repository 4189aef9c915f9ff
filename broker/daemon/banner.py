"""What ``ganglion serve`` prints on a terminal when it is ready: one screen, no more."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ganglion import __version__
from ganglion.broker.daemon.config import Configuration
from ganglion.broker.net.addresses import Address
from ganglion.clients.command_line.connecting import DEFAULT_URL

__all__ = ["banner", "near", "who_may_connect"]


_NATIVE = {"native": "ganglion", "natives": "ganglions"}
"""Listeners that the commands to try speak with, and the scheme of their URLs."""


def who_may_connect(configuration: Configuration, user_count: int) -> str:
    """One sentence without its full stop: who may connect, and how that is changed."""
    if configuration.has_users:
        users = f"{user_count} user{'' if user_count == 1 else 's'}"
        parts: list[str] = []
        if configuration.users_file is not None:
            parts.append(f"{users} of {configuration.users_file}")
        if configuration.tls is not None and configuration.tls.use_certificate_as_user:
            parts.append("clients with a certificate")
        if configuration.anonymous:
            anyone = "anybody" if configuration.insecure else "anybody on this machine"
            parts.append(f"{anyone}, anonymously")
        count = len(configuration.rules)
        rules = f"{count} rule{'' if count == 1 else 's'}"
        rights = (
            f"{rules} say what they may do" if count else "but no rule allows them anything yet"
        )
        return f"{', '.join(parts)}; {rights}"
    if configuration.insecure:
        return "anybody who can reach a listener: no users are configured, and --insecure is set"
    return (
        "anybody on this machine, without a password: no users are configured "
        "(ganglion passwd add NAME)"
    )


def banner(
    configuration: Configuration,
    listening: Sequence[tuple[str, Address]],
    user_count: int,
) -> str:
    """The screen: what listens where, where data is, who may connect, and what to try next."""
    lines = [f"ganglion {__version__}  node {configuration.node_name}  ready", ""]
    for scheme, address in listening:
        reach = "" if address.is_loopback else "   (other machines can reach it)"
        lines.append(f"  {scheme:<8}{address}{reach}")
    lines.append(f"  {'data':<8}{_short(configuration.data_directory)}")
    lines.append(f"  {'access':<8}{who_may_connect(configuration, user_count)}")
    reached = next((each for each in listening if each[0] in _NATIVE), None)
    if reached is not None:
        url = _url(*reached)
        name = " --user NAME" if configuration.has_users and not configuration.anonymous else ""
        lines += [
            "",
            "Try in another terminal:",
            f"  ganglion sub{url}{name} 'hello/#'",
            f"  ganglion pub{url}{name} hello/world 'Hello!'",
        ]
    lines += [
        "",
        "Ctrl-C stops.  ganglion check shows the configuration, ganglion limits every limit.",
    ]
    return "\n".join(lines)


def near(address: Address) -> Address:
    """Where this machine reaches a listener: its loopback address when it is on all addresses."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - none is bound here
    return replace(address, host=host)


def _url(scheme: str, address: Address) -> str:
    """The option that reaches a listener, when the default does not."""
    if address.path is not None:
        return f" --url unix:{address.path}"
    url = f"{_NATIVE[scheme]}://{near(address)}"
    return "" if url == DEFAULT_URL else f" --url {url}"


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)
