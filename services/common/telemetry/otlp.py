"""The OpenTelemetry SDK put together: counters and sampled call spans by OTLP over gRPC.

Imported by otel.py alone, and only where something is exported. Threads of the SDK's own send; a
collector that is away costs calls nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, get_args
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.service_settings import ServiceSettings
from services.common.telemetry import names
from services.common.telemetry.counters import Counters
from services.common.telemetry.names import CounterName

TIMEOUT_S: Final = 2
_PARENT: Final = TraceContextTextMapPropagator()


@asynccontextmanager
async def exporting(
    settings: ServiceSettings, service: str, counters: Counters
) -> AsyncIterator[CallSpans]:
    endpoint = settings.otlp_endpoint
    insecure = endpoint.startswith("http://")
    resource = Resource(
        {
            "service.name": f"behavry-{service}",
            "service.namespace": "behavry",
            "service.instance.id": str(uuid4()),  # processes of one name count each for itself
        }
    )
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint, insecure=insecure, timeout=TIMEOUT_S),
        export_interval_millis=settings.otlp_interval_ms,
        export_timeout_millis=TIMEOUT_S * 1000,
    )
    meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    _observe(meters.get_meter("behavry"), counters)
    # An agent may ask for silence, never for more than our share: its word is not trusted.
    share = TraceIdRatioBased(settings.otlp_sample_percent / 100)
    tracers = TracerProvider(
        sampler=ParentBased(share, remote_parent_sampled=share),
        resource=resource,
        shutdown_on_exit=False,
    )
    tracers.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=TIMEOUT_S),
            schedule_delay_millis=settings.otlp_interval_ms,
        )
    )
    try:
        yield CallSpans(tracers.get_tracer("behavry"))
    finally:
        await asyncio.to_thread(tracers.shutdown)
        await asyncio.to_thread(meters.shutdown, TIMEOUT_S * 1000)


class CallSpan:
    __slots__ = ("_span", "trace_id", "traceparent")

    def __init__(self, span: Span) -> None:
        context = span.get_span_context()
        self._span = span
        self.trace_id = f"{context.trace_id:032x}" if span.is_recording() else None
        self.traceparent = f"00-{self.trace_id}-{context.span_id:016x}-01" if self.trace_id else ""

    def end(self, *, decision: str, reason: str, revision: str) -> None:
        self._span.set_attributes(
            {names.DECISION: decision, names.REASON: reason, names.REVISION: revision}
        )
        self._span.end()


class CallSpans:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(
        self, method: str, tool: str, params: Mapping[str, Any], *, started_ns: int
    ) -> CallSpan:
        attributes = {names.MCP_METHOD: method}
        if tool:
            attributes[names.TOOL] = tool
        meta = params.get("_meta")
        given = meta.get("traceparent") if isinstance(meta, dict) else None
        parent = _PARENT.extract({"traceparent": given}) if isinstance(given, str) else None
        return CallSpan(
            self._tracer.start_span(
                f"{method} {tool}" if tool else method,
                context=parent,
                kind=SpanKind.SERVER,
                attributes=attributes,
                start_time=started_ns,
            )
        )


def _observe(meter: Meter, counters: Counters) -> None:
    """Every name of the list; one that this process does not count tells nothing."""
    for name in get_args(CounterName):
        make = (
            meter.create_observable_up_down_counter
            if name in names.LEVELS
            else meter.create_observable_counter
        )
        make(f"behavry.{name}", callbacks=[_reading(name, counters)])


def _reading(
    name: CounterName, counters: Counters
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        value = counters.read().get(name)
        return () if value is None else (Observation(value),)

    return read
