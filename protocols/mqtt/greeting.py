"""From the first byte to CONNACK: who the client is and what its session is (MQTT 5.0, 3.1, 3.2).

A `Greeting` lives only until the client is connected, so that an idle connection does not carry it.
It judges CONNECT, authenticates (password, client certificate, or an exchange of AUTH packets,
section 4.12), opens the session and sends CONNACK.
"""

from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING

from ganglion.broker.core.access import Client
from ganglion.broker.core.authentication import (
    WRONG_CREDENTIALS,
    Challenge,
    Failure,
    Mechanism,
    Success,
)
from ganglion.broker.core.message import Message
from ganglion.broker.core.node import LimitReached, NotAllowed
from ganglion.broker.core.sessions import NEVER_EXPIRES, Session, Will
from ganglion.broker.core.topics import InvalidTopic, check_topic_name
from ganglion.protocols.mqtt.codec import decode, encode, read_header
from ganglion.protocols.mqtt.packets import (
    V5,
    V31,
    V311,
    Auth,
    Connack,
    Connect,
    Disconnect,
    PacketType,
)
from ganglion.protocols.mqtt.packets import Will as WillRequest
from ganglion.protocols.mqtt.properties import Properties
from ganglion.protocols.mqtt.publishing import check_response_topic, message_properties
from ganglion.protocols.mqtt.reasons import (
    MqttError,
    ProtocolViolation,
    Reason,
    UnsupportedVersion,
)

if TYPE_CHECKING:
    from ganglion.protocols.mqtt.connection import MqttConnection
    from ganglion.protocols.mqtt.server import MqttServer

__all__ = ["Authentication", "Greeting", "read_greeting_header", "reauthenticate"]

_RECEIVE_MAXIMUM_DEFAULT = 65_535  # 3.1.2.11.3
_GIVEN_ID_PREFIX = "auto-"


class _Refused(MqttError):
    """CONNECT is refused with this reason code."""

    def __init__(self, text: str, reason: Reason, action: str = "connect") -> None:
        super().__init__(text, reason)
        self.action = action


@dataclass(slots=True)
class Authentication:
    """An exchange of AUTH packets (section 4.12); a connection keeps it for re-authentication."""

    method: str
    mechanism: Mechanism


def reauthenticate(
    server: "MqttServer", session: Session, authentication: Authentication, packet: Auth
) -> Auth:
    """The answer to an AUTH of a connected client (4.12.1); raises `ProtocolViolation`."""
    properties = packet.properties or Properties()
    if properties.authentication_method != authentication.method:
        raise ProtocolViolation("AUTH with another method than CONNECT had (MQTT-4.12.1-1)")
    if packet.reason == Reason.REAUTHENTICATE:
        authentication.mechanism = server.mechanisms[authentication.method]()
    elif packet.reason != Reason.CONTINUE_AUTHENTICATION:
        raise ProtocolViolation("AUTH from a client continues or re-authenticates (3.15.2.1)")
    answer = Properties(authentication_method=authentication.method)
    match authentication.mechanism.step(properties.authentication_data or b""):
        case Challenge(data=challenge):
            answer.authentication_data = challenge
            return Auth(Reason.CONTINUE_AUTHENTICATION, answer)
        case Failure(reason=reason):
            rule, told = reason, WRONG_CREDENTIALS
        case Success(user=user, data=final):
            if user == session.client.user:
                answer.authentication_data = final
                return Auth(Reason.SUCCESS, answer)
            rule = told = "re-authentication as another user"
    server.node.refusals.refuse("authenticate", session.client, rule)
    raise ProtocolViolation(told, Reason.NOT_AUTHORIZED)


def read_greeting_header(
    data: bytes, pos: int, version: int, size_max: int
) -> tuple[int, int, int] | None:
    """As `read_header`, before CONNACK: for what may come then, and bounded by `size_max`."""
    kind = data[pos] >> 4
    if kind not in (PacketType.CONNECT, PacketType.AUTH, PacketType.DISCONNECT):
        raise ProtocolViolation("the first packet is not CONNECT (MQTT-3.1.0-1)")
    header = read_header(data, pos, version)
    if header is not None and header[2] - pos > size_max:
        raise ProtocolViolation(
            f"CONNECT is over connect_size_max_bytes = {size_max}", Reason.PACKET_TOO_LARGE
        )
    return header


