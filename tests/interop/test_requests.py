"""Foreign clients ask and answer: the request/reply of docs/requests.md, done with what they have.

A responder has to answer by the connection that was asked, so the libraries are used here; and of
Mosquitto's programs `mosquitto_rr`, which makes one request and prints the answer.
"""

import itertools
import subprocess

import pytest

from tests.interop.conftest import WITH_MOSQUITTO
from tests.interop.peers import PEERS, ProgramPeer, ProgramSession, Properties, Server, require
from tests.support import DEADLINE_S

pytestmark = pytest.mark.skipif(WITH_MOSQUITTO, reason="Mosquitto asks nobody, it forwards")

_VERSION_NAMES = {3: "3.1", 4: "3.1.1", 5: "5.0"}
_numbers = itertools.count(1)


def _libraries(*versions: int) -> list[object]:
    return [
        pytest.param(name, version, id=f"{name}-{_VERSION_NAMES[version]}")
        for name, (peer, spoken) in PEERS.items()
        for version in spoken
        if isinstance(peer, ProgramPeer) and version in versions
    ]


def _open(
    name: str, version: int, server: Server, topic_filter: str, qos: int = 0
) -> ProgramSession:
    require(name)
    peer = PEERS[name][0]
    assert isinstance(peer, ProgramPeer)
    client_id = f"requests{next(_numbers)}"
    return peer.open(server, client_id, [(topic_filter, qos)], version=version)


def _topic(*levels: str) -> str:
    """A topic that no other test uses."""
    return "/".join(("interop", f"r{next(_numbers)}", *levels))


@pytest.mark.parametrize(("name", "version"), _libraries(3, 4, 5))
def test_a_device_answers_a_client_of_mqtt_5(name: str, version: int, server: Server) -> None:
    """Whatever a client speaks, it serves through $request, and its answers find back."""
    topic, answers = _topic("pump", "start"), _topic("answers")
    with (
        _open(name, version, server, f"$request/+/{topic}") as device,
        _open("paho", 5, server, answers, 1) as asker,
    ):
        for number in (b"1", b"2"):
            about = Properties(response_topic=answers, correlation=number)
            asker.publish(topic, b"fast " + number, qos=1, properties=about)
        requests = [device.receive(), device.receive()]
        for request in reversed(requests):
            assert request.topic.startswith("$request/")
            assert request.topic.endswith(f"/{topic}")
            answer = request.topic.replace("$request", "$reply", 1)
            device.publish(answer, request.payload.upper(), qos=1)
        for number in (b"2", b"1"):
            reply = asker.receive()
            assert (reply.topic, reply.payload) == (answers, b"FAST " + number)
            assert reply.properties == Properties(correlation=number)


@pytest.mark.parametrize(("name", "version"), _libraries(5))
def test_a_client_of_mqtt_5_asks_a_device(name: str, version: int, server: Server) -> None:
    """An unmodified client asks as MQTT 5 says, and hears also that the device was lost."""
    topic, answers = _topic("pump", "stop"), _topic("answers")
    about = Properties(response_topic=answers, correlation=b"c")
    with _open(name, version, server, answers, 1) as asker:
        with _open("paho", 4, server, f"$request/+/{topic}") as device:
            asker.publish(topic, b"now", qos=1, properties=about)
            request = device.receive()
            device.publish(request.topic.replace("$request", "$reply", 1), b"stopped", qos=1)
            assert asker.receive().payload == b"stopped"
            asker.publish(topic, b"again", qos=1, properties=about)
            device.receive()
            device.abort()
        error = asker.receive()
        assert error.properties == Properties(
            user=(("x-error", "responder-left"),), correlation=b"c"
        )


def test_mosquitto_rr(server: Server) -> None:
    """Mosquitto's program for requests prints what a device of MQTT 3.1.1 answers."""
    require("mosquitto")
    topic, answers = _topic("pump", "start"), _topic("answers")
    command = ["mosquitto_rr", "-V", "5", "-h", server.host, "-p", str(server.port)]
    command += ["-t", topic, "-e", answers, "-m", "fast", "-q", "1"]
    for option, value in (
        ("--cafile", server.cafile),
        ("--cert", server.certfile),
        ("--key", server.keyfile),
    ):
        command += [option, value] if value is not None else []
    with _open("paho", 4, server, f"$request/+/{topic}") as device:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        with process:
            request = device.receive()
            assert request.payload == b"fast"
            device.publish(request.topic.replace("$request", "$reply", 1), b"started", qos=1)
            output, _ = process.communicate(timeout=DEADLINE_S)
    assert output == b"started\n"
    assert process.returncode == 0
