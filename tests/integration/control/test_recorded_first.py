"""Whatever changes something is on record first: with the books closed, no route of the API changes
anything; with them open, each change has its one record, in its own transaction.

The routes come from route_table.py; one that is in no table here fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from tests.fakes.authenticator import Authenticator
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import Somebody, joined
from tests.integration.control.factors import (
    LOGIN,
    MFA,
    ORIGIN,
    SECOND,
    STEP_UP,
    code,
    first_half,
    with_totp,
)
from tests.integration.control.people import INVITES, TENANTS, USERS, entitle, invited, operator
from tests.integration.control.people import WHY as WHY_IN
from tests.integration.control.planes import linked
from tests.integration.control.receivers import http_receiver
from tests.integration.control.route_table import RULES
from tests.integration.control.samples import AGENTS, HASH, SAMPLES, World
from tests.integration.control.test_auth_settings import OIDC
from tests.integration.control.test_auth_settings import PATH as AUTH
from tests.integration.control.test_auth_settings import put as propose
from tests.integration.control.test_notifications import PATH as NOTIFICATIONS
from tests.integration.control.test_policies import PATH as POLICIES
from tests.integration.control.test_policies import source
from tests.promises import promise

pytestmark = pytest.mark.needs_regorus

#: Keys of requests, and what is built or sent beside them.
BESIDE: Final = {
    "idempotency", "schema_migrations", "bundles", "outbox", "notification_deliveries",
    "license_terms",
}  # fmt: skip
#: When somebody was last seen, and how a destination is: of no request.
PASSING: Final = ["seen_at", "failing_since", "last_error", "last_delivered_at"]
#: What waits for an answer is no change yet: the answer is one.
ASKED: Final = {"begin_step_up", "begin_passkey", "begin_totp"}
#: Changes nothing that lasts.
NOTHING: Final = {"check_new_policy", "test_notification_destination"}
#: A proof that was tried is used up, whatever comes of it; what it opens is not opened.
SPENT: Final = {"POST /api/v1/auth/second-factor": {"user_factors", "sign_in_challenges"}}
#: More than one thing changes.
SEVERAL: Final = {
    "POST /api/v1/invites:accept": ["admin.invite.accepted", "admin.user.created"],
    "POST /api/v1/me/password": ["admin.session.ended", "admin.user.password_changed"],
}
#: Why a route is not walked here.
ELSEWHERE: Final = {
    "POST /api/v1/license/activate": "entitlements' change and record (test_plans.py)",
    "POST /api/v1/tenants/{tenant_id}/features": "as license/activate",
    "PUT /api/v1/tenants/{tenant_id}/plan": "as license/activate",
    "POST /api/v1/auth/token": "an agent's session; each call in it is on record (test_tokens.py)",
    "POST /api/v1/auth/device/authorize": "nobody's yet; asks alone",
    "POST /api/v1/auth/device/token": "after a person's answer (test_device.py)",
    "POST /api/v1/audit/verify": "audit's work; nothing changes (test_neighbours.py)",
    "POST /api/v1/auth/password:forgot": "changes nothing before its answer (test_passwords.py)",
    "POST /api/v1/auth/backchannel-logout": "by a provider's token (test_oidc.py)",
    "POST /api/v1/settings/auth:test": "begins at a provider (test_oidc_trials.py)",
    "POST /api/v1/settings/notifications/deliveries/{delivery_id}:redeliver": "sends, and is "
    "counted with what is sent (test_notifications.py)",
}


@dataclass(frozen=True, kw_only=True)
class Act:
    """A request that changes something. `key`: as of Rest."""

    method: str = "POST"
    path: str
    body: Any = None
    key: str | None = ""
    headers: dict[str, str] = field(default_factory=dict)


Make = Callable[[World], Awaitable[Act]]


async def _person(world: World, role: str = "analyst") -> Somebody:
    return await joined(world.rest, world.name("person-"), role)


async def _of(path: str, method: str, body: Any = None, **more: Any) -> Act:
    return Act(method=method, path=path, body=body, **more)


async def _user(world: World, method: str, body: Any = None) -> Act:
    return Act(method=method, path=f"{USERS}/{await world.user()}", body=body)


async def _invite(world: World) -> dict[str, Any]:
    made: dict[str, Any] = (await invited(world.rest, f"{world.name()}@example.org")).json
    return made


async def _accept(world: World) -> Act:
    said = {"token": (await _invite(world))["token"], "password": "twelve letters"}
    return Act(path=f"{INVITES}:accept", body=said, key=None)


async def _revoke_invite(world: World) -> Act:
    return Act(method="DELETE", path=f"{INVITES}/{(await _invite(world))['id']}")


async def _key(world: World) -> Act:
    made = await world.did("/api/v1/api-keys", {"name": world.name(), "role": "viewer"})
    return Act(method="DELETE", path=f"/api/v1/api-keys/{made['id']}")


async def _login(world: World) -> Act:
    who = await _person(world)
    said = {"username": who.name, "password": who.password, "bearer": True}
    return Act(path=LOGIN, body=said, key=None)


async def _second_half(world: World) -> Act:
    who = await _person(world)
    secret, _ = await with_totp(world.rest, who)
    half = await first_half(world.rest, who)
    world.rest.clock.advance(30)
    said = {"token": half["token"], "totp": code(world.rest, secret)}
    return Act(path=SECOND, body=said, key=None)


async def _step_up(world: World) -> Act:
    who = await _person(world)
    return Act(path=STEP_UP, body={"password": who.password}, key=who.token)


async def _logout(world: World) -> Act:
    return Act(path="/api/v1/auth/logout", key=(await _person(world)).token)


async def _change_password(world: World) -> Act:
    who = await _person(world)
    await joined_again(world, who)
    said = {"old": who.password, "new": "another password"}
    return Act(path="/api/v1/me/password", body=said, key=who.token)


async def joined_again(world: World, who: Somebody) -> None:
    """In another session."""
    said = {"username": who.name, "password": who.password, "bearer": True}
    assert 200 == (await world.rest.post(LOGIN, said, key=None)).status


async def _reset(world: World) -> Act:
    made = await world.did(f"{USERS}/{await world.user()}:reset-password", person=True)
    said = {"token": made["token"], "password": "twelve letters"}
    return Act(path="/api/v1/auth/password:reset", body=said, key=None)


async def _my_session(world: World) -> Act:
    who = await _person(world)
    (mine,) = (await world.rest.get("/api/v1/me/sessions", key=who.token)).json["items"]
    return Act(method="DELETE", path=f"/api/v1/me/sessions/{mine['id']}", key=who.token)


async def _end_others(world: World) -> Act:
    who = await _person(world)
    await joined_again(world, who)
    return Act(path="/api/v1/me/sessions:end-others", key=who.token)


async def _begin_totp(world: World) -> Act:
    return Act(path=f"{MFA}/totp", body={"name": "phone"}, key=(await _person(world)).token)


async def _confirm_totp(world: World) -> Act:
    who = await _person(world)
    begun = await world.rest.post(f"{MFA}/totp", {"name": "phone"}, key=who.token)
    path = f"{MFA}/totp/{begun.json['id']}:confirm"
    return Act(path=path, body={"code": code(world.rest, begun.json["secret"])}, key=who.token)


async def _add_passkey(world: World) -> Act:
    who = await _person(world)
    begun = (await world.rest.post(f"{MFA}/passkeys:begin", key=who.token)).json
    made = Authenticator(origin=ORIGIN).create(begun["options"])
    said = {"name": "key", "token": begun["token"], "credential": made}
    return Act(path=f"{MFA}/passkeys", body=said, key=who.token)


async def _with_factor(world: World) -> tuple[Somebody, str]:
    who = await _person(world)
    await with_totp(world.rest, who)
    (one,) = (await world.rest.get(MFA, key=who.token)).json["items"]
    return who, one["id"]


async def _renew_codes(world: World) -> Act:
    who, _ = await _with_factor(world)
    return Act(path=f"{MFA}/recovery-codes", key=who.token)


async def _remove_factor(world: World) -> Act:
    who, factor = await _with_factor(world)
    return Act(method="DELETE", path=f"{MFA}/{factor}", key=who.token)


async def _tenant(world: World, verb: str) -> Act:
    made = await world.did(TENANTS, {"slug": world.name("tenant-"), "name": "T"}, person=True)
    path = f"{TENANTS}/{made['id']}"
    if verb == "resume":
        done = await world.rest.post(f"{path}:suspend", key=world.person.token, headers=WHY_IN)
        assert 200 == done.status, done.body
    return Act(path=f"{path}:{verb}", key=world.person.token, headers=WHY_IN)


async def _propose(world: World) -> Act:
    tag = (await world.rest.get(AUTH)).headers["etag"]
    headers = {"if-match": tag}
    return Act(method="PUT", path=AUTH, body=OIDC, key=world.person.token, headers=headers)


async def _approve_sign_in(world: World) -> Act:
    tag = (await world.rest.get(AUTH)).headers["etag"]
    proposed = await propose(
        world.rest, await _person(world, "admin"), revision=int(tag.strip('"'))
    )
    assert 200 == proposed.status, proposed.body
    path = f"{TENANTS}/{world.rest.running.tenant.id}/auth:approve"
    headers = WHY_IN | {"if-match": proposed.headers["etag"]}
    return Act(path=path, key=world.person.token, headers=headers)


async def _enroll(world: World) -> Act:
    made = await world.did("/api/v1/enrollment-tokens", {"label": world.name()})
    return Act(path="/api/v1/enroll", body={"token": made["token"], "name": world.name()}, key=None)


async def _secret(world: World) -> Act:
    agent = await world.agent()
    await world.did(f"{AGENTS}/{agent}:rotate")
    (secret, *_) = (await world.rest.get(f"{AGENTS}/{agent}")).json["secrets"]
    return Act(method="DELETE", path=f"{AGENTS}/{agent}/secrets/{secret['id']}")


async def _role(world: World) -> Act:
    return Act(
        method="PUT", path=f"/api/v1/roles/{world.name('role-')}", body={"permissions": ["x:read"]}
    )


async def _limits(world: World) -> Act:
    held = await world.rest.get("/api/v1/settings/limits")
    limits = {name: held.json[name] for name in ("rates", "escalations")}
    limits["rates"] = limits["rates"] | {"agent_burst": limits["rates"]["agent_burst"] + 1}
    headers = {"if-match": held.headers["etag"]}
    return Act(method="PUT", path="/api/v1/settings/limits", body=limits, headers=headers)


async def _destination(world: World, method: str, body: Any = None) -> Act:
    path = f"{NOTIFICATIONS}/{await world.destination()}"
    headers = {"if-match": (await world.rest.get(path)).headers["etag"]}
    return Act(method=method, path=path, body=body, headers=headers)


async def _server(world: World, method: str, body: Any = None) -> Act:
    slug = world.name("server-")
    await world.rest.add_server(slug)
    path = f"/api/v1/servers/{slug}"
    headers = {"if-match": (await world.rest.get(path)).headers["etag"]}
    return Act(method=method, path=path, body=body, headers=headers)


async def _tool(world: World) -> Act:
    slug = world.name("server-")
    await world.rest.add_server(slug)
    body = {"action": "read", "schema_hash": HASH}
    return Act(method="PUT", path=f"/api/v1/servers/{slug}/tools/now", body=body)


async def _save_policy(world: World) -> Act:
    made = await world.policy()
    path = f"{POLICIES}/{made['id']}"
    headers = {"if-match": (await world.rest.get(path)).headers["etag"]}
    body = {"source": source(world.rest, made["key"], tool="mv"), "tests": []}
    return Act(method="PUT", path=path, body=body, headers=headers)


#: By route; those of samples.py besides.
ACTS: Final[dict[str, Make]] = {
    f"PATCH {USERS}/{{user_id}}": lambda w: _user(w, "PATCH", {"role": "analyst"}),
    f"DELETE {USERS}/{{user_id}}": lambda w: _user(w, "DELETE"),
    f"POST {INVITES}:accept": _accept,
    f"DELETE {INVITES}/{{invite_id}}": _revoke_invite,
    "DELETE /api/v1/api-keys/{key_id}": _key,
    f"POST {LOGIN}": _login,
    f"POST {SECOND}": _second_half,
    f"POST {STEP_UP}": _step_up,
    "POST /api/v1/auth/logout": _logout,
    "POST /api/v1/me/password": _change_password,
    "POST /api/v1/auth/password:reset": _reset,
    "DELETE /api/v1/me/sessions/{session_id}": _my_session,
    "POST /api/v1/me/sessions:end-others": _end_others,
    f"POST {MFA}/totp": _begin_totp,
    f"POST {MFA}/totp/{{factor_id}}:confirm": _confirm_totp,
    f"POST {MFA}/passkeys": _add_passkey,
    f"POST {MFA}/recovery-codes": _renew_codes,
    f"DELETE {MFA}/{{factor_id}}": _remove_factor,
    f"POST {TENANTS}/{{tenant_id}}:suspend": lambda w: _tenant(w, "suspend"),
    f"POST {TENANTS}/{{tenant_id}}:resume": lambda w: _tenant(w, "resume"),
    f"PUT {AUTH}": _propose,
    f"POST {TENANTS}/{{tenant_id}}/auth:approve": _approve_sign_in,
    "POST /api/v1/enroll": _enroll,
    f"DELETE {AGENTS}/{{agent_id}}/secrets/{{secret_id}}": _secret,
    "PUT /api/v1/roles/{name}": _role,
    "PUT /api/v1/settings/limits": _limits,
    f"PATCH {NOTIFICATIONS}/{{destination_id}}": lambda w: _destination(
        w, "PATCH", {"enabled": False}
    ),
    f"DELETE {NOTIFICATIONS}/{{destination_id}}": lambda w: _destination(w, "DELETE"),
    "PATCH /api/v1/servers/{server}": lambda w: _server(w, "PATCH", {"domain": "clocks"}),
    "DELETE /api/v1/servers/{server}": lambda w: _server(w, "DELETE"),
    "PUT /api/v1/servers/{server}/tools/{tool}": _tool,
    f"PUT {POLICIES}/{{policy_id}}": _save_policy,
}


@pytest.fixture
async def world(rest: Rest) -> AsyncIterator[World]:
    admin = await asyncpg.connect(rest.database.admin_dsn)
    async with http_receiver() as receiver, linked(rest) as plane:
        entitle(rest)
        person = await operator(rest)
        yield World(rest=rest, person=person, plane=plane, receiver=receiver.url, admin=admin)
    await admin.close()


async def operations(rest: Rest) -> dict[str, tuple[str, bool]]:
    """The name of each route's operation, and whether it takes a person."""
    paths = (await rest.get("/openapi.json", key=None)).json["paths"]
    return {
        f"{method.upper()} {path}": (one["operationId"], one.get("x-requires-human", False))
        for path, methods in paths.items()
        for method, one in methods.items()
    }


