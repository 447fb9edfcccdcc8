"""The links that data planes hold open: notices, revocations and people's decisions go down; tools,
health and escalations come up.

What a plane says is believed for its own tenants only, and never changes policy. What it must not
lose it says again until it is kept; what we must not lose we say again until it is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from behavry.control.v1 import plane_link_pb2 as wire
from behavry.control.v1 import plane_link_pb2_grpc
from services.common.ids import AgentId, PlaneId, ServerSlug, TenantId, is_uuid
from services.common.rpc.peers import Metadata
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log
from services.control.escalation_reports import Opened, Reported
from services.control.signals import RevocationSignal, Signals
from services.control.store.escalation_inbox import EscalationInbox
from services.control.store.escalations import Waiting

#: (name, schema hash, canonical definition)
SeenTool = tuple[str, str, bytes]
MAX_DEFINITION_BYTES: Final = 64 << 10


class ToolInbox(Protocol):
    async def tools_seen(self, tenant: TenantId, server: ServerSlug, tools: list[SeenTool]) -> None:
        """Keeps what a server offers; an approved tool with another hash becomes `changed`."""


@dataclass(slots=True, kw_only=True)
class _Link:
    """One open stream: whose it is, and what has passed over it."""

    plane: PlaneId
    heard: asyncio.Event
    acknowledged: set[str] = field(default_factory=set)
    #: Ids of the signals that were sent, and among them the decisions.
    sent: set[str] = field(default_factory=set)
    decisions: dict[str, Waiting] = field(default_factory=dict)
    #: What the reader wants said: escalations that are kept.
    kept: deque[wire.EscalationKept] = field(default_factory=deque)
    told_serial: int = 0
    #: `Signals.escalations` at the last look; none yet.
    looked_at: int = -1

    def tell_kept(self, id: str, version: int) -> None:
        self.kept.append(wire.EscalationKept(id=id, version=version))
        self.heard.set()


class PlaneLinkServicer(plane_link_pb2_grpc.PlaneLinkServiceServicer):
    def __init__(
        self,
        *,
        signals: Signals,
        tools: ToolInbox,
        escalations: EscalationInbox,
        plane_of: Callable[[Metadata | None], PlaneId],
        issuer: str,
        supervisor: Supervisor,
        log: Log,
    ) -> None:
        self._signals = signals
        self._tools = tools
        self._escalations = escalations
        self._plane_of = plane_of
        self._issuer = issuer
        self._supervisor = supervisor
        self._log = log

    async def Open(
        self, request_iterator: AsyncIterator[wire.OpenRequest], context: Any
    ) -> AsyncIterator[wire.OpenResponse]:
        plane = self._plane_of(context.invocation_metadata())
        link = _Link(plane=plane, heard=self._signals.listen())
        reader = self._supervisor.once(
            "plane_link_reader", lambda: self._read(request_iterator, link)
        )
        try:
            yield wire.OpenResponse(hello_ack=wire.HelloAck(issuer=self._issuer))
            while not reader.done():
                link.heard.clear()
                async for message in self._due(link):
                    yield message
                waiting = self._supervisor.once("plane_link_wait", lambda: _wait(link.heard))
                await asyncio.wait({waiting, reader}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            self._signals.forget(link.heard)
            reader.cancel()

    async def _due(self, link: _Link) -> AsyncIterator[wire.OpenResponse]:
        """1. rights that end  2. what people decided  3. what is kept  4. a newer bundle."""
        for signal in self._signals.pending():  # 1
            if signal.id not in link.sent | link.acknowledged:
                link.sent.add(signal.id)
                yield wire.OpenResponse(revocation=_revocation(signal))
        if self._signals.escalations != link.looked_at:  # 2
            link.looked_at = self._signals.escalations
            for decision in await self._escalations.waiting(link.plane):
                if decision.id not in link.sent:
                    link.sent.add(decision.id)
                    link.decisions[decision.id] = decision
                    yield wire.OpenResponse(escalation_decision=_decision(decision))
        while link.kept:  # 3
            yield wire.OpenResponse(escalation_kept=link.kept.popleft())
        if self._signals.serial > link.told_serial:  # 4
            link.told_serial = self._signals.serial
            yield wire.OpenResponse(bundle_notify=wire.BundleNotify(serial=link.told_serial))

    async def _read(self, requests: AsyncIterator[wire.OpenRequest], link: _Link) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello":
                    self._log.info("plane_connected", plane=link.plane)
                case "tools_seen":
                    await self._keep(request.tools_seen)
                case "ack":
                    await self._acknowledged(request.ack.signal_id, link)
                case "escalation_opened":
                    await self._opened(request.escalation_opened, link)
                case "escalation_changed":
                    await self._changed(request.escalation_changed, link)
                case _:
                    continue

    async def _acknowledged(self, signal_id: str, link: _Link) -> None:
        link.acknowledged.add(signal_id)
        decision = link.decisions.pop(signal_id, None)
        if decision is not None:
            await self._escalations.acknowledged(link.plane, decision)

    async def _opened(self, said: wire.EscalationOpened, link: _Link) -> None:
        if await self._escalations.opened(link.plane, _opened(said)):
            link.tell_kept(said.id, 0)

    async def _changed(self, said: wire.EscalationChanged, link: _Link) -> None:
        reported = Reported(
            id=said.id,
            tenant=TenantId(said.tenant_id),
            state=said.state,
            version=said.version,
            uses_left=said.uses_left,
        )
        if await self._escalations.changed(link.plane, reported):
            link.tell_kept(said.id, said.version)

    async def _keep(self, seen: wire.ToolsSeen) -> None:
        if not is_uuid(seen.tenant_id):
            return
        tools = [
            (tool.name, tool.schema_hash, tool.definition)
            for tool in seen.tools
            if tool.name and len(tool.definition) <= MAX_DEFINITION_BYTES
        ]
        await self._tools.tools_seen(TenantId(seen.tenant_id), ServerSlug(seen.server), tools)


def _revocation(signal: RevocationSignal) -> wire.Revocation:
    return wire.Revocation(
        signal_id=signal.id,
        tenant_id=signal.tenant,
        agent_ids=signal.agents,
        session_ids=signal.sessions,
        stops=[wire.Stop(scope=stop.scope, subject=stop.subject) for stop in signal.stops],
        min_serial=signal.min_serial,
    )


def _opened(said: wire.EscalationOpened) -> Opened:
    return Opened(
        id=said.id,
        tenant=TenantId(said.tenant_id),
        agent=AgentId(said.agent_id),
        agent_name=said.agent_name,
        agent_class=said.agent_class,
        requester=said.requester_id,
        requester_verified=said.requester_verified,
        server=said.server,
        tool=said.tool,
        method=said.method,
        action=said.action,
        category=said.category,
        resource=said.resource,
        resource_kind=said.resource_kind,
        codes=list(said.codes),
        reason=said.reason,
        policies=list(said.policies),
        features=said.features,
        finding_tags=list(said.finding_tags),
        binding=said.binding,
        policy_revision=said.policy_revision,
        quorum=said.quorum,
        tier=said.tier,
        opened_at_ms=said.opened_at_ms,
        decide_by_ms=said.decide_by_ms,
        execute_for_s=said.execute_for_s,
    )


def _decision(decision: Waiting) -> wire.EscalationDecision:
    return wire.EscalationDecision(
        signal_id=decision.id,
        tenant_id=decision.tenant,
        escalation_id=decision.escalation,
        jws=decision.jws,
    )


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
