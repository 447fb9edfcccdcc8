"""What the tests of escalations share: people who sign in, a plane that asks them, its answers."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import asyncpg
from joserfc import jws
from joserfc.jwk import ECKey

from behavry.control.v1 import plane_link_pb2 as wire
from services.common.ids import uuid7
from services.control.passwords import Passwords
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.planes import Plane

ESCALATIONS: Final = "/api/v1/escalations"
BINDING: Final = "b1:" + "5" * 64


@dataclass(kw_only=True)
class Somebody:
    """A person signed in at the command line."""

    rest: Rest
    id: str
    name: str
    password: str
    token: str

    async def act(
        self, escalation: str, verb: str, body: Any = None, *, key: str | None = ""
    ) -> Answered:
        """`key`: a fresh one, one of the test's, or None."""
        headers = {} if key is None else {"idempotency-key": key or str(uuid4())}
        if body is None:
            body = {"reason": "not today"} if verb == "deny" else {}
        path = f"{ESCALATIONS}/{escalation}:{verb}"
        return await self.rest.post(path, body, key=self.token, headers=headers)

    async def step_up(self, password: str | None = None) -> Answered:
        said = {"password": password or self.password}
        answer = await self.rest.post("/api/v1/auth/step-up", said, key=self.token)
        if answer.status == 200:
            self.token = answer.json["token"]
        return answer


async def signed_in(rest: Rest, name: str = "admin", password: str = "") -> Somebody:
    password = password or (rest.state / "admin-password").read_text().strip()
    body = {"username": name, "password": password, "bearer": True}
    answer = await rest.post("/api/v1/auth/login", body, key=None)
    assert 200 == answer.status, answer.body
    token = answer.json["token"]
    me = (await rest.get("/api/v1/me", key=token)).json
    return Somebody(rest=rest, id=me["id"], name=name, password=password, token=token)


async def joined(
    rest: Rest, name: str, role: str = "analyst", *, tenant: str | None = None
) -> Somebody:
    """One more person of the tenant."""
    password = f"the password of {name}"
    hashed = await Passwords().hash(password)
    now = datetime.fromtimestamp(rest.clock.now_ns() / 1e9, UTC)
    await run(
        rest,
        "INSERT INTO control.users VALUES ($1, $2, $3, $4, $5, 'active', $6)",
        uuid4(), tenant or rest.running.tenant.id, name, role, hashed, now,
    )  # fmt: skip
    return await signed_in(rest, name, password)


async def statements(rest: Rest, read: Callable[[], Awaitable[Any]]) -> int:
    """How many a reading costs beside the transaction that names the tenant (BEGIN, SET, COMMIT).
    What else goes on counts too, now and then: the least of a few times.
    """
    counters = rest.running.control.pool.counters
    cost = []
    for _ in range(5):
        before = counters.statements
        await read()
        cost.append(counters.statements - before)
    return min(cost) - 3


async def run(rest: Rest, sql: str, *args: Any) -> None:
    """One statement, past row-level security."""
    connection = await asyncpg.connect(rest.database.admin_dsn)
    try:
        await connection.execute(sql, *args)
    finally:
        await connection.close()


def opening(rest: Rest, **more: Any) -> wire.EscalationOpened:
    """A call that waits: 4 hours to decide, 15 minutes to use."""
    now_ms = rest.clock.now_ns() // 10**6
    told = {
        "id": uuid7(rest.clock.now_ns()),
        "tenant_id": rest.running.tenant.id,
        "agent_id": "0199d0d0-0000-7000-8000-00000000000a",
        "agent_name": "demo-agent",
        "agent_class": "default",
        "requester_id": "",
        "requester_verified": False,
        "server": "git",
        "tool": "git_commit",
        "method": "tools/call",
        "action": "write",
        "category": "vcs",
        "resource": "repo/one",
        "resource_kind": "path",
        "codes": ["policy"],
        "reason": "commits are looked at",
        "policies": ["commits"],
        "features": json.dumps({"depth": 2}).encode(),
        "finding_tags": [],
        "binding": BINDING,
        "policy_revision": "r1",
        "quorum": 1,
        "tier": "low",
        "opened_at_ms": now_ms,
        "decide_by_ms": now_ms + 4 * 3600 * 1000,
        "execute_for_s": 900,
        **more,
    }
    return wire.EscalationOpened(**told)


async def asked(rest: Rest, plane: Plane, **more: Any) -> str:
    """The plane opened one, and control keeps it."""
    told = opening(rest, **more)
    plane.up.put_nowait(wire.OpenRequest(escalation_opened=told))
    kept = await plane.next("escalation_kept")
    assert (told.id, 0) == (kept.id, kept.version)
    return str(told.id)


async def report(
    rest: Rest, plane: Plane, escalation: str, state: str, version: int, *, uses_left: int = 0
) -> None:
    said = wire.EscalationChanged(
        id=escalation,
        tenant_id=rest.running.tenant.id,
        state=state,
        at_ms=rest.clock.now_ns() // 10**6,
        version=version,
        uses_left=uses_left,
    )
    plane.up.put_nowait(wire.OpenRequest(escalation_changed=said))
    kept = await plane.next("escalation_kept")
    assert (escalation, version) == (kept.id, kept.version)


def acknowledge(plane: Plane, decision: Any) -> None:
    plane.up.put_nowait(wire.OpenRequest(ack=wire.Ack(signal_id=decision.signal_id)))


def decided(rest: Rest, decision: Any) -> dict[str, Any]:
    """What a plane reads from a decision, by the trust root alone."""
    trust = json.loads((rest.state / "trust.json").read_bytes())["roles"]["decision"]
    assert 1 == trust["threshold"]
    token = jws.deserialize_compact(
        decision.jws, ECKey.import_key(trust["keys"][0]), algorithms=["ES256"]
    )
    assert (trust["keys"][0]["kid"], "behavry-decision") == (
        token.headers()["kid"],
        token.headers()["typ"],
    )
    said: dict[str, Any] = json.loads(token.payload)
    return said


async def state_of(rest: Rest, escalation: str) -> str:
    return str((await rest.get(f"{ESCALATIONS}/{escalation}")).json["state"])
