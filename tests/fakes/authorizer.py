"""An authorizer that decides by a table which tests write, over a real gRPC server.

It keeps the contract of the real one (tests/contract/decide runs both): one verdict per ask, the
digest repeated, the same rule behind `View` and `Decide`. In one line a test makes it slow, silent,
wrong or gone. What policies mean is the real one's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from services.common.clock import SystemClock
from services.common.errors import BehavryError
from services.common.ids import uuid7
from services.common.rpc.peers import TokenPeers
from services.common.rpc.server import serve
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes import neighbour

TENANT = "0199d0d0-0000-7000-8000-000000000001"
OTHER_TENANT = "0199d0d0-0000-7000-8000-000000000002"
AGENT = "0199d0d0-0000-7000-8000-0000000000a1"
OTHER_AGENT = "0199d0d0-0000-7000-8000-0000000000a2"
SESSION = "0199d0d0-0000-7000-8000-00000000005e"
POLICY_REVISION = "sha256:" + "7" * 64

#: What a call that continues an escalation is denied for.
ENDED = {
    "denied": "escalation_denied",
    "expired": "escalation_expired",
    "lapsed": "escalation_expired",
    "cancelled": "escalation_cancelled",
    "revoked": "escalation_denied",
}

Twist = Callable[[wire.Verdict], wire.Verdict | None]


@dataclass(slots=True)
class Ticket:
    """An escalation as far as a proxy can tell."""

    id: str
    binding: tuple[str, ...]
    codes: tuple[str, ...]
    decide_by_ms: int
    state: str = "pending"
    uses: int = 0
    execute_by_ms: int = 0


@dataclass(slots=True)
class Rules:
    """What the fake knows; `approve` pins what is offered, as an administrator would."""

    #: (server, tool) -> pinned schema hash
    approved: dict[tuple[str, str], str] = field(default_factory=dict)
    #: (server, tool) -> (result, code); the rest of what is approved is allowed
    verdicts: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    #: Agents whose every call is denied, and why.
    agents: dict[str, str] = field(default_factory=dict)
    obligations: list[dict[str, Any]] = field(default_factory=list)
    #: How long people have to decide.
    decide_ms: int = 30 * 60 * 1000


class FakeAuthorizer(
    authorizer_pb2_grpc.AuthorizerServiceServicer, authorizer_pb2_grpc.SnapshotServiceServicer
):
    def __init__(self, snapshot: dict[str, Any], jwks: dict[str, Any]) -> None:
        self.rules = Rules()
        self.snapshot = snapshot
        self.jwks = jwks
        self.asks: list[wire.Ask] = []
        self.messages = 0
        self.views = 0
        self.reported: dict[tuple[str, str], wire.ReportedTool] = {}
        self.silent = False
        self.down = False
        self.twist: Twist | None = None
        self.tickets: dict[str, Ticket] = {}
        self.cancels: list[wire.CancelEscalationRequest] = []
        self._streams: set[asyncio.Queue[wire.DecideResponse | None]] = set()
        self._changed = asyncio.Condition()
        self._heard = asyncio.Condition()

    # --- a test's hands -------------------------------------------------------------------------

    async def publish(self, **tenant_changes: Any) -> None:
        """Another revision of the snapshot for the first tenant."""
        async with self._changed:
            self.snapshot["tenants"][TENANT].update(tenant_changes)
            self.snapshot["serial"] += 1
            self.snapshot["revision"] = f"{self.snapshot['serial']}-test"
            self._changed.notify_all()

    async def signal(self, **tenant_changes: Any) -> None:
        """What has changed since the bundle was made: its revision stays."""
        async with self._changed:
            self.snapshot["tenants"][TENANT].update(tenant_changes)
            self._changed.notify_all()

    async def seen(self, server: str, tool: str) -> wire.ReportedTool:
        """The report of a tool, when it has come."""
        async with asyncio.timeout(5), self._heard:
            await self._heard.wait_for(lambda: (server, tool) in self.reported)
        return self.reported[server, tool]

    async def approve(self, server: str, *tools: str) -> None:
        """What is offered now is what is pinned."""
        for tool in tools:
            self.rules.approved[server, tool] = (await self.seen(server, tool)).schema_hash
        await self.publish()

    def settle(self, escalation_id: str, state: str, *, uses: int = 1) -> None:
        """What a person or the time made of an escalation; the streams hear of it."""
        ticket = self.tickets[escalation_id]
        ticket.state, ticket.uses = state, uses if state == "approved" else 0
        self._tell_changed(ticket)

    def revoke(self, *, tenant: str = TENANT, agents: Sequence[str] = ()) -> None:
        """Tells the streams; `rules.agents` says what such agents are answered."""
        revoked = wire.Revoked(tenant_id=tenant, agent_ids=agents)
        self._tell(wire.DecideResponse(revoked=revoked))

    def hang_up(self) -> None:
        """Ends the streams, as a restart would; the next ones are taken."""
        for out in self._streams:
            out.put_nowait(None)

    async def asked(self, count: int) -> wire.Ask:
        """The last ask, when there have been so many."""
        async with asyncio.timeout(5), self._heard:
            await self._heard.wait_for(lambda: len(self.asks) >= count)
        return self.asks[-1]

    def _tell_changed(self, ticket: Ticket) -> None:
        changed = wire.TicketChanged(
            tenant_id=ticket.binding[0], escalation_id=ticket.id, state=ticket.state
        )
        self._tell(wire.DecideResponse(ticket_changed=changed))

    def _tell(self, news: wire.DecideResponse) -> None:
        for out in self._streams:
            out.put_nowait(news)

    # --- the contract ---------------------------------------------------------------------------

    async def Decide(
        self, request_iterator: AsyncIterator[wire.DecideRequest], context: Any
    ) -> AsyncIterator[wire.DecideResponse]:
        out: asyncio.Queue[wire.DecideResponse | None] = asyncio.Queue()
        self._streams.add(out)
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._take(request_iterator, out))
                while (response := await out.get()) is not None:
                    yield response
                reading.cancel()
        finally:
            self._streams.discard(out)
        if self.down:
            raise BehavryError("INTERNAL", "told to fail")

    async def _take(
        self,
        requests: AsyncIterator[wire.DecideRequest],
        out: asyncio.Queue[wire.DecideResponse | None],
    ) -> None:
        """Asks to verdicts; nothing more comes after the last ask."""
        async for request in requests:
            if request.WhichOneof("message") != "asks":
                continue
            self.messages += 1
            async with self._heard:
                self.asks.extend(request.asks.asks)
                self._heard.notify_all()
            if self.down:
                break
            verdicts = [self._verdict(ask) for ask in request.asks.asks]
            if self.twist is not None:
                verdicts = [made for one in verdicts if (made := self.twist(one)) is not None]
            if not self.silent:
                out.put_nowait(wire.DecideResponse(verdicts=wire.Verdicts(verdicts=verdicts)))
        out.put_nowait(None)

    async def View(self, request: wire.ViewRequest, context: Any) -> wire.ViewResponse:
        self.views += 1
        if self.down:
            raise BehavryError("POLICY_MISSING", "told to fail")
        approved = self.rules.approved
        return wire.ViewResponse(
            visible=[
                tool.name
                for tool in request.tools
                if approved.get((request.server, tool.name)) == tool.schema_hash
            ],
            revision=self._revision(),
        )

    async def CancelEscalation(
        self, request: wire.CancelEscalationRequest, context: Any
    ) -> wire.CancelEscalationResponse:
        self.cancels.append(request)
        ticket = self.tickets.get(request.escalation_id)
        if ticket is None or ticket.binding[:2] != (request.tenant_id, request.agent_id):
            return wire.CancelEscalationResponse()
        if ticket.state == "pending":
            self.settle(ticket.id, "cancelled")
        return wire.CancelEscalationResponse(state=ticket.state)

    async def ReportTools(
        self, request: wire.ReportToolsRequest, context: Any
    ) -> wire.ReportToolsResponse:
        async with self._heard:
            for tool in request.tools:
                self.reported[request.server, tool.name] = tool
            self._heard.notify_all()
        return wire.ReportToolsResponse()

    async def Watch(
        self, request: wire.WatchRequest, context: Any
    ) -> AsyncIterator[wire.WatchResponse]:
        sent = b""
        while True:
            async with self._changed:
                while self._part(request.part) == sent:
                    await self._changed.wait()
            sent = self._part(request.part)
            yield wire.WatchResponse(revision=self.snapshot["revision"], snapshot=sent)

    def _part(self, name: str) -> bytes:
        return orjson.dumps(self.jwks if name == "jwks" else self.snapshot)

    def _verdict(self, ask: wire.Ask) -> wire.Verdict:
        try:
            asked = orjson.loads(ask.request)
        except orjson.JSONDecodeError:
            denied = wire.Decision(
                result=wire.DECISION_RESULT_DENY,
                reason_code="input_invalid",
                codes=["input_invalid"],
            )
            return wire.Verdict(id=ask.id, decision=denied, revision=self._revision())
        result, code, codes = self._decide(ask, asked)
        escalation = None
        if result == "intercept":
            result, code, codes, escalation = self._escalated(ask, asked, codes)
        return wire.Verdict(
            id=ask.id,
            arguments_digest=asked["arguments_digest"],
            decision=wire.Decision(
                result=wire.DecisionResult.Value(f"DECISION_RESULT_{result.upper()}"),
                reason_code=code,
                codes=codes,
                policies=["base.grants"],
                obligations=orjson.dumps(self.rules.obligations) if self.rules.obligations else b"",
                engine="opa",
                engine_us=120,
                action="read",
                category="test",
                escalation=escalation,
            ),
            revision=self._revision(),
            envelope=orjson.dumps({"schema": "behavry.input/1", "request": {**asked}}),
        )

    def _decide(self, ask: wire.Ask, asked: dict[str, Any]) -> tuple[str, str, list[str]]:
        tenant = self.snapshot["tenants"].get(ask.caller.tenant_id, {"agents": {}, "servers": {}})
        if ask.caller.agent_id not in tenant["agents"]:
            return "deny", "agent_unknown", ["agent_unknown"]
        if asked["server"] not in tenant["servers"]:
            return "deny", "unknown_server", ["unknown_server"]
        refused = self.rules.agents.get(ask.caller.agent_id)
        if refused:
            return "deny", refused, [refused]
        key = (asked["server"], asked["tool"])
        if asked["tool"]:
            pinned = self.rules.approved.get(key)
            if pinned is None:
                return "deny", "tool_hidden", ["tool_hidden"]
            if pinned != asked["schema_hash"]:
                return "deny", "tool_schema_changed", ["tool_schema_changed"]
        result, code = self.rules.verdicts.get(key, ("allow", ""))
        return result, code, [code] if code else []

    def _escalated(
        self, ask: wire.Ask, asked: dict[str, Any], codes: list[str]
    ) -> tuple[str, str, list[str], wire.Escalation]:
        """The rules of core.md 9, as far as a proxy can tell: same binding, same ticket; an ended
        one answers to its id; an approved one is used up before the answer.
        """
        now_ms = SystemClock().now_ns() // 1_000_000
        caller = ask.caller
        binding = (
            caller.tenant_id, caller.agent_id, caller.requester_id, asked["server"], asked["tool"],
            asked["method"], asked["arguments_digest"], str(asked["schema_hash"]),
        )  # fmt: skip
        ticket = self.tickets.get(ask.escalation_id)
        if ticket is not None and ticket.binding == binding and ticket.state in ENDED:
            code = ENDED[ticket.state]
            return "deny", code, [*codes, code], _told(ticket)
        live = (one for one in self.tickets.values() if one.binding == binding)
        ticket = next((one for one in live if one.state in {"pending", "approved"}), None)
        if ticket is None:
            new = Ticket(uuid7(now_ms * 1_000_000), binding, tuple(codes), 0)
            new.decide_by_ms = now_ms + self.rules.decide_ms
            ticket = self.tickets[new.id] = new
        if ticket.state == "pending":
            return "intercept", codes[0], codes, _told(ticket)
        ticket.uses -= 1
        if ticket.uses == 0:
            ticket.state = "consumed"
            self._tell_changed(ticket)
        return "allow", "", codes, _told(ticket, state="consumed")

    def _revision(self) -> wire.Revision:
        return wire.Revision(
            bundle_serial=self.snapshot["serial"],
            bundle_digest="sha256:" + "b" * 64,
            policy_revision=POLICY_REVISION,
            policy_state="fresh",
            bundle_age_s=3,
        )


def _told(ticket: Ticket, *, state: str = "") -> wire.Escalation:
    return wire.Escalation(
        id=ticket.id,
        state=state or ticket.state,
        decide_by_ms=ticket.decide_by_ms,
        codes=ticket.codes,
    )


def server_entry(**changes: Any) -> dict[str, Any]:
    return {
        "id": "0199d0d0-0000-7000-8000-0000000000e1",
        "domain": "notes",
        "trust": "trusted",
        "transport": "http",
        "urls": [],
        "stdio": None,
        "era": "auto",
        "credential": {"kind": "none"},
        **changes,
    }


def snapshot(servers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    agent = {"name": "demo", "class": "default", "status": "active", "servers": sorted(servers)}
    return {
        "plane_id": "dp-local",
        "revision": "1-test",
        "serial": 1,
        "tenants": {
            TENANT: {
                "slug": "default",
                "status": "active",
                "modes": {},
                "revoked_sessions": [],
                "agents": {
                    AGENT: agent,
                    OTHER_AGENT: {**agent, "name": "other", "servers": []},
                },
                "servers": servers,
            },
            OTHER_TENANT: {
                "slug": "other",
                "status": "active",
                "modes": {},
                "revoked_sessions": [],
                "agents": {AGENT: {**agent, "name": "twin"}},
                "servers": servers,
            },
            neighbour.TENANT: {
                "slug": f"{neighbour.MARK}-tenant",
                "status": "active",
                "modes": {},
                "revoked_sessions": [],
                "agents": {AGENT: {**agent, "name": f"{neighbour.MARK}-agent"}},
                "servers": {slug: _elsewhere(entry) for slug, entry in servers.items()},
            },
        },
    }


def _elsewhere(entry: dict[str, Any]) -> dict[str, Any]:
    """A server of the same slug that belongs to the second tenant, where nobody listens."""
    return {
        **entry, "id": neighbour.marked_id(2), "domain": neighbour.MARK, "transport": "http",
        "urls": [f"http://127.0.0.1:9/{neighbour.MARK}"], "stdio": None,
        "credential": {"kind": "none"},
    }  # fmt: skip


@asynccontextmanager
async def serving(fake: FakeAuthorizer, address: str, peers_dir: Path) -> AsyncIterator[str]:
    def register(server: grpc.aio.Server) -> None:
        authorizer_pb2_grpc.add_AuthorizerServiceServicer_to_server(fake, server)
        authorizer_pb2_grpc.add_SnapshotServiceServicer_to_server(fake, server)

    async with serve(
        listen=address,
        register=register,
        authenticator=TokenPeers(peers_dir),
        counters=Counters(),
        log=get_log("fake-authorizer"),
    ) as made:
        await made.set_health("", serving=True)
        yield made.address
