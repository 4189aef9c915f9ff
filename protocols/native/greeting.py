"""From the first byte to the answer to ``hello``: who the client is.

A `Greeting` lives only until the client is connected. It judges ``hello``, authenticates (password,
client certificate, or an exchange of ``challenge`` and ``proof``), and opens the session. What
comes while it waits for a verdict is kept, and read by the connection afterwards.
"""

from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from ganglion import GanglionError
from ganglion.broker.core.access import Client
from ganglion.broker.core.authentication import (
    WRONG_CREDENTIALS,
    Challenge,
    Failure,
    Mechanism,
    Success,
)
from ganglion.protocols.native.arguments import Options, data_at, options_at, whole_at
from ganglion.protocols.native.delivering import FORM_JSON
from ganglion.protocols.native.frames import (
    UNKNOWN_LIMITS,
    Frame,
    FrameError,
    FrameReader,
    unpack_json,
)
from ganglion.protocols.native.operations import (
    BATCH_MAX,
    CHANNELS_MAX,
    CREDIT_MAX,
    KEEP_ALIVE_DEFAULT_S,
    PROTOCOL_VERSION,
    Code,
    Operation,
)
from ganglion.protocols.native.refusals import Refused, refusal_of

if TYPE_CHECKING:
    from ganglion.broker.core.sessions import Session
    from ganglion.protocols.native.connection import NativeConnection

__all__ = ["Greeting"]

_FEATURES = ("queues", "streams", "requests", "retained")
_GIVEN_ID_PREFIX = "native-"
_KEEP_ALIVE_MAX_S = 65_535
_PRODUCER_SIZES = range(16, 65)  # characters: random, so that nobody else has the same
_UNKNOWN_BYTES = UNKNOWN_LIMITS.frame_max_bytes