class Greeting:
    """Handles a connection until CONNACK is sent."""

    __slots__ = ("_authentication", "_connect", "_connection", "is_waiting", "session")

    def __init__(self, connection: "MqttConnection") -> None:
        self._connection = connection
        self._connect: Connect | None = None
        self._authentication: Authentication | None = None
        self.is_waiting = False
        """Whether a verdict on the password or a commit is awaited: nothing is read meanwhile."""
        self.session: Session | None = None
        """The session of the client, from when it is open until the connection has it."""

    def on_packet(self, first: int, data: bytes, start: int, end: int) -> None:
        """A whole packet came before the connection was accepted."""
        try:
            if self._connect is None:
                self._on_connect(first, data, start, end)
            else:
                self._on_auth(first, data, start, end, self._connect)
        except UnsupportedVersion as error:
            self._refuse_version(error)
        except _Refused as error:
            self._refuse(error.reason, str(error), error.action)
        except MqttError as error:
            self._refuse_malformed(error, data, start)

    def time_out(self) -> None:
        """The time to connect is over (3.1.4); whoever waits for our answer gets one."""
        if self._connect is None:
            self._connection.refuse_greeting("no CONNECT within connect_timeout_s")
        else:
            text = "not authenticated within connect_timeout_s"
            reason = Reason.SERVER_BUSY if self.is_waiting else Reason.NOT_AUTHORIZED
            self._refuse(reason, text, "authenticate")

    # -- CONNECT ---------------------------------------------------------------------------------

    def _on_connect(self, first: int, data: bytes, start: int, end: int) -> None:
        limits = self._connection.server.node.limits
        packet = decode(first, data, start, end, V311, limits.properties_per_packet_max)
        if not isinstance(packet, Connect):
            raise ProtocolViolation("the first packet is not CONNECT (MQTT-3.1.0-1)")
        connection = self._connection
        connection.version = packet.version
        properties = packet.properties
        if properties is not None:
            connection.problem_information = properties.request_problem_information != 0
            if properties.maximum_packet_size is not None:
                connection.packet_size_max = properties.maximum_packet_size
            if properties.authentication_data is not None and not properties.authentication_method:
                raise ProtocolViolation("authentication data without a method (3.1.2.11.10)")
        self._connect = packet
        self._check_client_id(packet)
        if packet.will is not None:
            self._check_will(packet.will)
        if properties is not None and properties.authentication_method is not None:
            self._start_authentication(properties)
        else:
            self._check_password(packet)

    def _check_client_id(self, packet: Connect) -> None:
        if packet.client_id:
            limit = self._connection.server.node.limits.topic_size_max_bytes
            if len(packet.client_id.encode()) > limit:
                raise _Refused(
                    f"the client identifier is over topic_size_max_bytes = {limit}",
                    Reason.CLIENT_IDENTIFIER_NOT_VALID,
                )
        elif packet.version == V31 or (packet.version == V311 and not packet.clean_start):
            raise _Refused(
                "the client identifier is empty (MQTT-3.1.3-8)", Reason.CLIENT_IDENTIFIER_NOT_VALID
            )
        else:
            packet.client_id = _GIVEN_ID_PREFIX + token_hex(10)
            if packet.version == V5:
                self._answer().assigned_client_identifier = packet.client_id

    def _check_will(self, will: WillRequest) -> None:
        settings = self._connection.server.settings
        try:
            check_topic_name(will.topic, self._connection.server.node.limits)
        except InvalidTopic as error:
            raise _Refused(f"will: {error}", Reason.TOPIC_NAME_INVALID) from None
        if will.qos > settings.maximum_qos:
            raise _Refused(
                f"the will's QoS is above {settings.maximum_qos}", Reason.QOS_NOT_SUPPORTED
            )
        if will.retain and not settings.retain_available:
            raise _Refused("the will is to be retained", Reason.RETAIN_NOT_SUPPORTED)
        response_topic = will.properties.response_topic if will.properties else None
        if response_topic is not None:
            check_response_topic(response_topic, self._connection.server.node.limits)
        if (
            settings.check_payload_format
            and will.properties is not None
            and will.properties.payload_format_indicator
        ):
            try:
                will.payload.decode()
            except UnicodeDecodeError as error:
                raise _Refused(
                    f"the will's payload is not UTF-8: {error.reason}",
                    Reason.PAYLOAD_FORMAT_INVALID,
                ) from None

    # -- authentication --------------------------------------------------------------------------

    def _check_password(self, packet: Connect) -> None:
        server = self._connection.server
        tls = self._connection.endpoint.tls
        certificate = tls.certificate_name if tls is not None else None
        if server.settings.certificate_is_user and certificate is not None:
            self._accept(certificate)
        elif packet.username is None or server.authenticator is None:
            # a name that nobody has verified says nothing
            self._accept(None)
        else:
            self.is_waiting = True
            user = packet.username
            server.authenticator(user, packet.password, lambda ok: self._verified(user, ok))

    def _verified(self, user: str, is_right: bool | None) -> None:
        if self._connection.is_closed:
            return
        self.is_waiting = False
        try:
            if is_right:
                self._accept(user)
            elif is_right is None:
                text = "too many clients wait for a verdict"
                self._refuse(Reason.SERVER_BUSY, text, "authenticate")
            else:
                reason = Reason.BAD_USER_NAME_OR_PASSWORD
                self._refuse(reason, WRONG_CREDENTIALS, "authenticate")
        except _Refused as error:
            self._refuse(error.reason, str(error), error.action)
        self._connection.resume()

    def _start_authentication(self, properties: Properties) -> None:
        method = properties.authentication_method
        assert method is not None
        make = self._connection.server.mechanisms.get(method)
        if make is None:
            raise _Refused(
                f"there is no authentication method {method!r}", Reason.BAD_AUTHENTICATION_METHOD
            )
        self._authentication = Authentication(method, make())
        self._step(self._authentication, properties.authentication_data or b"")

    def _on_auth(self, first: int, data: bytes, start: int, end: int, connect: Connect) -> None:
        limits = self._connection.server.node.limits
        packet = decode(first, data, start, end, connect.version, limits.properties_per_packet_max)
        if isinstance(packet, Disconnect):
            self._connection.end("disconnected before it was connected", publish_will=False)
            return
        authentication = self._authentication
        if not isinstance(packet, Auth) or authentication is None:
            raise ProtocolViolation("only AUTH may come before CONNACK (4.12)")
        if packet.reason != Reason.CONTINUE_AUTHENTICATION:
            raise ProtocolViolation("AUTH before CONNACK must continue (4.12.0-3)")
        properties = packet.properties
        if properties is None or properties.authentication_method != authentication.method:
            raise ProtocolViolation("AUTH names another method than CONNECT did (4.12.0-5)")
        self._step(authentication, properties.authentication_data or b"")

    def _step(self, authentication: Authentication, data: bytes) -> None:
        match authentication.mechanism.step(data):
            case Challenge(data=challenge):
                properties = Properties(
                    authentication_method=authentication.method, authentication_data=challenge
                )
                packet = Auth(Reason.CONTINUE_AUTHENTICATION, properties)
                self._connection.endpoint.write(encode(packet, V5))
            case Success(user=user, data=final):
                answer = self._answer()
                answer.authentication_method = authentication.method
                answer.authentication_data = final
                self._connection.authentication = authentication
                self._accept(user)
            case Failure(reason=reason):
                self._refuse(Reason.NOT_AUTHORIZED, WRONG_CREDENTIALS, "authenticate", rule=reason)

    # -- the answer ------------------------------------------------------------------------------

    def _answer(self) -> Properties:
        if self._connection.answer is None:
            self._connection.answer = Properties()
        return self._connection.answer

    def _accept(self, user: str | None) -> None:
        """The client is who it says: give it its session."""
        connection, packet = self._connection, self._connect
        assert packet is not None
        server, endpoint = connection.server, connection.endpoint
        node = server.node
        tls = endpoint.tls
        certificate = tls.certificate_name if tls is not None else None
        client = Client(packet.client_id, user, endpoint.peer, certificate)
        decision = node.access.connect(user, endpoint.peer)
        if not decision.allowed:
            raise _Refused(decision.rule, Reason.NOT_AUTHORIZED)
        limits = node.limits
        properties = packet.properties or Properties()
        if packet.version == V5:
            expiry_s = properties.session_expiry_interval or 0
        else:
            expiry_s = 0 if packet.clean_start else NEVER_EXPIRES
        receive_maximum = properties.receive_maximum or _RECEIVE_MAXIMUM_DEFAULT
        will = self._make_will(packet.will) if packet.will is not None else None
        try:
            session, present = node.open_session(
                client,
                connection,
                clean_start=packet.clean_start,
                expiry_s=expiry_s,
                window=min(receive_maximum, limits.inflight_max),
                will=will,
            )
        except NotAllowed as error:
            raise _Refused(str(error), Reason.NOT_AUTHORIZED) from None
        except LimitReached as error:
            raise _Refused(str(error), Reason.QUOTA_EXCEEDED) from None
        keep_alive_s = packet.keep_alive_s
        answer: Properties | None = None
        if packet.version == V5:
            answer = self._answer()
            if session.expiry_s != expiry_s:
                answer.session_expiry_interval = session.expiry_s
            cap = limits.keep_alive_max_s
            if cap and not 0 < keep_alive_s <= cap:
                answer.server_keep_alive = keep_alive_s = cap
            self._announce(answer)
            if properties.request_response_information:
                answer.response_information = node.reply_prefix(session)
        connection.keep_alive_s = keep_alive_s
        connack = encode(Connack(present, Reason.SUCCESS, answer), packet.version)
        connection.answer = None
        # what the client sends meanwhile is read afterwards, and nothing is sent to it
        self.session = session
        self.is_waiting = True
        alias_maximum = properties.topic_alias_maximum or 0
        node.journal.commits.after_commit(
            partial(connection.start, session, connack, expiry_s, alias_maximum)
        )

    def _announce(self, answer: Properties) -> None:
        """What the node allows and offers (3.2.2.3)."""
        limits, settings = self._connection.server.node.limits, self._connection.server.settings
        if limits.receive_max != _RECEIVE_MAXIMUM_DEFAULT:
            answer.receive_maximum = limits.receive_max
        answer.maximum_packet_size = limits.packet_size_max_bytes
        if limits.topic_alias_max:
            answer.topic_alias_maximum = limits.topic_alias_max
        if settings.maximum_qos < 2:
            answer.maximum_qos = settings.maximum_qos
        # absent means available
        if not settings.retain_available:
            answer.retain_available = 0
        if not settings.wildcard_subscriptions:
            answer.wildcard_subscription_available = 0
        if not settings.subscription_identifiers:
            answer.subscription_identifier_available = 0
        if not settings.shared_subscriptions:
            answer.shared_subscription_available = 0

    def _make_will(self, will: WillRequest) -> Will:
        properties = will.properties or Properties()
        about = message_properties(properties)
        message = Message(will.topic, will.payload, will.qos, will.retain, about)
        delay_s = properties.will_delay_interval or 0
        return Will(message, delay_s, properties.message_expiry_interval)

    # -- refusals --------------------------------------------------------------------------------

    def _refuse(self, reason: Reason, text: str, action: str, *, rule: str | None = None) -> None:
        """Say no; the log gets `rule` where the client must not know it."""
        connection, packet = self._connection, self._connect
        peer = connection.endpoint.peer
        client = None
        if packet is not None:
            client = Client(packet.client_id, packet.username, peer, None)
        connection.server.node.refusals.refuse(action, client, rule or text, reason=reason.name)
        properties = connection.reason_string(text)
        connack = encode(Connack(False, reason, properties), connection.version)
        connection.endpoint.write(connack)
        connection.end(text, publish_will=False)

    def _refuse_version(self, error: UnsupportedVersion) -> None:
        connection = self._connection
        connection.server.node.refusals.refuse(
            "connect", None, str(error), address=connection.endpoint.peer
        )
        if error.level is not None:  # else it may not be MQTT at all
            connack = Connack(False, Reason.UNSUPPORTED_PROTOCOL_VERSION)
            connection.endpoint.write(encode(connack, V311))
        connection.end(str(error), publish_will=False)

    def _refuse_malformed(self, error: MqttError, data: bytes, start: int) -> None:
        """A CONNECT that breaks the protocol: MQTT 5.0 has an answer to that, 3.x has none."""
        connection = self._connection
        connection.server.node.refusals.refuse(
            "connect", None, str(error), address=connection.endpoint.peer
        )
        is_first = self._connect is None
        if connection.version == V5 or (is_first and data[start : start + 7] == b"\0\4MQTT\5"):
            properties = connection.reason_string(str(error))
            connack = Connack(False, error.reason, properties)
            connection.endpoint.write(encode(connack, V5))
        connection.end(str(error), publish_will=False)