async def act_of(world: World, route: str, operation: str, *, human: bool) -> Act:
    world.rest.clock.advance(61)
    assert 200 == (await world.person.step_up()).status
    if route in ACTS:
        return await ACTS[route](world)
    sample = await SAMPLES[operation](world)
    return Act(path=sample.path, body=sample.body, key=world.person.token if human else "")


async def send(world: World, act: Act) -> Answered:
    headers = {"idempotency-key": str(uuid4()), **act.headers}
    return await world.rest.call(act.method, act.path, act.body, key=act.key, headers=headers)


async def everything(world: World) -> dict[str, str]:
    """What each table holds, as a digest."""
    named = await world.admin.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'control' ORDER BY 1"
    )
    digests = ", ".join(
        f"(SELECT md5(coalesce(string_agg((to_jsonb(t) - $1::text[])::text, '' ORDER BY"
        f" (to_jsonb(t) - $1::text[])::text), '')) FROM control.{row['tablename']} t)"
        f" AS {row['tablename']}"
        for row in named
        if row["tablename"] not in BESIDE
    )
    return dict(await world.admin.fetchrow(f"SELECT {digests}", PASSING) or {})


@asynccontextmanager
async def closed_books(world: World) -> AsyncIterator[None]:
    """Nothing can be written into the outbox."""
    await world.admin.execute("REVOKE INSERT ON control.outbox FROM behavry_control")
    try:
        yield
    finally:
        await world.admin.execute("GRANT INSERT ON control.outbox TO behavry_control")