class Greeting:
    """Handles a connection until ``hello`` is answered."""

    __slots__ = (
        "_connection",
        "_held",
        "_hello",
        "_mechanism",
        "_proof",
        "_reader",
        "is_waiting",
        "session",
    )

    def __init__(self, connection: "NativeConnection") -> None:
        self._connection = connection
        self._reader: FrameReader | None = None  # holds the beginning of a frame
        self._held: bytes = b""
        self._hello: tuple[int, Options] | None = None
        self._mechanism: Mechanism | None = None
        self._proof: bytes | None = None
        self.is_waiting = False
        """Whether a verdict or a commit is awaited: nothing is read meanwhile."""
        self.session: Session | None = None
        """The session of the client, from when it is open until the connection has it."""

    # -- reading ---------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes:
        """These bytes came: what is left of them when the client is connected, else nothing."""
        connection = self._connection
        self._held += data
        while not connection.is_closed and connection.session is None and not self.is_waiting:
            try:
                frame = self._next_frame()
            except FrameError as error:
                connection.fail(error.code, str(error))
                break
            if frame is None:
                return b""
            try:
                self._on_frame(frame)
            except GanglionError as error:
                self._refuse(refusal_of(error))
        if connection.is_closed:
            return b""
        if connection.session is not None:  # `start` has taken what was held
            return b""
        connection.endpoint.pause_reading()
        return b""

    def rest(self) -> bytes:
        """What came behind the last frame that was read."""
        held, self._held = self._held, b""
        return held

    def _next_frame(self) -> Frame | None:
        held = self._held
        if self._connection.form == FORM_JSON:
            line, found, rest = held.partition(b"\n")
            frames = unpack_json(line, UNKNOWN_LIMITS)
            self._held = rest if found else b""
            return frames[0] if frames else None
        reader = self._reader
        if reader is None:
            reader = self._reader = FrameReader(UNKNOWN_LIMITS)
        before = reader.fed
        taken = held[: max(0, _UNKNOWN_BYTES + 1 - before)]
        reader.feed(taken)
        frame = reader.next()
        if frame is None:
            self._held = held[len(taken) :]
            return None
        self._held = held[reader.end - before :]
        self._reader = None
        return frame

    def _on_frame(self, frame: Frame) -> None:
        operation: int = frame[0]
        if self._hello is None:
            if operation != Operation.HELLO:
                self._connection.fail(Code.PROTOCOL, "the first frame is not hello")
                return
            self._on_hello(frame)
        elif operation == Operation.PROOF and self._mechanism is not None:
            self._step(self._mechanism, data_at(frame, 1, "data"))
        elif operation == Operation.GOODBYE:
            self._connection.end("the client said goodbye before it was connected")
        else:
            self._connection.fail(Code.PROTOCOL, "only proof may come before hello is answered")

    def time_out(self) -> None:
        """The time to connect is over; whoever waits for our answer gets one."""
        if self._hello is None:
            self._connection.fail(Code.PROTOCOL, "no hello within connect_timeout_s")
        else:
            code = Code.BUSY if self.is_waiting else Code.NOT_AUTHENTICATED
            self._refuse(Refused(code, "not authenticated within connect_timeout_s"))

    # -- hello -----------------------------------------------------------------------------------

    def _on_hello(self, frame: Frame) -> None:
        number = whole_at(frame, 1, "id")
        self._hello = (number, Options({}))
        version = whole_at(frame, 2, "version")
        if version < PROTOCOL_VERSION:
            raise Refused(
                Code.UNSUPPORTED_VERSION,
                f"version {version} is not spoken any more",
                {"versions": [PROTOCOL_VERSION, PROTOCOL_VERSION]},
            )
        options = options_at(frame, 3)
        self._hello = (number, options)
        mechanism, token = options.text("mechanism"), options.text("token")
        if token is not None:
            tokens = self._connection.server.tokens
            self._accept(None if tokens is None else tokens(token))
        elif mechanism is not None:
            self._start_mechanism(mechanism, options.data("data") or b"")
        else:
            self._check_password(options.text("user"), options.data("password"))

    def _check_password(self, user: str | None, password: bytes | None) -> None:
        server = self._connection.server
        certificate = self._certificate()
        if server.settings.certificate_is_user and certificate is not None:
            self._accept(certificate)
        elif user is None or server.authenticator is None:
            self._accept(None)  # a name that nobody has verified says nothing
        else:
            self.is_waiting = True
            server.authenticator(user, password, partial(self._verified, user))

    def _verified(self, user: str, is_right: bool | None) -> None:
        if self._connection.is_closed:
            return
        self.is_waiting = False
        try:
            if is_right:
                self._accept(user)
            elif is_right is None:
                raise Refused(Code.BUSY, "too many clients wait for a verdict")
            else:
                raise Refused(Code.NOT_AUTHENTICATED, WRONG_CREDENTIALS)
        except GanglionError as error:
            self._refuse(refusal_of(error))

    def _start_mechanism(self, name: str, data: bytes) -> None:
        make = self._connection.server.mechanisms.get(name)
        if make is None:
            raise Refused(Code.NOT_AUTHENTICATED, f"there is no mechanism {name!r}")
        self._mechanism = make()
        self._step(self._mechanism, data)

    def _step(self, mechanism: Mechanism, data: bytes) -> None:
        match mechanism.step(data):
            case Challenge(data=challenge):
                self._connection.write(Operation.CHALLENGE, challenge)
            case Success(user=user, data=final):
                self._proof = final
                self._accept(user)
            case Failure(reason=reason):
                self._refuse(Refused(Code.NOT_AUTHENTICATED, WRONG_CREDENTIALS), rule=reason)

    def _certificate(self) -> str | None:
        tls = self._connection.endpoint.tls
        return tls.certificate_name if tls is not None else None

    # -- the answer ------------------------------------------------------------------------------

    def _accept(self, user: str | None) -> None:
        """The client is who it says: open its session and answer."""
        assert self._hello is not None
        number, options = self._hello
        connection = self._connection
        server, endpoint = connection.server, connection.endpoint
        node = server.node
        client_id = options.text("client") or _GIVEN_ID_PREFIX + token_hex(10)
        limit = node.limits.topic_size_max_bytes
        if len(client_id.encode()) > limit:
            raise Refused(Code.INVALID, f"option client is over topic_size_max_bytes = {limit}")
        keep_alive_s = options.whole("keep_alive_s", _KEEP_ALIVE_MAX_S)
        keep_alive_s = KEEP_ALIVE_DEFAULT_S if keep_alive_s is None else keep_alive_s
        cap = node.limits.keep_alive_max_s
        if cap and not 0 < keep_alive_s <= cap:
            keep_alive_s = cap
        name = options.text("producer")
        if name is not None and len(name) not in _PRODUCER_SIZES:
            raise Refused(Code.INVALID, "option producer must have 16 to 64 characters")
        client = Client(client_id, user, endpoint.peer, self._certificate())
        decision = node.access.connect(user, endpoint.peer)
        if not decision.allowed:
            code = Code.NOT_ALLOWED if user is not None else Code.NOT_AUTHENTICATED
            raise Refused(code, decision.rule)
        if name is not None:
            connection.producer = server.producers.open(user, name, connection)
        self.session, _ = node.open_session(
            client, connection, clean_start=True, expiry_s=0, window=1, will=None
        )
        greeting: dict[str, Any] = {
            "version": PROTOCOL_VERSION,
            "node": node.name,
            "software": server.software,
            "client": client_id,
            "user": user,
            "keep_alive_s": keep_alive_s,
            "sequence": connection.producer.last if connection.producer is not None else 0,
            "limits": self._limits(),
            "features": list(_FEATURES),
            "addresses": list(server.settings.addresses),
        }
        if self._proof is not None:
            greeting["data"] = self._proof
        # what the client sends meanwhile is read afterwards, and nothing is sent to it
        self.is_waiting = True
        answer = (int(Operation.OK), number, greeting)
        node.journal.commits.after_commit(
            partial(connection.start, self.session, answer, keep_alive_s)
        )

    def _limits(self) -> dict[str, int]:
        connection = self._connection
        limits = connection.server.node.limits
        frames = connection.server.limits(is_json=connection.form == FORM_JSON)
        return {
            "frame_max_bytes": frames.frame_max_bytes,
            "batch_max": BATCH_MAX,
            "topic_max_bytes": limits.topic_size_max_bytes,
            "topic_levels_max": limits.topic_levels_max,
            "subscriptions_max": limits.subscriptions_per_client_max,
            "channels_max": CHANNELS_MAX,
            "properties_max": frames.map_max,
            "credit_max": CREDIT_MAX,
        }

    def _refuse(self, refusal: Refused, *, rule: str | None = None) -> None:
        """Say no; the log gets `rule` where the client must not know it."""
        connection = self._connection
        number, options = self._hello if self._hello is not None else (0, Options({}))
        said = [options.get(name) for name in ("client", "user")]
        name, user = (each[:_LOGGED_MAX] if isinstance(each, str) else None for each in said)
        client = Client(name or "", user, connection.endpoint.peer, None)
        connection.server.node.refusals.refuse(
            "connect", client, rule or str(refusal), reason=str(refusal.code)
        )
        connection.error(number, refusal.code, str(refusal), refusal.details)
        connection.end(str(refusal), linger=True)


_LOGGED_MAX = 200  # characters of what somebody who is not known says
