"""A span of each tool call reaches the collector; what the call carried does not."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes import mcp_wire as wire
from tests.fakes.collector import Collector, collecting
from tests.fakes.gateway import MODERN_META, Gateway, gateway, http_server
from tests.fakes.tool_server import ToolServer

PLANTED = "planted-payload-Zk3vQ9"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as kept:
        yield kept


@pytest.fixture
async def traced(tmp_path: Path, tools: ToolServer, collector: Collector) -> AsyncIterator[Gateway]:
    assert tools.url is not None
    export = {
        "BEHAVRY_OTLP_ENDPOINT": collector.address,
        "BEHAVRY_OTLP_SAMPLE_PERCENT": "100",
        "BEHAVRY_OTLP_INTERVAL_MS": "100",
    }
    async with gateway(tmp_path / "state", {"notes": http_server(tools.url)}, **export) as made:
        await made.offered("notes", "read_note", "write_note", "drop_notes")
        yield made


def attributes(span: Span) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


async def call_with_meta(gateway: Gateway, meta: dict[str, Any]) -> None:
    params = {"name": "read_note", "arguments": {}, "_meta": {**MODERN_META, **meta}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    version = MODERN_META[wire.VERSION_META]
    sent = {
        "mcp-protocol-version": str(version),
        "mcp-method": "tools/call",
        "mcp-name": "read_note",
    }
    status, answer = await gateway.post(body, headers=sent)
    assert (200, True) == (status, "result" in answer), answer


async def test_each_call_leaves_a_span_with_its_decision(
    traced: Gateway, collector: Collector
) -> None:
    traced.authorizer.rules.verdicts["notes", "drop_notes"] = ("deny", "no_deleting")
    await traced.call("read_note", {"call": "c1", "text": PLANTED})
    await traced.call("drop_notes", {"call": "c2", "text": PLANTED})
    await traced.call(PLANTED, {})
    await collector.until(lambda: len(collector.spans) >= 3)

    told = {
        span.name: (attributes(span)["behavry.decision"], attributes(span)["behavry.reason_code"])
        for span in collector.spans
    }
    assert "allow" == told["tools/call read_note"][0]
    assert ("deny", "no_deleting") == told["tools/call drop_notes"]
    assert "deny" == told["tools/call _OTHER"][0]
    assert 3 == len(collector.spans)
    assert {Span.SPAN_KIND_SERVER} == {span.kind for span in collector.spans}
    allowed = {
        "mcp.method.name", "gen_ai.tool.name", "behavry.decision", "behavry.reason_code",
        "behavry.policy.revision",
    }  # fmt: skip
    assert allowed == {key for span in collector.spans for key in attributes(span)}


async def test_no_payload_tenant_or_agent_leaves(traced: Gateway, collector: Collector) -> None:
    await traced.call("read_note", {"call": "c1", "text": PLANTED})
    await traced.call("drop_notes", {PLANTED: PLANTED})
    await collector.until(lambda: len(collector.spans) >= 2)
    await collector.until(lambda: collector.values.get("behavry.proxy.calls", 0) >= 2)

    for secret in (PLANTED, traced.tenant, traced.agent):
        assert not collector.holds(secret)
    assert collector.holds("tools/call read_note")


async def test_an_agents_trace_goes_on_and_stands_in_the_records(
    traced: Gateway, collector: Collector
) -> None:
    await call_with_meta(traced, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    await collector.until(lambda: len(collector.spans) >= 1)
    [span] = collector.spans

    assert (TRACE, PARENT) == (span.trace_id.hex(), span.parent_span_id.hex())
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 5_000_000_000
    [intent] = await traced.recorded("call.intent")
    assert TRACE == intent["trace_id"]


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_tool_server_joins_the_trace_under_our_span(
    traced: Gateway, collector: Collector, tools: ToolServer, era: str
) -> None:
    tools.behave(eras=(era,))
    traced.forget_upstreams()
    await call_with_meta(traced, {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"})
    await collector.until(lambda: len(collector.spans) >= 1)
    [span] = collector.spans

    sent = tools.headers_seen()[-1]
    assert f"00-{TRACE}-{span.span_id.hex()}-01" == sent["traceparent"]
    assert "tracestate" not in sent
    assert PARENT not in str(tools.bodies_seen()[-1])


async def test_without_a_collector_records_name_no_trace(proxy: Gateway, tools: ToolServer) -> None:
    await call_with_meta(proxy, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    [intent] = await proxy.recorded("call.intent")

    assert "trace_id" not in intent
    assert "traceparent" not in tools.headers_seen()[-1]