def test_each_route_that_changes_something_is_walked_or_has_a_reason() -> None:
    walked = {rule.key for rule in RULES if rule.method != "GET" and "/api/v1/" in rule.path}

    assert set(ACTS) <= walked
    assert set() == set(ACTS) & set(ELSEWHERE)


@promise("audit:recorded-before-done")
async def test_nothing_changes_that_is_not_on_record_first(world: World) -> None:
    wrong, walked = list[str](), Counter[str]()
    known = await operations(world.rest)
    for rule in RULES:
        operation, human = known.get(rule.key, ("", False))
        if rule.method == "GET" or not operation or rule.key in ELSEWHERE:
            continue
        if rule.key not in ACTS and operation not in SAMPLES:
            wrong.append(f"{rule.key}: in no table")
            continue
        act = await act_of(world, rule.key, operation, human=human)
        before = await everything(world)
        async with closed_books(world):
            refused = await send(world, act)
            after = await everything(world)
        changed = {name for name in after if after[name] != before[name]}
        if operation in ASKED | NOTHING:
            walked["asks"] += 1
        elif refused.status < 500 or changed - SPENT.get(rule.key, set()):
            wrong.append(f"{rule.key}: {refused.status} {changed} with closed books")
            continue

        if operation not in ASKED | NOTHING:
            act = await act_of(world, rule.key, operation, human=human)
            before = await everything(world)
            done = await send(world, act)
            told = [
                record["type"]
                for record in await world.rest.records()
                if record.get("request_id") == done.headers["x-request-id"]
                and record["type"] != "admin.superadmin.access"
            ]
            if done.status >= 300 or before == await everything(world):
                wrong.append(f"{rule.key}: {done.status}, nothing changed: {done.body[:200]!r}")
            elif sorted(told) != SEVERAL.get(rule.key, told[:1]) or not told:
                wrong.append(f"{rule.key}: {told}")
            walked["changes"] += 1

    assert "" == "\n".join(wrong)
    assert walked["changes"] >= 60
