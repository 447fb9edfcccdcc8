"""OpenTelemetry export, only where an endpoint is set. Without one nothing is imported, counted or
measured twice: a caller holds None instead of spans.

Decides which facts leave: counters by their names, and for each tool call method, tool, decision,
reason and policy revision. Arguments, results, tenants and agents never do. The SDK's side is
otlp.py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from services.common.service_settings import ServiceSettings
from services.common.telemetry.counters import Counters


class CallSpan(Protocol):
    """A call that is being answered."""

    @property
    def trace_id(self) -> str | None:
        """32 hex digits, where somebody can look for it; None where nothing is recorded."""

    @property
    def traceparent(self) -> str:
        """By which whoever is called further on joins the trace (W3C); empty where nothing is
        recorded.
        """

    def end(self, *, decision: str, reason: str, revision: str) -> None:
        """Once, when the answer is known."""


class CallSpans(Protocol):
    def begin(
        self, method: str, tool: str, params: Mapping[str, Any], *, started_ns: int
    ) -> CallSpan:
        """A SERVER span since `started_ns` (wall clock); its parent is the agent's word in
        `params._meta.traceparent`, if that is well-formed. `tool` is one that exists, or "".
        """


@asynccontextmanager
async def exporting(
    settings: ServiceSettings, service: str, counters: Counters
) -> AsyncIterator[CallSpans | None]:
    """Exports until left; what is left over then has two seconds to leave."""
    if not settings.otlp_endpoint:
        yield None
        return
    from services.common.telemetry import otlp  # noqa: PLC0415  # half a second, for exporters only

    async with otlp.exporting(settings, service, counters) as spans:
        yield spans
