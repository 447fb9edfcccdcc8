"""A request that works for each POST of the API, and rows for each of its lists: what the tests
over every route send. An operation that is in no table here fails those tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.common.ids import uuid7
from services.common.postgres.connection import SingleConnection
from tests.fakes.asking import ask_until
from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import ESCALATIONS, Somebody, asked
from tests.integration.control.people import INVITES, USERS
from tests.integration.control.planes import Plane
from tests.integration.control.test_notifications import PATH as NOTIFICATIONS
from tests.integration.control.test_notifications import webhook
from tests.integration.control.test_policies import PATH as POLICIES
from tests.integration.control.test_policies import source

AGENTS: Final = "/api/v1/agents"
KILL: Final = "/api/v1/kill-switch"
WHY: Final = {"reason": "because a test says so"}
HASH: Final = "sha256:" + "1" * 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One POST. `body` None: it has none. `secrets`: fields of the answer that are told once."""

    path: str
    body: dict[str, Any] | None = None
    secrets: tuple[str, ...] = ()


@dataclass(kw_only=True)
class World:
    """A running control, a person with every right, a plane on the link, a receiver of notices."""

    rest: Rest
    person: Somebody
    plane: Plane
    receiver: str
    #: To the database, past row-level security.
    admin: SingleConnection
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def name(self, prefix: str = "n") -> str:
        return f"{prefix}{next(self._numbers)}"

    async def did(self, path: str, body: Any = None, *, person: bool = False) -> dict[str, Any]:
        """A POST that a sample stands on."""
        answer = await self.rest.post(path, body, key=self.person.token if person else "")
        assert answer.status < 300, (path, answer.body)
        made: dict[str, Any] = answer.json
        return made

    async def agent(self) -> str:
        return str((await self.rest.add_agent(self.name("agent-")))["id"])

    async def policy(self, name: str = "") -> dict[str, Any]:
        return await self.did(POLICIES, self.new_policy(name))

    def new_policy(self, name: str = "") -> dict[str, Any]:
        key = name or self.name("p")
        tests = [{"name": "rm", "input": {"request": {"tool": "rm"}}, "expect": "deny"}]
        return {"key": key, "source": source(self.rest, key), "tests": tests}

    async def user(self, name: str = "") -> str:
        """One who never signs in: no password is hashed."""
        made = uuid7(self.rest.clock.now_ns())
        await self.admin.execute(
            "INSERT INTO control.users (id, tenant_id, username, role, status, created_at)"
            " VALUES ($1, $2, $3, 'viewer', 'active', now())",
            made, self.rest.running.tenant.id, name or self.name("user-"),
        )  # fmt: skip
        return made

    async def kill_switch(self) -> str:
        stop = {"scope": "agent", "subject": await self.agent(), **WHY}
        return str((await self.did(KILL, stop))["id"])

    async def escalation(self) -> str:
        return await asked(self.rest, self.plane)

    async def approved(self) -> str:
        escalation = await self.escalation()
        answer = await self.person.act(escalation, "approve")
        assert 200 == answer.status, answer.body
        return escalation

    def new_destination(self, name: str = "") -> dict[str, Any]:
        return {"name": name or self.name("hook-"), **webhook(self.rest, self.receiver)}

    async def destination(self, name: str = "") -> str:
        return str((await self.did(NOTIFICATIONS, self.new_destination(name)))["id"])

    async def delivery(self) -> str:
        """Of a notice that has arrived."""
        path = f"{NOTIFICATIONS}/{await self.destination()}/deliveries"
        await self.escalation()

        async def arrived() -> list[str]:
            items = (await self.rest.get(path)).json["items"]
            return [str(item["id"]) for item in items if item["state"] == "delivered"]

        return (await ask_until(arrived, bool))[0]

    def until(self) -> str:
        now = datetime.fromtimestamp(self.rest.clock.now_ns() / 1e9, UTC)
        return (now + timedelta(hours=1)).isoformat()


Make = Callable[[World], Awaitable[Sample]]


async def _of_agent(world: World, verb: str, body: Any = None, *secrets: str) -> Sample:
    return Sample(path=f"{AGENTS}/{await world.agent()}:{verb}", body=body, secrets=secrets)


async def _resume(world: World) -> Sample:
    agent = await world.agent()
    await world.did(f"{AGENTS}/{agent}:suspend")
    return Sample(path=f"{AGENTS}/{agent}:resume")


async def _unrestrict(world: World) -> Sample:
    agent = await world.agent()
    held = {"profile": "read_only", "until": world.until(), **WHY}
    await world.did(f"{AGENTS}/{agent}:restrict", held)
    return Sample(path=f"{AGENTS}/{agent}:unrestrict", body=WHY)


