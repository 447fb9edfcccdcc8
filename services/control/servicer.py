"""The links that data planes hold open: notices and revocations go down, tools and health come up.

What a plane says is believed for its own tenants only, and never changes policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

from behavry.control.v1 import plane_link_pb2 as wire
from behavry.control.v1 import plane_link_pb2_grpc
from services.common.ids import ServerSlug, TenantId, is_uuid
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log
from services.control.signals import Signals

#: (name, schema hash, canonical definition)
SeenTool = tuple[str, str, bytes]
MAX_DEFINITION_BYTES: Final = 64 << 10


class ToolInbox(Protocol):
    async def tools_seen(self, tenant: TenantId, server: ServerSlug, tools: list[SeenTool]) -> None:
        """Keeps what a server offers; an approved tool with another hash becomes `changed`."""


class PlaneLinkServicer(plane_link_pb2_grpc.PlaneLinkServiceServicer):
    def __init__(
        self, *, signals: Signals, tools: ToolInbox, issuer: str, supervisor: Supervisor, log: Log
    ) -> None:
        self._signals = signals
        self._tools = tools
        self._issuer = issuer
        self._supervisor = supervisor
        self._log = log

    async def Open(
        self, request_iterator: AsyncIterator[wire.OpenRequest], context: Any
    ) -> AsyncIterator[wire.OpenResponse]:
        heard = self._signals.listen()
        acknowledged: set[str] = set()
        sent: set[str] = set()
        told_serial = 0
        reader = self._supervisor.once(
            "plane_link_reader", lambda: self._read(request_iterator, acknowledged)
        )
        try:
            yield wire.OpenResponse(hello_ack=wire.HelloAck(issuer=self._issuer))
            while not reader.done():
                heard.clear()
                for signal in self._signals.pending():
                    if signal.id not in sent | acknowledged:
                        sent.add(signal.id)
                        yield wire.OpenResponse(
                            revocation=wire.Revocation(
                                signal_id=signal.id,
                                tenant_id=signal.tenant,
                                agent_ids=signal.agents,
                                session_ids=signal.sessions,
                                stops=[
                                    wire.Stop(scope=stop.scope, subject=stop.subject)
                                    for stop in signal.stops
                                ],
                                min_serial=signal.min_serial,
                            )
                        )
                if self._signals.serial > told_serial:
                    told_serial = self._signals.serial
                    yield wire.OpenResponse(bundle_notify=wire.BundleNotify(serial=told_serial))
                waiting = self._supervisor.once("plane_link_wait", lambda: _wait(heard))
                await asyncio.wait({waiting, reader}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            self._signals.forget(heard)
            reader.cancel()

    async def _read(
        self, requests: AsyncIterator[wire.OpenRequest], acknowledged: set[str]
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello":
                    self._log.info("plane_connected", plane=request.hello.plane_id)
                case "tools_seen":
                    await self._keep(request.tools_seen)
                case "ack":
                    acknowledged.add(request.ack.signal_id)
                case _:
                    continue

    async def _keep(self, seen: wire.ToolsSeen) -> None:
        if not is_uuid(seen.tenant_id):
            return
        tools = [
            (tool.name, tool.schema_hash, tool.definition)
            for tool in seen.tools
            if tool.name and len(tool.definition) <= MAX_DEFINITION_BYTES
        ]
        await self._tools.tools_seen(TenantId(seen.tenant_id), ServerSlug(seen.server), tools)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
