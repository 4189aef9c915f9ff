"""Trace context and correlation: what W3C Trace Context says, and what is carried along."""

import anyio
import pytest

from ganglion.clients.mesh import Mesh
from ganglion.clients.tracing import TraceContext, continuing, current_trace
from tests.clients.backends import under_each

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_trace_parent_is_read() -> None:
    """Version, trace, span and flags; tracestate is passed on as it came."""
    found = TraceContext.from_headers({"traceparent": PARENT, "tracestate": "a=1"})
    assert found == TraceContext(TRACE, SPAN, "01", "a=1")
    assert found.headers() == {"traceparent": PARENT, "tracestate": "a=1"}
    later = TraceContext.from_headers({"traceparent": f"cc-{TRACE}-{SPAN}-00-what-is-new"})
    assert later == TraceContext(TRACE, SPAN, "00")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f" {PARENT}",
        f"{PARENT}\n",
    ],
)
def test_a_trace_parent_that_cannot_be_is_none(parent: str) -> None:
    """W3C Trace Context 3.2.2: it counts as missing, and its tracestate with it."""
    headers = {"traceparent": parent, "tracestate": "a=1"}
    assert TraceContext.from_headers(headers) is None
    found = TraceContext.from_headers({**headers, "correlation-id": "7"})
    assert found is not None
    assert (found.correlation_id, found.state) == ("7", None)
    assert found.trace_id != TRACE


def test_what_is_inside_is_a_child() -> None:
    """Of the same trace, with a span of its own; outside is what was before."""
    assert current_trace() is None
    with continuing({"traceparent": PARENT, "correlation-id": "7"}) as outer:
        assert outer is not None
        assert (outer.trace_id, outer.correlation_id) == (TRACE, "7")
        assert outer.span_id != SPAN
        with continuing({}) as same:
            assert same == outer
        with continuing(outer.headers()) as inner:
            assert inner is not None
            assert inner.span_id != outer.span_id
        assert current_trace() == outer
    assert current_trace() is None


@under_each
async def test_a_job_carries_on_what_it_is_part_of(mesh: Mesh) -> None:
    """What is published inside of its context is of its trace and its correlation."""
    queue = mesh.queue("q")
    await queue.declare()
    headers = {"traceparent": PARENT, "correlation-id": "order-7", "own": "1"}
    await queue.send(b"x", headers=headers)
    async with queue.consume() as jobs, mesh.subscribe("t") as messages:
        async with await anext(jobs):
            await mesh.publish("t", b"", headers={"a": "b"})
            await mesh.publish("t", b"", headers={"correlation-id": "mine"})
        await mesh.publish("t", b"")
        inside, own, outside = [(await anext(messages)).headers for _ in range(3)]
    assert inside["correlation-id"] == "order-7"
    assert inside["a"] == "b"
    assert "own" not in inside
    assert inside["traceparent"].split("-")[1] == TRACE
    assert inside["traceparent"].split("-")[2] != SPAN
    assert own["correlation-id"] == "mine"
    assert outside == {}


@under_each
async def test_a_request_and_its_reply_are_of_one_trace(mesh: Mesh, other: Mesh) -> None:
    """The responder continues the requester's, also in its reply."""

    async def answer() -> None:
        async with await anext(requests) as request:
            assert request.headers["correlation-id"] == "7"
            await request.reply(b"")

    async with other.serve("t") as requests, anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        with continuing({"traceparent": PARENT, "correlation-id": "7"}):
            reply = await mesh.request("t")
    assert reply.headers["correlation-id"] == "7"
    assert reply.headers["traceparent"].split("-")[1] == TRACE