async def _throw(world: World) -> Sample:
    return Sample(path=KILL, body={"scope": "agent", "subject": await world.agent(), **WHY})


async def _of_policy(world: World, verb: str, body: Any = None) -> Sample:
    return Sample(path=f"{POLICIES}/{(await world.policy())['id']}:{verb}", body=body)


async def _classify(world: World) -> Sample:
    server = world.name("server-")
    await world.rest.add_server(server)
    items = [{"tool": "now", "action": "read", "schema_hash": HASH}]
    return Sample(path=f"/api/v1/servers/{server}/tools:classify", body={"items": items})


async def _made(path: str, body: dict[str, Any] | None, *secrets: str) -> Sample:
    return Sample(path=path, body=body, secrets=secrets)


def _server(world: World) -> dict[str, Any]:
    return {"slug": world.name("server-"), "transport": "stdio", "stdio": "time"}


async def _of_destination(world: World, verb: str) -> Sample:
    return Sample(path=f"{NOTIFICATIONS}/{await world.destination()}:{verb}")


async def _redeliver(world: World) -> Sample:
    return Sample(path=f"{NOTIFICATIONS}/deliveries/{await world.delivery()}:redeliver")


async def _of_escalation(which: Awaitable[str], verb: str) -> Sample:
    return Sample(path=f"{ESCALATIONS}/{await which}:{verb}", body=WHY)


async def _release(world: World) -> Sample:
    return Sample(path=f"{KILL}/{await world.kill_switch()}:release", body=WHY)


async def _of_user(world: World, verb: str) -> Sample:
    return Sample(path=f"{USERS}/{await world.user()}:{verb}")


async def _reset_password(world: World) -> Sample:
    return Sample(path=f"{USERS}/{await world.user()}:reset-password", secrets=("token", "link"))


async def _rotate_key(world: World) -> Sample:
    made = await world.did("/api/v1/api-keys", {"name": world.name(), "role": "viewer"})
    return Sample(path=f"/api/v1/api-keys/{made['id']}:rotate", body={}, secrets=("key",))


def _invite(name: str) -> dict[str, Any]:
    return {"email": f"{name}@example.org", "role": "viewer"}


async def _add_invite(world: World, name: str) -> None:
    answer = await world.rest.post(INVITES, _invite(name), headers={"idempotency-key": name})
    assert 201 == answer.status, answer.body


#: By operation, for whoever may do everything.
SAMPLES: Final[dict[str, Make]] = {
    "create_api_key": lambda w: _made(
        "/api/v1/api-keys", {"name": w.name(), "role": "viewer"}, "key"
    ),
    "deactivate_user": lambda w: _of_user(w, "deactivate"),
    "reactivate_user": lambda w: _of_user(w, "reactivate"),
    "create_invite": lambda w: _made(INVITES, _invite(w.name()), "token", "link"),
    "reset_user_password": _reset_password,
    "end_my_other_sessions": lambda w: _made("/api/v1/me/sessions:end-others", None),
    "create_tenant": lambda w: _made("/api/v1/tenants", {"slug": w.name("tenant-"), "name": "T"}),
    "begin_step_up": lambda w: _made("/api/v1/auth/step-up:begin", None, "token"),
    "begin_passkey": lambda w: _made("/api/v1/me/mfa/passkeys:begin", None, "token"),
    "rotate_api_key": _rotate_key,
    "create_enrollment_token": lambda w: _made(
        "/api/v1/enrollment-tokens", {"label": w.name()}, "token"
    ),
    "create_agent": lambda w: _made(AGENTS, {"name": w.name()}, "client_secret"),
    "suspend_agent": lambda w: _of_agent(w, "suspend"),
    "resume_agent": _resume,
    "revoke_agent": lambda w: _of_agent(w, "revoke"),
    "rotate_agent_secret": lambda w: _of_agent(w, "rotate", None, "client_secret"),
    "restrict_agent": lambda w: _of_agent(
        w, "restrict", {"profile": "read_only", "until": w.until(), **WHY}
    ),
    "unrestrict_agent": _unrestrict,
    "throw_kill_switch": _throw,
    "release_kill_switch": _release,
    "create_notification_destination": lambda w: _made(NOTIFICATIONS, w.new_destination()),
    "test_notification_destination": lambda w: _of_destination(w, "test"),
    "redeliver_notification": _redeliver,
    "approve_escalation": lambda w: _of_escalation(w.escalation(), "approve"),
    "deny_escalation": lambda w: _of_escalation(w.escalation(), "deny"),
    "revoke_escalation": lambda w: _of_escalation(w.approved(), "revoke"),
    "cancel_escalation": lambda w: _of_escalation(w.escalation(), "cancel"),
    "classify_tools": _classify,
    "create_server": lambda w: _made("/api/v1/servers", _server(w)),
    "create_policy": lambda w: _made(POLICIES, w.new_policy()),
    "check_new_policy": lambda w: _made(f"{POLICIES}:check", w.new_policy()),
    "enforce_policy": lambda w: _of_policy(w, "enforce"),
    "shadow_policy": lambda w: _of_policy(w, "shadow"),
    "retire_policy": lambda w: _of_policy(w, "retire"),
    "roll_policy_back": lambda w: _of_policy(w, "rollback", {"version": 1}),
}

