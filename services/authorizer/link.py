"""The stream that this plane dials to control: bundle notices, revocations and people's decisions
come down, health, newly seen tools and escalations go up (deployment.md 5). Without it the poll
still brings policy.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

import grpc

from behavry.control.v1 import plane_link_pb2 as wire
from behavry.control.v1 import plane_link_pb2_grpc
from services.authorizer.active import ActivePolicy
from services.authorizer.approvals import Approvals, Signal
from services.authorizer.bundle_feed import BundleFeed
from services.authorizer.escalation_notices import EscalationNotices
from services.authorizer.jwks_feed import JwksFeed
from services.authorizer.kill_switch import switch
from services.authorizer.link_token import LinkTokens
from services.authorizer.revocations import Revocation
from services.authorizer.rights import Proxies
from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.ticket import Ticket
from services.common.ids import PlaneId
from services.common.rpc.client import OPTIONS
from services.common.rpc.peers import PEER_KEY, TOKEN_KEY
from services.common.telemetry.logging import Log, describe

HEARTBEAT_S: Final = 30.0
FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0
MAX_WAITING: Final = 1_000
VERSION: Final = "0.1.0"
#: Messages that a new stream begins with anyway, and so are not kept for it.
_TOLD_ANEW: Final = frozenset({"tools_seen", "escalation_opened", "escalation_changed"})


@dataclass(slots=True, kw_only=True)
class PlaneLink:
    address: str
    tokens: LinkTokens
    plane_id: PlaneId
    instance: str
    active: ActivePolicy
    feed: BundleFeed
    jwks: JwksFeed
    proxies: Proxies
    notices: EscalationNotices
    approvals: Approvals
    log: Log
    engine_up: bool = False
    _waiting: deque[wire.OpenRequest] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: dict[tuple[str, str], wire.ToolsSeen] = field(default_factory=dict)
    _stream: int = 0
    _unacknowledged: list[str] = field(default_factory=list)
    _revoked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.notices.send = self._tell
        self.approvals.acknowledge = self._acknowledge
        self.approvals.tell = self.notices.changed

    def tools_seen(self, tenant: str, server: str, tools: list[wire.SeenTool]) -> None:
        """What a server offers otherwise than the table has it. Goes up now and on every new
        stream, for nobody says whether control kept it; none takes back what was said before.
        """
        self._seen.pop((tenant, server), None)
        if not tools:
            return
        seen = wire.ToolsSeen(tenant_id=tenant, server=server, tools=tools)
        self._seen[tenant, server] = seen
        if len(self._seen) > MAX_WAITING:
            del self._seen[next(iter(self._seen))]
        self._send(wire.OpenRequest(tools_seen=seen))

    async def run_acknowledgements(self) -> None:
        """Says what no restart can forget any more: many at once, where many came at once."""
        while True:
            await self._revoked.wait()
            self._revoked.clear()
            kept = list(self._unacknowledged)
            try:
                await self.active.revocations.save()
            except OSError as failure:
                self.log.error("revocation_not_kept", error=describe(failure))
                self._revoked.set()
                await asyncio.sleep(LONGEST_RETRY_S)
                continue
            del self._unacknowledged[: len(kept)]
            for signal_id in kept:
                self._acknowledge(signal_id)

    async def run(self) -> None:
        """Dials again and again until cancelled."""
        delay_s = FIRST_RETRY_S
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._hold()
            except grpc.aio.AioRpcError as down:
                self.log.warning("control_link_down", status=down.code().name)
            if asyncio.get_running_loop().time() - started > LONGEST_RETRY_S:
                delay_s = FIRST_RETRY_S
            await asyncio.sleep(random.uniform(0, delay_s))  # noqa: S311  # full jitter
            delay_s = min(delay_s * 2, LONGEST_RETRY_S)

    async def _hold(self) -> None:
        self._stream += 1
        try:
            async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
                metadata = ((PEER_KEY, "plane"), (TOKEN_KEY, self.tokens.bearer()))
                stub = plane_link_pb2_grpc.PlaneLinkServiceStub(channel)
                async for message in stub.Open(self._outgoing(self._stream), metadata=metadata):
                    self._receive(message)
        finally:
            self._stream += 1
            self._wake.set()  # lets what fed the dead stream end

    async def _outgoing(self, stream: int) -> AsyncIterator[wire.OpenRequest]:
        """Only the living stream takes what waits: one that died would swallow it."""
        hello = wire.Hello(plane_id=self.plane_id, instance=self.instance, version=VERSION)
        yield wire.OpenRequest(hello=hello)
        for message in await self._told_anew():
            yield message
        while stream == self._stream:
            self._wake.clear()
            while self._waiting and stream == self._stream:
                yield self._waiting.popleft()
            yield wire.OpenRequest(heartbeat=self._heartbeat())
            try:
                await asyncio.wait_for(self._wake.wait(), HEARTBEAT_S)
            except TimeoutError:
                continue

    async def _told_anew(self) -> list[wire.OpenRequest]:
        """What every new stream begins with: all that nobody has said control kept."""
        self._waiting = deque(
            (one for one in self._waiting if one.WhichOneof("message") not in _TOLD_ANEW),
            maxlen=MAX_WAITING,
        )
        seen = [wire.OpenRequest(tools_seen=one) for one in self._seen.values()]
        try:
            unkept = await self.notices.unkept()
        except StoreUnavailable:
            return seen  # when the store is back, they go up with what is told again
        return [*seen, *(message for ticket in unkept for message in _messages(ticket))]

    def _heartbeat(self) -> wire.Heartbeat:
        age = self.active.age()
        bundle = self.active.bundle
        return wire.Heartbeat(
            revision=bundle.revision if bundle else "",
            bundle_serial=self.active.serial,
            policy_state=age.state if bundle else "missing",
            bundle_age_s=age.age_s,
            engine="up" if self.engine_up else "down",
        )

    def _receive(self, message: wire.OpenResponse) -> None:
        match message.WhichOneof("message"):
            case "hello_ack":
                self.log.info("control_link_up")
                # What was missed while the link was down is in the bundle.
                self.feed.poke()
                self.jwks.poke()
            case "bundle_notify":
                if message.bundle_notify.serial > self.active.serial:
                    self.feed.poke()
            case "revocation":
                self._revoke(message.revocation)
            case "escalation_kept":
                kept = message.escalation_kept
                self.notices.kept(kept.id, kept.version)
            case "escalation_decision":
                decided = message.escalation_decision
                self.approvals.arrived(
                    Signal(
                        signal_id=decided.signal_id,
                        tenant=decided.tenant_id,
                        escalation=decided.escalation_id,
                        token=decided.jws,
                    )
                )
            case _:  # drain, or a message of a newer control: the stream's end says the rest
                return

    def _revoke(self, signal: wire.Revocation) -> None:
        """In effect at once, whatever the disk does."""
        revocation = Revocation(
            signal_id=signal.signal_id,
            tenant=signal.tenant_id,
            agents=frozenset(signal.agent_ids),
            sessions=frozenset(signal.session_ids),
            stops=frozenset(
                switch(stop.scope, signal.tenant_id, stop.subject) for stop in signal.stops
            ),
            min_serial=signal.min_serial,
        )
        self.active.revocations.add(revocation, active_serial=self.active.serial)
        self.active.changed()
        if signal.agent_ids or signal.session_ids:  # stops are told by who listens to the switch
            self.proxies.revoked(
                signal.tenant_id,
                agents=tuple(signal.agent_ids),
                sessions=tuple(signal.session_ids),
            )
        self._unacknowledged.append(signal.signal_id)
        self._revoked.set()

    def _acknowledge(self, signal_id: str) -> None:
        self._send(wire.OpenRequest(ack=wire.Ack(signal_id=signal_id)))

    def _tell(self, ticket: Ticket) -> None:
        for message in _messages(ticket):
            self._send(message)

    def _send(self, message: wire.OpenRequest) -> None:
        self._waiting.append(message)
        self._wake.set()


def _messages(ticket: Ticket) -> Iterator[wire.OpenRequest]:
    if ticket.kept_version < 0:
        yield wire.OpenRequest(escalation_opened=_opened(ticket))
    if ticket.version > 0:
        yield wire.OpenRequest(escalation_changed=_changed(ticket))


def _opened(ticket: Ticket) -> wire.EscalationOpened:
    return wire.EscalationOpened(
        id=ticket.id,
        tenant_id=ticket.tenant,
        agent_id=ticket.agent,
        agent_name=ticket.agent_name,
        agent_class=ticket.agent_class,
        requester_id=ticket.requester_id,
        requester_verified=ticket.requester_verified,
        server=ticket.server,
        tool=ticket.tool,
        method=ticket.method,
        action=ticket.action,
        category=ticket.category,
        resource=ticket.resource,
        resource_kind=ticket.resource_kind,
        codes=ticket.codes,
        reason=ticket.reason,
        policies=ticket.policies,
        features=ticket.features,
        finding_tags=ticket.finding_tags,
        binding=ticket.binding,
        policy_revision=ticket.policy_revision,
        quorum=ticket.quorum,
        tier=ticket.tier,
        opened_at_ms=ticket.opened_at_ms,
        decide_by_ms=ticket.decide_by_ms,
        execute_for_s=ticket.execute_for_s,
    )


def _changed(ticket: Ticket) -> wire.EscalationChanged:
    return wire.EscalationChanged(
        id=ticket.id,
        tenant_id=ticket.tenant,
        state=ticket.state.value,
        at_ms=ticket.changed_at_ms,
        uses_left=ticket.uses_left,
        version=ticket.version,
    )
