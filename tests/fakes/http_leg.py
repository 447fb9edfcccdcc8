"""The HTTP leg of the proxy by itself, in front of real tool servers, under a clock that tests
move. It records what is heard beside the answers.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.proxy import bridge
from services.proxy.backends.credentials import Credentials
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.streamable import StreamableBackend
from services.proxy.backends.token_endpoint import Answered
from services.proxy.backends.token_requests import TokenRequest
from services.proxy.backends.upstream import Heard, Reply, Request, Session
from services.proxy.calls import Caller, Visit
from services.proxy.snapshot import Agent, Server, Tenant
from tests.fakes.clock import ManualClock


@dataclass(kw_only=True)
class Leg:
    backend: StreamableBackend
    clock: ManualClock
    counters: Counters
    secrets_dir: Path
    heard: list[Heard] = field(default_factory=list)
    #: How many tokens were given.
    tokens: int = 0

    def hear(self, heard: Heard) -> None:
        self.heard.append(heard)

    @property
    def dropped(self) -> int:
        return self.counters.read().get("proxy.upstream.dropped", 0)

    async def call(
        self,
        visit: Visit,
        call: str,
        *,
        session: Session | None = None,
        progress: int | str | None = None,
        deaf: bool = False,
        timeout_s: float = 5,
    ) -> Reply:
        facts = await self.backend.facts(visit)
        params = {"name": "read_note", "arguments": {"call": call}}
        if facts.modern:
            params["_meta"] = bridge.modern_meta(facts.version)
        request = Request(
            method="tools/call",
            params=params,
            name="read_note",
            progress=progress,
            timeout_s=timeout_s,
        )
        return await self.backend.ask(visit, request, session, None if deaf else self.hear)


def visit(*urls: str | None, agent: str = "a", **changes: Any) -> Visit:
    server = Server(
        id="1",
        domain="notes",
        transport="http",
        urls=tuple(url for url in urls if url),
        **changes,
    )
    return Visit(
        caller=Caller(
            tenant=TenantId("t"),
            agent=AgentId(agent),
            session=SessionId("s"),
            issued_at_s=0,
            expires_at_s=0,
            audiences=frozenset(),
        ),
        tenant=Tenant(slug="default", status="active"),
        agent=Agent(name=agent, status="active"),
        slug=ServerSlug("notes"),
        server=server,
        revision="1",
        client_ip="",
    )


def texts(reply: Reply) -> list[str]:
    assert reply.result is not None, reply.error
    return [one["text"] for one in reply.result["content"]]


@asynccontextmanager
async def http_leg(secrets_dir: Path) -> AsyncIterator[Leg]:
    clock, counters, log = ManualClock(), Counters(), get_log("proxy")

    async def token(
        url: str, request: TokenRequest, *, tls: ssl.SSLContext, private: bool
    ) -> Answered:
        leg.tokens += 1
        given = {"access_token": f"t{leg.tokens}", "token_type": "Bearer", "expires_in": 3600}
        return Answered(200, bytearray(json.dumps(given).encode()))

    async with Supervisor(log) as supervisor:
        credentials = Credentials(
            secrets=Secrets(secrets_dir), clock=clock, counters=counters, log=log, post=token
        )
        backend = StreamableBackend(
            credentials=credentials, clock=clock, counters=counters, spawn=supervisor.once
        )
        leg = Leg(backend=backend, clock=clock, counters=counters, secrets_dir=secrets_dir)
        try:
            yield leg
        finally:
            backend.shut()
