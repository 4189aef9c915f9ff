"""``ganglion acl explain``: which rule decides, and why the others do not."""

from ganglion.broker.core.access import ANONYMOUS, Access, Client, Request
from ganglion.broker.daemon.config import Configuration
from ganglion.broker.daemon.materials import open_materials

__all__ = ["explain"]


def explain(
    configuration: Configuration,
    user: str,
    action: Request,
    topic: str,
    *,
    client_id: str,
    address: str,
    qos: int,
    retain: bool,
) -> tuple[list[str], bool]:
    """The explanation line by line, and whether the request is allowed.

    First comes whether the client may connect at all: a user has to be in the users file, an
    anonymous client has to be allowed from its address. The rules are explained in either case.
    Raises `ConfigurationError`.
    """
    materials = open_materials(configuration)
    access: Access = materials.access
    name = None if user == ANONYMOUS else user
    may_connect = access.connect(name, address)
    lines = [f"connect: {'allowed' if may_connect.allowed else 'denied'}: {may_connect.rule}"]
    if configuration.users_file is not None and name is not None and name not in materials.users:
        lines.append(f"note: {name} is not in {configuration.users_file}")
    client = Client(client_id, name, address, None)
    lines += access.explain(client, action, topic, qos, retain)
    decision = {
        "publish": lambda: access.publish(client, topic, qos, retain),
        "subscribe": lambda: access.subscribe(client, topic, qos),
        "receive": lambda: access.receive(client, topic, qos),
    }[action]()
    return lines, may_connect.allowed and decision.allowed
