"""A control plane small enough to bend: serves a signed bundle and keys over real HTTP, and signs
what people decided. The bundle is made by control's own builder; the link is plane_desk.py's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey, KeySet, RSAKey

from behavry.control.v1 import plane_link_pb2 as wire
from services.common.ids import PlaneId, TenantId
from services.common.rego.check import check_policy
from services.control.bundles import BuiltBundle, Content, build
from services.control.desired_state import (
    PolicyRow,
    TenantRows,
    shipped_modules,
    tenant_content,
)
from tests.fakes import neighbour

PLANE = PlaneId("dp-test")
ENVIRONMENT = "test"
TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
OTHER_TENANT = TenantId("0199d0d0-0000-7000-8000-000000000002")
AGENT = "0199d0d0-0000-7000-8000-00000000000a"
SCHEMA_HASH = "sha256:" + "1" * 64
_signals = itertools.count(1)


def policy(tenant: TenantId, key: str, body: str, *, state: str = "enforce") -> PolicyRow:
    """A policy from the body of its module; checked as control checks it."""
    package = f"behavry.tenant.t{tenant.replace('-', '')}.{key}"
    source = f"package {package}\n\nimport rego.v1\n\n{body}\n"
    report = check_policy(source, tenant, key)
    return PolicyRow(
        key=key,
        version=1,
        state=state,
        source=source,
        reads=tuple(sorted(report.references)),
        guards=report.guards,
    )


def rows(tenant: TenantId = TENANT, **changes: Any) -> TenantRows:
    """A tenant with one agent that may read files, one server, one approved tool."""
    values: dict[str, Any] = {
        "id": tenant,
        "slug": "acme",
        "status": "active",
        "classes": {"default": {"critical": True}},
        "roles": {"reader": ["filesystem:read"]},
        "agents": {
            AGENT: {
                "name": "agent",
                "type": "assistant",
                "class": "default",
                "owner": None,
                "tags": [],
                "roles": ["reader"],
                "status": "active",
            }
        },
        "revoked_sessions": {},
        "servers": {
            "files": {
                "id": "0199d0d0-0000-7000-8000-0000000000ff",
                "domain": "filesystem",
                "trust": "untrusted",
                "transport": "http",
                "urls": ["http://127.0.0.1:9/mcp"],
                "stdio": "",
                "era": "auto",
                "case_fold": False,
                "credential": {"kind": "none"},
            }
        },
        "tools": {
            "files": {
                "read_file": {
                    "state": "approved",
                    "action": "read",
                    "category": "",
                    "allow_tags": [],
                    "schema_hash": SCHEMA_HASH,
                },
                "delete_file": {
                    "state": "approved",
                    "action": "delete",
                    "category": "",
                    "allow_tags": [],
                    "schema_hash": SCHEMA_HASH,
                },
            }
        },
        "policies": [],
    }
    return TenantRows(**{**values, **changes})


@cache
def second_tenant() -> TenantRows:
    """Of the second tenant (neighbour.py), in every bundle: an agent, a server and tools as `rows`
    has them under the same ids and slugs, and a policy that refuses whatever it is asked.
    """
    plain = rows(neighbour.TENANT)
    agents = {
        one: {**agent, "name": f"{neighbour.MARK}-agent"} for one, agent in plain.agents.items()
    }
    servers = {
        slug: {
            **server,
            "id": neighbour.marked_id(2),
            "urls": [f"http://127.0.0.1:9/{neighbour.MARK}"],
        }
        for slug, server in plain.servers.items()
    }
    refuses = f"""verdicts contains {{"result": "deny", "code": "{neighbour.MARK}",
\t"reason": "{neighbour.MARK}", "obligations": []}}
"""
    return rows(
        neighbour.TENANT,
        slug=f"{neighbour.MARK}-tenant",
        agents=agents,
        servers=servers,
        policies=[policy(neighbour.TENANT, f"{neighbour.MARK}_refuses", refuses)],
    )


@dataclass(slots=True)
class FakeControl:
    """`publish` makes the next bundle; `refuse` makes every fetch fail with that status."""

    directory: Path
    bundle_key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256"))
    link_key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256"))
    decision_key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256"))
    token_key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048))
    serial: int = 0
    bundle: BuiltBundle | None = None
    archive: bytes = b""
    refuse: int = 0
    fetches: int = 0
    url: str = ""
    fetched: asyncio.Event = field(default_factory=asyncio.Event)

    def write_files(self) -> None:
        """What `up` would have made for the data plane."""
        keys = self.directory / "keys"
        keys.mkdir(exist_ok=True)
        (keys / "link.pem").write_bytes(self.link_key.as_pem(private=True))
        (keys / "digest.keys").write_text("ab" * 32 + "\n")
        self.write_trust()

    def write_trust(self, *, decision: bool = True) -> None:
        """The trust root; an old one knows nothing of decisions."""
        keys = {"bundle": self.bundle_key} | ({"decision": self.decision_key} if decision else {})
        roles = {
            role: {
                "threshold": 1,
                "keys": [{**key.as_dict(private=False), "kid": key.thumbprint()}],
            }
            for role, key in keys.items()
        }
        trust = {"version": 1, "roles": roles}
        (self.directory / "trust.json").write_text(json.dumps(trust))

    def decide(
        self,
        opened: wire.EscalationOpened,
        verdict: str = "approve",
        *,
        now_ms: int,
        key: ECKey | None = None,
        header: dict[str, Any] | None = None,
        **changes: Any,
    ) -> wire.EscalationDecision:
        """What people decided about this escalation, signed as control signs it. `changes` bend
        the payload, `header` the header, `key` the hand that signs.
        """
        signer = key or self.decision_key
        payload = {
            "v": "behavry.escalation-decision/1",
            "plane": PLANE,
            "tenant": opened.tenant_id,
            "escalation": opened.id,
            "binding": opened.binding,
            "verdict": verdict,
            "uses": 1,
            "decided_at_ms": now_ms,
            "execute_by_ms": now_ms + opened.execute_for_s * 1000,
            "approvers": ["0199d0d0-0000-7000-8000-0000000000aa"],
            **changes,
        }
        protected = {
            "alg": "ES256",
            "kid": self.decision_key.thumbprint(),
            "typ": "behavry-decision",
            **(header or {}),
        }
        body = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
        return wire.EscalationDecision(
            signal_id=f"decision-{opened.id}-{next(_signals)}",
            tenant_id=opened.tenant_id,
            escalation_id=opened.id,
            jws=jws.serialize_compact(protected, body, signer, algorithms=["ES256"]),
        )

    def publish(
        self,
        *tenants: TenantRows,
        now_s: int,
        serial: int | None = None,
        modes: Mapping[str, str] | None = None,
    ) -> None:
        self.serial = self.serial + 1 if serial is None else serial
        content = Content(
            plane_id=PLANE,
            environment=ENVIRONMENT,
            tenants=[
                tenant_content(one, modes or {"context_gate": "off"})
                for one in (*tenants, second_tenant())
            ],
            shipped=shipped_modules(),
        )
        self.bundle = build(
            content,
            serial=self.serial,
            created_s=now_s,
            key=self.bundle_key,
            kid=self.bundle_key.thumbprint(),
        )
        self.archive = self.bundle.archive

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_get("/api/v1/policy/bundle", self._bundle)
        application.router.add_get("/.well-known/jwks.json", self._jwks)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _bundle(self, request: web.Request) -> web.Response:
        self.fetches += 1
        self.fetched.set()
        if self.refuse or self.bundle is None:
            return web.Response(status=self.refuse or 503)
        if request.headers.get("If-None-Match") == self.bundle.etag:
            return web.Response(status=304)
        return web.Response(body=self.archive, headers={"ETag": self.bundle.etag})

    async def _jwks(self, _: web.Request) -> web.Response:
        return web.json_response(KeySet([self.token_key]).as_dict(private=False))
