"""An OpenTelemetry collector: a real gRPC server that keeps what arrives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PROMPT_S = 5.0


@dataclass(slots=True)
class Collector:
    """`raw` holds every message as it came, for searching."""

    address: str = ""
    raw: list[bytes] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    #: Newest value by metric name.
    values: dict[str, int] = field(default_factory=dict)
    #: Attribute keys of metric points, which are labels.
    labels: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, arrived: Callable[[], bool]) -> None:
        async with asyncio.timeout(PROMPT_S):
            while not arrived():
                self._news.clear()
                await self._news.wait()

    def holds(self, text: str) -> bool:
        return any(text.encode() in message for message in self.raw)

    def take_metrics(self, request: metrics.ExportMetricsServiceRequest) -> None:
        self.raw.append(request.SerializeToString())
        for resource in request.resource_metrics:
            self._named(resource.resource.attributes)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.sum.data_points:
                        self.values[metric.name] = point.as_int
                        self.labels |= {pair.key for pair in point.attributes}
        self._news.set()

    def take_spans(self, request: traces.ExportTraceServiceRequest) -> None:
        self.raw.append(request.SerializeToString())
        for resource in request.resource_spans:
            self._named(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self._news.set()

    def _named(self, attributes: Any) -> None:
        self.instances |= {
            pair.value.string_value for pair in attributes if pair.key == "service.instance.id"
        }
        self.services |= {
            pair.value.string_value for pair in attributes if pair.key == "service.name"
        }


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, kept: Collector) -> None:
        self._kept = kept

    async def Export(
        self, request: metrics.ExportMetricsServiceRequest, context: Any
    ) -> metrics.ExportMetricsServiceResponse:
        self._kept.take_metrics(request)
        return metrics.ExportMetricsServiceResponse()


class _Traces(traces_grpc.TraceServiceServicer):
    def __init__(self, kept: Collector) -> None:
        self._kept = kept

    async def Export(
        self, request: traces.ExportTraceServiceRequest, context: Any
    ) -> traces.ExportTraceServiceResponse:
        self._kept.take_spans(request)
        return traces.ExportTraceServiceResponse()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    kept = Collector()
    server = grpc.aio.server()
    metrics_grpc.add_MetricsServiceServicer_to_server(_Metrics(kept), server)  # type: ignore[no-untyped-call]  # theirs
    traces_grpc.add_TraceServiceServicer_to_server(_Traces(kept), server)  # type: ignore[no-untyped-call]  # theirs
    kept.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield kept
    finally:
        await server.stop(0)
