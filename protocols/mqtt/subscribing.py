"""SUBSCRIBE and UNSUBSCRIBE: what each topic filter of a packet gets (MQTT 5.0, 3.8 to 3.11)."""

from ganglion.broker.core.definitions import InvalidDefinition
from ganglion.broker.core.node import LimitReached, NotAllowed
from ganglion.broker.core.reading import InvalidSource, is_source
from ganglion.broker.core.router import Subscription
from ganglion.broker.core.session_requests import is_service
from ganglion.broker.core.sessions import Session
from ganglion.broker.core.topics import (
    InvalidTopic,
    SharedFilter,
    TopicLimit,
    check_topic_filter,
    has_wildcard,
    split_shared,
)
from ganglion.protocols.mqtt.packets import Subscribe, SubscriptionRequest, Unsubscribe
from ganglion.protocols.mqtt.reasons import MqttError, ProtocolViolation, Reason
from ganglion.protocols.mqtt.server import MqttServer

__all__ = ["subscribe", "unsubscribe"]

_NEW_ONLY = 1  # retain handling (3.8.3.1)


class _Refused(MqttError):
    """One filter of a SUBSCRIBE is refused with this reason code."""


def subscribe(
    server: MqttServer, session: Session, packet: Subscribe
) -> tuple[list[int], list[str], list[Subscription]]:
    """Make the subscriptions that are allowed.

    A reason code per filter, why those that were refused were, and the subscriptions whose
    retained messages are to be sent after SUBACK. Raises `MqttError` when the packet as a whole
    breaks the protocol.
    """
    identifiers = packet.properties.subscription_identifiers if packet.properties else ()
    identifier = identifiers[0] if identifiers else 0
    if identifier and not server.settings.subscription_identifiers:
        raise ProtocolViolation(
            "subscription identifiers are not available",
            Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED,
        )
    options = packet.properties.user_properties if packet.properties else ()
    reasons: list[int] = []
    texts: list[str] = []
    with_retained: list[Subscription] = []
    for request in packet.requests:
        try:
            subscription, existed = _subscribe(server, session, request, identifier, options)
        except _Refused as refusal:
            reasons.append(refusal.reason)
            texts.append(str(refusal))
            server.node.refusals.refuse(
                "subscribe", session.client, str(refusal), topic=request.topic_filter
            )
            continue
        reasons.append(subscription.qos)
        handling = request.retain_handling
        if (
            handling == 0
            or (handling == _NEW_ONLY and not existed)
            or is_source(request.topic_filter)
        ):
            with_retained.append(subscription)
    return reasons, texts, with_retained


def unsubscribe(server: MqttServer, session: Session, packet: Unsubscribe) -> list[int]:
    """End subscriptions: a reason code per filter."""
    reasons: list[int] = []
    for topic_filter in packet.topic_filters:
        try:
            _check_filter(server, topic_filter)
        except InvalidTopic:
            reasons.append(Reason.TOPIC_FILTER_INVALID)
            continue
        existed = server.node.unsubscribe(session, topic_filter)
        reasons.append(Reason.SUCCESS if existed else Reason.NO_SUBSCRIPTION_EXISTED)
    return reasons


def _check_filter(server: MqttServer, topic_filter: str) -> SharedFilter | None:
    shared = split_shared(topic_filter)
    check_topic_filter(shared.topic_filter if shared else topic_filter, server.node.limits)
    return shared


def _subscribe(
    server: MqttServer,
    session: Session,
    request: SubscriptionRequest,
    identifier: int,
    options: tuple[tuple[str, str], ...],
) -> tuple[Subscription, bool]:
    settings = server.settings
    topic_filter = request.topic_filter
    try:
        shared = _check_filter(server, topic_filter)
    except InvalidTopic as error:
        if topic_filter.startswith("$share/") and not isinstance(error, TopicLimit):
            raise ProtocolViolation(str(error)) from None
        raise _Refused(str(error), Reason.TOPIC_FILTER_INVALID) from None
    if shared and request.no_local:
        raise ProtocolViolation("no-local on a shared subscription (MQTT-3.8.3-4)")
    if shared and not settings.shared_subscriptions:
        raise _Refused(
            "shared subscriptions are not available", Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
        )
    if not settings.wildcard_subscriptions and has_wildcard(topic_filter):
        raise _Refused("wildcards are not available", Reason.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED)
    # a queue or stream settles a message with its PUBACK: there is no more to QoS 2
    qos_max = 1 if is_source(topic_filter) else 2
    if is_service(topic_filter):
        qos_max = 0
    subscription = Subscription(
        session,
        topic_filter,
        min(request.qos, settings.maximum_qos, qos_max),
        no_local=request.no_local,
        retain_as_published=request.retain_as_published,
        identifier=identifier,
    )
    try:
        return subscription, server.node.subscribe(subscription, options)
    except InvalidSource as error:
        raise _Refused(str(error), Reason.TOPIC_FILTER_INVALID) from None
    except InvalidDefinition as error:
        raise _Refused(str(error), Reason.IMPLEMENTATION_SPECIFIC_ERROR) from None
    except NotAllowed as error:
        raise _Refused(str(error), Reason.NOT_AUTHORIZED) from None
    except LimitReached as error:
        raise _Refused(str(error), Reason.QUOTA_EXCEEDED) from None
