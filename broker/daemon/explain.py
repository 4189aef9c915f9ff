"""``ganglion acl explain``: which rule decides, and why the others do not."""

from ganglion.broker.core.access import ANONYMOUS, Access, Client, Decision, Request
from ganglion.broker.core.reading import SourceFilter, split_source
from ganglion.broker.core.sources import may_declare, may_send
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
    Of a queue or a stream it is told as well whether the client may make it. Raises
    `ConfigurationError`, and `InvalidSource` for a filter that leads to no possible queue.
    """
    materials = open_materials(configuration)
    access: Access = materials.access
    name = None if user == ANONYMOUS else user
    may_connect = access.connect(name, address)
    lines = [f"connect: {'allowed' if may_connect.allowed else 'denied'}: {may_connect.rule}"]
    if configuration.users_file is not None and name is not None and name not in materials.users:
        lines.append(f"note: {name} is not in {configuration.users_file}")
    client = Client(client_id, name, address, None)
    wanted = split_source(topic) if action != "receive" else None
    if wanted is not None or (action == "publish" and topic.startswith("$")):
        more, allowed = _explain_source(access, client, action, topic, wanted, qos, retain)
        return lines + more, may_connect.allowed and allowed
    lines += access.explain(client, action, topic, qos, retain)
    decision = {
        "publish": lambda: access.publish(client, topic, qos, retain),
        "subscribe": lambda: access.subscribe(client, topic, qos),
        "receive": lambda: access.receive(client, topic, qos),
    }[action]()
    return lines, may_connect.allowed and decision.allowed


def _explain_source(
    access: Access,
    client: Client,
    action: Request,
    topic: str,
    wanted: SourceFilter | None,
    qos: int,
    retain: bool,
) -> tuple[list[str], bool]:
    """The rules for what leads to a queue or a stream, or begins with ``$`` as if it did."""
    lines: list[str] = []
    if wanted is None:
        decision = may_send(access, client, topic, qos, retain)
        return [_sentence("", decision)], decision.allowed
    if action == "publish":
        decision = may_send(access, client, wanted.topic, qos, retain)
        if retain:
            return [_sentence("", decision)], decision.allowed
    else:
        decision = access.subscribe(client, wanted.topic, qos)
    lines += access.explain(client, action, wanted.topic, qos)
    bindings = (wanted.binding,) if wanted.binding else ()
    made = may_declare(access, client, wanted.topic, bindings)
    if action == "publish" or not (wanted.options or bindings):
        lines.append(_sentence("make it where it is not there: ", made))
        return lines, decision.allowed
    lines.append(_sentence("make it, or change it to be so: ", made))
    return lines, decision.allowed and made.allowed


def _sentence(about: str, decision: Decision) -> str:
    return f"{about}{'allowed' if decision.allowed else 'denied'}: {decision.rule}"
