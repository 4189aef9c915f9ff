"""The address of a client behind proxies: X-Forwarded-For, as far as trusted proxies wrote it."""

from ganglion.broker.net.addresses import Networks, canonical_ip

__all__ = ["client_address"]

_PROXIES_MAX = 32  # in a row; who has more has a loop


def client_address(peer: str, forwarded: bytes, trusted: Networks) -> str:
    """The last address of the chain that no trusted proxy is at; `peer` when that is not trusted.

    Each proxy appends the address that it was reached from, so the list is read from its end; what
    stands before an address that is not trusted was written by whoever is there.
    """
    if peer not in trusted:
        return peer
    address = peer
    for entry in reversed(forwarded.decode("latin-1").rsplit(",", _PROXIES_MAX)):
        found = _address(entry.strip())
        if found is None:
            break
        address = found
        if found not in trusted:
            break
    return address


def _address(entry: str) -> str | None:
    """An IP address that may have a port behind it."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        return canonical_ip(entry)
    except ValueError:
        return None
