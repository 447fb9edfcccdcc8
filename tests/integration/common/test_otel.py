"""Counters leave for a collector, if there is one; without one nothing is even imported."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.service_settings import ServiceSettings
from services.common.settings import SettingsError, load
from services.common.telemetry.counters import Counters
from services.common.telemetry.otel import exporting
from tests.fakes.collector import collecting

PARENT_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def settings(endpoint: str, **more: str) -> ServiceSettings:
    env = {
        "BEHAVRY_STATE_DIR": "/unused",
        "BEHAVRY_OTLP_ENDPOINT": endpoint,
        "BEHAVRY_OTLP_INTERVAL_MS": "100",
        "BEHAVRY_OTLP_SAMPLE_PERCENT": "100",
        **more,
    }
    return load(ServiceSettings, env)


async def test_counters_arrive_by_name_with_their_newest_value() -> None:
    counters = Counters()
    counters.counter("proxy.calls").value = 3
    counters.watch("outbox.pending", lambda: 7)
    async with collecting() as kept, exporting(settings(kept.address), "proxy", counters):
        await kept.until(lambda: kept.values.get("behavry.proxy.calls") == 3)
        counters.counter("proxy.calls").value = 4
        await kept.until(lambda: kept.values.get("behavry.proxy.calls") == 4)

    assert {"behavry.proxy.calls": 4, "behavry.outbox.pending": 7} == kept.values
    assert {"behavry-proxy"} == kept.services
    assert set() == kept.labels


async def test_processes_of_one_name_are_told_apart() -> None:
    async with (
        collecting() as kept,
        exporting(settings(kept.address), "proxy", Counters()) as one,
        exporting(settings(kept.address), "proxy", Counters()) as other,
    ):
        for spans in (one, other):
            assert spans is not None
            span = spans.begin("tools/call", "read", {}, started_ns=1)
            span.end(decision="allow", reason="granted", revision="r")
        await kept.until(lambda: len(kept.spans) == 2)

    assert {"behavry-proxy"} == kept.services
    assert 2 == len(kept.instances)


async def test_the_last_values_and_spans_leave_before_the_end() -> None:
    counters = Counters()
    slow = {"BEHAVRY_OTLP_INTERVAL_MS": "600000"}
    async with collecting() as kept:
        async with exporting(settings(kept.address, **slow), "audit", counters) as spans:
            counters.counter("audit.appended").value = 9
            assert spans is not None
            span = spans.begin("tools/call", "read", {}, started_ns=1)
            span.end(decision="allow", reason="granted", revision="r")
        assert {"behavry.audit.appended": 9} == kept.values
        assert ["tools/call read"] == [one.name for one in kept.spans]


@pytest.mark.parametrize(
    ("percent", "flags", "recorded"),
    [(100, "01", True), (100, "00", False), (0, "01", False), (0, None, False), (100, None, True)],
)
async def test_an_agent_may_ask_for_silence_but_not_for_more_than_our_share(
    percent: int, flags: str | None, recorded: bool
) -> None:
    sample = {"BEHAVRY_OTLP_SAMPLE_PERCENT": str(percent)}
    meta = {"traceparent": f"00-{PARENT_TRACE}-00f067aa0ba902b7-{flags}"} if flags else {}
    async with (
        collecting() as kept,
        exporting(settings(kept.address, **sample), "proxy", Counters()) as spans,
    ):
        assert spans is not None
        span = spans.begin("tools/call", "read", {"_meta": meta}, started_ns=1)
        span.end(decision="allow", reason="granted", revision="r")
        trace_id = span.trace_id

    assert recorded == bool(kept.spans) == (trace_id is not None)
    if recorded and flags:
        assert (PARENT_TRACE, "00f067aa0ba902b7") == (trace_id, kept.spans[0].parent_span_id.hex())


@pytest.mark.parametrize("given", ["", "nonsense", "00-0-0-01", 7, None, {"a": "b"}, ["x"]])
async def test_a_traceparent_that_is_none_is_no_parent(given: object) -> None:
    async with (
        collecting() as kept,
        exporting(settings(kept.address), "proxy", Counters()) as spans,
    ):
        assert spans is not None
        span = spans.begin("tools/call", "", {"_meta": {"traceparent": given}}, started_ns=1)
        span.end(decision="deny", reason="x", revision="")
        spans.begin("tools/call", "", {"_meta": given}, started_ns=1).end(
            decision="deny", reason="x", revision=""
        )

    assert [b"", b""] == [one.parent_span_id for one in kept.spans]


async def test_a_collector_that_is_away_holds_nobody_up() -> None:
    counters = Counters()
    async with asyncio.timeout(8):
        async with exporting(settings("http://127.0.0.1:1"), "proxy", counters) as spans:
            assert spans is not None
            span = spans.begin("tools/call", "read", {}, started_ns=1)
            span.end(decision="allow", reason="granted", revision="r")


async def test_without_an_endpoint_there_are_no_spans() -> None:
    async with exporting(settings(""), "proxy", Counters()) as spans:
        assert spans is None


@pytest.mark.parametrize("service", ["audit", "authorizer", "control", "entitlements", "proxy"])
def test_without_an_endpoint_the_sdk_is_not_imported(service: str) -> None:
    code = (
        f"import sys, services.{service}.app\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.')\n"
        "       and not name.startswith(('opentelemetry.proto', 'opentelemetry.util'))])"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'protos' / 'gen'}"},
        check=True,
    )

    imported = done.stdout.strip()
    assert "opentelemetry.sdk" not in imported
    assert "opentelemetry.exporter" not in imported


@pytest.mark.parametrize(
    "endpoint", ["localhost:4317", "ftp://a:1", "http://user:pw@a:1", "http://a:1/path", "http://"]
)
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="BEHAVRY_OTLP_ENDPOINT"):
        settings(endpoint)
