"""TLS on the reactor: handshakes, certificates, garbage, ends."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from ganglion.broker.core.limits import Limits
from ganglion.broker.net.listener import Listener
from ganglion.broker.net.tls import InvalidCertificate, TlsContext, TlsLayer
from tests.broker.net.hand_driven import Echo, HandDriven, Talker

AUTHORITY = trustme.CA()
SERVER = AUTHORITY.issue_cert("127.0.0.1", "localhost")
CLIENT = AUTHORITY.issue_cert("sensor@example.org", common_name="sensor-1")
STRANGER = trustme.CA().issue_cert("eve@example.org", common_name="eve")


class Files:
    """Certificates as files, as an operator has them."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"
        self.authority = folder / "ca.pem"
        self.certificate.write_bytes(SERVER.cert_chain_pems[0].bytes())
        self.key.write_bytes(SERVER.private_key_pem.bytes())
        AUTHORITY.cert_pem.write_to_path(self.authority)

    def load(self, client_certificates: str = "no") -> TlsContext:
        """A server's context."""
        return TlsContext.load(
            self.certificate, self.key, self.authority, client_certificates=client_certificates
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The server's files."""
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def hand() -> Iterator[HandDriven]:
    """A reactor."""
    with HandDriven() as driven:
        yield driven


def client_context(certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


class TlsClient:
    """A client that speaks TLS over a socket of its own, step by step."""

    def __init__(
        self, hand: HandDriven, listener: Listener, context: ssl.SSLContext | None = None
    ) -> None:
        self.hand = hand
        self.socket = hand.connect(listener)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context() if context is None else context
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    def flush(self, chunk: int = 1 << 20) -> None:
        """Send what TLS has to say."""
        data = self.outgoing.read()
        for at in range(0, len(data), chunk):
            self.hand.send(self.socket, data[at : at + chunk])
            if chunk < 1 << 20:
                self.hand.tick()

    def feed(self) -> bool:
        """Take what came; False at the end of the stream."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            self.hand.tick(0.005)
            return True
        if data:
            self.incoming.write(data)
        return bool(data)

    def shake_hands(self, chunk: int = 1 << 20) -> None:
        """The whole handshake."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush(chunk)
                assert self.feed(), "the server closed the connection"
            else:
                self.flush(chunk)
                return

    def send(self, data: bytes) -> None:
        """Send data, encrypted."""
        self.tls.write(data)
        self.flush()

    def receive(self, size: int) -> bytes:
        """Exactly so many bytes, decrypted."""
        found = b""
        while len(found) < size:
            try:
                found += self.tls.read(size - len(found))
            except ssl.SSLWantReadError:
                assert self.feed(), "the connection ended early"
        return found

    def ends_with_goodbye(self) -> bool:
        """Whether the connection ends, and with the server's close_notify."""
        while True:
            try:
                if not self.tls.read(1 << 16):
                    return True
            except ssl.SSLWantReadError:
                if not self.feed():
                    return False
            except ssl.SSLZeroReturnError:
                return True


@pytest.mark.parametrize("chunk", [1 << 20, 100, 1])
def test_handshake_in_any_pieces(hand: HandDriven, files: Files, chunk: int) -> None:
    """The handshake may come in pieces of any size; the protocol hears of it when it is done."""
    listener = hand.listen(Echo, tls=files.load())
    client = TlsClient(hand, listener)
    hand.until(lambda: hand.protocols)
    assert hand.protocols[0].events == []
    client.shake_hands(chunk)
    client.send(b"hello")
    assert client.receive(5) == b"hello"
    (protocol,) = hand.protocols
    assert protocol.events == ["connected"]
    assert protocol.endpoint.tls.version.startswith("TLSv1.")
    assert protocol.endpoint.tls.certificate_name is None


def test_a_megabyte_both_ways(hand: HandDriven, files: Files) -> None:
    """Large data arrives whole and in order, over many records."""
    client = TlsClient(hand, hand.listen(Echo, tls=files.load()))
    client.shake_hands()
    data = bytes(range(256)) * 4096
    for at in range(0, len(data), 100_000):
        client.send(data[at : at + 100_000])
    assert client.receive(len(data)) == data


def test_bytes_are_counted_without_tls(hand: HandDriven, files: Files) -> None:
    """Figures are those of the protocol's bytes, not of the records around them."""
    client = TlsClient(hand, hand.listen(Echo, tls=files.load()))
    client.shake_hands()
    client.send(b"x" * 1000)
    client.receive(1000)
    assert hand.statistics.bytes_received == hand.statistics.bytes_sent == 1000


def test_data_behind_the_handshake(hand: HandDriven, files: Files) -> None:
    """Data in the same segment as the client's last word of the handshake is not lost."""
    client = TlsClient(hand, hand.listen(Echo, tls=files.load()))
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.flush()
    done = False
    while not done:
        client.feed()
        try:
            client.tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
    client.send(b"first words")  # goes with the end of the handshake
    assert client.receive(11) == b"first words"
    assert hand.protocols[0].events == ["connected"]


def test_alpn(hand: HandDriven, files: Files) -> None:
    """A client that offers ``mqtt`` gets it."""
    context = client_context()
    context.set_alpn_protocols(["mqtt"])
    client = TlsClient(hand, hand.listen(Echo, tls=files.load()), context)
    client.shake_hands()
    assert client.tls.selected_alpn_protocol() == "mqtt"


def test_old_versions_are_refused(hand: HandDriven, files: Files) -> None:
    """TLS before 1.2 is not spoken."""
    assert files.load().context.minimum_version == ssl.TLSVersion.TLSv1_2
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = TlsClient(hand, hand.listen(Echo, tls=files.load()), context)
    client.shake_hands()
    assert client.tls.version() == "TLSv1.2"
    client.send(b"x")
    assert client.receive(1) == b"x"


class TestClientCertificates:
    """Certificates that clients show."""

    @pytest.mark.parametrize("mode", ["optional", "required"])
    def test_the_name(self, hand: HandDriven, files: Files, mode: str) -> None:
        """The common name of a verified certificate is known to the protocol."""
        listener = hand.listen(Echo, tls=files.load(mode))
        client = TlsClient(hand, listener, client_context(CLIENT))
        client.shake_hands()
        client.send(b"x")
        client.receive(1)
        assert hand.protocols[0].endpoint.tls.certificate_name == "sensor-1"

    def test_optional(self, hand: HandDriven, files: Files) -> None:
        """Without one a client gets in where it is optional, and has no name."""
        client = TlsClient(hand, hand.listen(Echo, tls=files.load("optional")))
        client.shake_hands()
        client.send(b"x")
        client.receive(1)
        assert hand.protocols[0].endpoint.tls.certificate_name is None

    @pytest.mark.parametrize("certificate", [None, STRANGER], ids=["none", "of a stranger"])
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_required(
        self,
        hand: HandDriven,
        files: Files,
        certificate: trustme.LeafCert | None,
        version: ssl.TLSVersion,
    ) -> None:
        """Without one, or with one that cannot be verified, the protocol never hears of it."""
        context = client_context(certificate)
        context.maximum_version = version
        client = TlsClient(hand, hand.listen(Echo, tls=files.load("required")), context)
        with pytest.raises(ssl.SSLError, match="ALERT"):
            _talk(client)
        client.socket.close()
        hand.until(lambda: hand.reactor.connection_count == 0)
        assert hand.protocols[0].events == []

    def test_not_asked_for(self, hand: HandDriven, files: Files) -> None:
        """A certificate that nobody verifies gives no name."""
        client = TlsClient(hand, hand.listen(Echo, tls=files.load("no")), client_context(STRANGER))
        client.shake_hands()
        client.send(b"x")
        client.receive(1)
        assert hand.protocols[0].endpoint.tls.certificate_name is None


def _talk(client: TlsClient) -> None:
    client.shake_hands()
    client.send(b"x")
    client.receive(1)


class TestGarbage:
    """Peers that do not speak TLS, or not to the end."""

    @pytest.mark.parametrize(
        "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x10\x0c\x00\x04MQTT", b"\x16\x03\x01\xff\xff", b"\0"]
    )
    def test_before_the_handshake(self, hand: HandDriven, files: Files, data: bytes) -> None:
        """The connection ends, the protocol hears nothing, and others are served."""
        listener = hand.listen(Echo, tls=files.load())
        client = hand.connect(listener)
        hand.until(lambda: hand.protocols)
        client.send(data)
        client.shutdown(socket.SHUT_WR)
        hand.until(lambda: hand.reactor.connection_count == 0)
        assert hand.protocols[0].events == []
        _talk(TlsClient(hand, listener))
        assert [event for event, _ in hand.log.events if event == "internal error"] == []

    def test_after_the_handshake(self, hand: HandDriven, files: Files) -> None:
        """A record that cannot be decrypted ends the connection with an alert; lost comes once."""
        client = TlsClient(hand, hand.listen(Echo, tls=files.load()))
        _talk(client)
        hand.send(client.socket, b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(ssl.SSLError):
            client.receive(1)
        client.socket.close()
        hand.until(lambda: hand.protocols[0].reasons)
        assert hand.protocols[0].events == ["connected", "lost"]
        assert hand.protocols[0].reasons[0].startswith("TLS: ")

    def test_with_the_last_word_of_the_handshake(self, hand: HandDriven, files: Files) -> None:
        """A bad record that comes with the end of the handshake is no fault of ours."""
        client = TlsClient(hand, hand.listen(Echo, tls=files.load()))
        done = False
        while not done:
            try:
                client.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                client.flush()
                client.feed()
        last = client.outgoing.read()
        hand.send(client.socket, last + b"\x17\x03\x03\x00\x20" + b"x" * 32)
        client.socket.shutdown(socket.SHUT_WR)
        hand.until(lambda: hand.reactor.connection_count == 0)
        events = hand.protocols[0].events
        assert events in ([], ["connected", "lost"])
        assert [event for event, _ in hand.log.events if event == "internal error"] == []

    def test_no_handshake_in_time(self, files: Files) -> None:
        """A peer that does not finish its handshake in time is closed."""
        with HandDriven(Limits(connect_timeout_s=0.1)) as hand:
            listener = hand.listen(Echo, tls=files.load())
            slow = TlsClient(hand, listener)
            with pytest.raises(ssl.SSLWantReadError):
                slow.tls.do_handshake()
            slow.flush()
            silent = hand.connect(listener)
            quick = TlsClient(hand, listener)
            quick.shake_hands()
            hand.until(lambda: hand.reactor.connection_count == 1)
            assert hand.statistics.dropped["connection: no TLS handshake in time"] == 2
            assert hand.receive_to_end(silent) == b""
            quick.send(b"x")
            assert quick.receive(1) == b"x"

    def test_one_byte_of_a_record(self, hand: HandDriven, files: Files) -> None:
        """Records in single bytes are put together; other clients are served meanwhile."""
        listener = hand.listen(Echo, tls=files.load())
        slow, quick = TlsClient(hand, listener), TlsClient(hand, listener)
        slow.shake_hands()
        quick.shake_hands()
        slow.tls.write(b"hello")
        data = slow.outgoing.read()
        for at in range(len(data)):
            hand.send(slow.socket, data[at : at + 1])
            if at % 8 == 0:
                quick.send(b"x")
                assert quick.receive(1) == b"x"
        assert slow.receive(5) == b"hello"


class TestEnds:
    """How TLS connections end."""

    def test_the_client_says_goodbye(self, hand: HandDriven, files: Files) -> None:
        """close_notify is the end of the stream, and is answered."""
        client = TlsClient(hand, hand.listen(tls=files.load()))
        client.shake_hands()
        client.send(b"last word")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush()
        hand.until(lambda: hand.protocols[0].reasons)
        (protocol,) = hand.protocols
        assert bytes(protocol.received) == b"last word"
        assert protocol.events == ["connected", "end of stream", "lost"]
        while client.feed():
            pass
        client.tls.unwrap()  # the server's close_notify is there

    def test_the_client_just_closes(self, hand: HandDriven, files: Files) -> None:
        """An end without close_notify is an end all the same."""
        client = TlsClient(hand, hand.listen(tls=files.load()))
        client.shake_hands()
        client.send(b"x")
        hand.until(lambda: hand.protocols[0].received)
        client.socket.shutdown(socket.SHUT_WR)
        hand.until(lambda: hand.protocols[0].reasons)
        assert hand.protocols[0].events == ["connected", "end of stream", "lost"]

    def test_the_broker_says_goodbye(self, hand: HandDriven, files: Files) -> None:
        """What was written arrives, and then close_notify: nothing was cut off."""
        client = TlsClient(hand, hand.listen(tls=files.load()))
        client.shake_hands()
        hand.until(lambda: hand.protocols[0].events)
        endpoint = hand.protocols[0].endpoint
        data = b"x" * 3_000_000
        endpoint.write(data)
        endpoint.close("done")
        assert client.receive(len(data)) == data
        assert client.ends_with_goodbye()

    def test_goodbye_to_a_talking_client(self, hand: HandDriven, files: Files) -> None:
        """With linger the last words arrive although the client goes on sending."""
        client = TlsClient(hand, hand.listen(tls=files.load()))
        client.shake_hands()
        hand.until(lambda: hand.protocols[0].events)
        endpoint = hand.protocols[0].endpoint
        endpoint.pause_reading()
        client.send(b"x" * 100_000)
        endpoint.write(b"go away")
        endpoint.close("refused", linger=True)
        assert client.receive(7) == b"go away"
        assert client.ends_with_goodbye()


def test_certificates_can_be_replaced(hand: HandDriven, files: Files) -> None:
    """New connections get the new certificate, those that are there are not disturbed."""
    context = files.load()
    listener = hand.listen(Echo, tls=context)
    old = TlsClient(hand, listener)
    _talk(old)
    renewed = TlsContext.load(files.certificate, files.key)
    other = AUTHORITY.issue_cert("127.0.0.1", common_name="renewed")
    other.configure_cert(renewed.context)
    context.context = renewed.context
    new = TlsClient(hand, listener)
    _talk(new)
    _talk_again(old)
    assert new.tls.getpeercert() != old.tls.getpeercert()


def _talk_again(client: TlsClient) -> None:
    client.send(b"y")
    assert client.receive(1) == b"y"


class TestLoading:
    """Certificates and keys from files."""

    def test_missing(self, files: Files, tmp_path: Path) -> None:
        """A file that is not there is named."""
        missing = tmp_path / "missing.pem"
        with pytest.raises(InvalidCertificate, match=r"missing\.pem"):
            TlsContext.load(missing, files.key)
        with pytest.raises(InvalidCertificate, match=r"client_ca .*missing\.pem"):
            TlsContext.load(files.certificate, files.key, missing, "required")

    def test_a_key_that_does_not_fit(self, files: Files, tmp_path: Path) -> None:
        """A key of another certificate is refused when it is loaded."""
        other = tmp_path / "other.key"
        other.write_bytes(STRANGER.private_key_pem.bytes())
        with pytest.raises(InvalidCertificate):
            TlsContext.load(files.certificate, other)

    def test_rubbish(self, files: Files, tmp_path: Path) -> None:
        """A file that holds no certificate is refused."""
        rubbish = tmp_path / "rubbish.pem"
        rubbish.write_text("no certificate")
        with pytest.raises(InvalidCertificate):
            TlsContext.load(rubbish, files.key)
        with pytest.raises(InvalidCertificate):
            TlsContext.load(files.certificate, files.key, rubbish, "optional")

    def test_client_certificates_without_an_authority(self, files: Files) -> None:
        """Asking for client certificates needs to say who vouches for them."""
        with pytest.raises(InvalidCertificate, match="client_ca"):
            TlsContext.load(files.certificate, files.key, None, "optional")


def test_a_layer_that_is_not_established_has_no_name(files: Files) -> None:
    """Before the handshake nothing is known of the peer, and asking does no harm."""
    layer = TlsLayer(files.load().context)
    assert not layer.is_established
    assert layer.version == "TLS"
    with pytest.raises(ssl.SSLError):
        layer.receive(b"no TLS at all")
    assert not layer.is_established


def test_talkers_do_not_answer(hand: HandDriven, files: Files) -> None:
    """What a protocol does not answer is still taken."""
    client = TlsClient(hand, hand.listen(Talker, tls=files.load()))
    client.shake_hands()
    client.send(b"x" * 50_000)
    hand.until(lambda: len(hand.protocols[0].received) == 50_000)