#: Why an operation has no sample.
WITHOUT_SAMPLE: Final = {
    "login": "nobody is signed in whose key it could be; each sign-in is a session of its own",
    "backchannel_logout": "by a provider's token, which is used once (test_oidc.py)",
    "accept_invite": "as login; the invite's token itself is used once (test_people.py)",
    "forget_password": "as login; no answer says what becomes of it (test_passwords.py)",
    "reset_password": "as login; the link's token itself is used once (test_passwords.py)",
    "change_my_password": "the old password is good once (test_passwords.py)",
    "give_second_factor": "as login; a challenge is answered once (test_second_factors.py)",
    "begin_totp": "needs more than a body (test_done_once.py)",
    "confirm_totp": "as begin_totp",
    "add_passkey": "as begin_totp",
    "renew_recovery_codes": "as begin_totp",
    "approve_auth_settings": "as suspend_tenant",
    "begin_device_login": "as token",
    "end_device_login": "as token",
    "try_auth_settings": "needs a proposal (test_done_once.py)",
    "suspend_tenant": "each of a super-admin's requests leaves a record (test_done_once.py)",
    "resume_tenant": "as suspend_tenant",
    "token": "as login; answers are OAuth's, and each token is one of its own",
    "enroll": "the enrolment token itself is used once (test_agents.py)",
    "step_up": "ends the session that asked; below, by itself",
    "logout": "ends the session that asked; below, by itself",
    "activate_license": "needs entitlements beside control (test_done_once.py)",
    "change_tenant_features": "as activate_license",
    "verify_audit": "needs audit beside control (test_neighbours.py)",
}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A list, and how it gets one more row. `path` may need something made first."""

    path: Callable[[World], Awaitable[str]]
    add: Callable[[World, str], Awaitable[Any]]
    key: str = "id"


async def _list_of_tools(world: World) -> str:
    await world.rest.add_server("shelf")
    return "/api/v1/servers/shelf/tools"


async def _add_tool(world: World, name: str) -> None:
    wanted = {"action": "read", "schema_hash": HASH}
    answer = await world.rest.put(f"/api/v1/servers/shelf/tools/{name}", wanted)
    assert 200 == answer.status, answer.body


async def _list_of_deliveries(world: World) -> str:
    return f"{NOTIFICATIONS}/{await world.destination('0-told')}/deliveries"


def _at(path: str) -> Callable[[World], Awaitable[str]]:
    async def known(_: World) -> str:
        return path

    return known


LISTS: Final[dict[str, Listed]] = {
    "list_api_keys": Listed(
        path=_at("/api/v1/api-keys"),
        add=lambda w, name: w.did("/api/v1/api-keys", {"name": name, "role": "viewer"}),
    ),
    "list_users": Listed(path=_at(USERS), add=lambda w, name: w.user(name)),
    "list_invites": Listed(path=_at(INVITES), add=_add_invite),
    "list_agents": Listed(path=_at(AGENTS), add=lambda w, name: w.rest.add_agent(name)),
    "list_kill_switches": Listed(path=_at(KILL), add=lambda w, _: w.kill_switch()),
    "list_notification_destinations": Listed(
        path=_at(NOTIFICATIONS), add=lambda w, name: w.destination(name)
    ),
    "list_notification_deliveries": Listed(
        path=_list_of_deliveries, add=lambda w, _: w.escalation()
    ),
    "list_escalations": Listed(path=_at(ESCALATIONS), add=lambda w, _: w.escalation()),
    "list_roles": Listed(
        path=_at("/api/v1/roles"), key="name", add=lambda w, name: w.rest.add_role(name)
    ),
    "list_tools": Listed(path=_list_of_tools, key="name", add=_add_tool),
    "list_servers": Listed(
        path=_at("/api/v1/servers"), add=lambda w, name: w.rest.add_server(name)
    ),
    "list_policies": Listed(
        path=_at(POLICIES), add=lambda w, name: w.policy(name.replace("-", "_"))
    ),
}

#: Why a list is not walked here.
NOT_WALKED: Final = {
    "list_tenants": "super-admins alone may (test_super_admins.py)",
    "get_tenant_features": "entitlements' rows (test_plans.py)",
    "list_traces": "audit's rows and audit's pages (integration/audit/test_reader.py)",
}
