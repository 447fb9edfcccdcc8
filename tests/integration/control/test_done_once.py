"""POSTs that need more than a body: plans beside entitlements, tenants, sign-in settings, second
factors. The same request under the same key has one effect, told once, like every other
(test_every_route.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from services.common.postgres.connection import SingleConnection
from tests.fakes.authenticator import Authenticator
from tests.fakes.clock import ManualClock
from tests.fakes.gateway import until_true
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import joined
from tests.integration.control.factors import MFA, ORIGIN, code
from tests.integration.control.people import TENANTS, WHY
from tests.integration.control.plans import ACTIVATE, Plans, beside_entitlements
from tests.integration.control.test_auth_settings import put
from tests.integration.control.test_problems import check
from tests.promises import promise

#: The keys themselves, and what goes out or ages beside requests.
NOT_COUNTED: Final = {
    "idempotency", "schema_migrations", "bundles", "outbox", "license_terms",
}  # fmt: skip
#: That somebody came is said each time; what they did, once.
_RECORDS: Final = """
SELECT convert_from(draft, 'utf8')::json->>'type' AS type, count(*) AS times FROM control.outbox
WHERE convert_from(draft, 'utf8')::json->>'type' <> 'admin.superadmin.access' GROUP BY 1"""


class Doer:
    """Sends the same once, again, five at once, and something else under the same key."""

    def __init__(self, rest: Rest, connection: SingleConnection) -> None:
        self.rest = rest
        self.connection = connection

    async def effects(self) -> Counter[str]:
        named = await self.connection.fetch(
            "SELECT schemaname || '.' || tablename AS name, tablename FROM pg_tables"
            " WHERE schemaname IN ('control', 'entitlements')"
        )
        found = Counter[str]()
        for row in named:
            if row["tablename"] not in NOT_COUNTED:
                count = f"SELECT count(*) FROM {row['name']}"  # the catalogue's
                found[row["name"]] = await self.connection.fetchval(count)
        for row in await self.connection.fetch(_RECORDS):
            found[row["type"]] = row["times"]
        return found

    async def once(
        self,
        path: str,
        body: Any,
        token: str,
        *secrets: str,
        headers: dict[str, str] | None = None,
        settled: Callable[[], Awaitable[bool]] | None = None,
    ) -> Answered:
        """The first answer. `secrets`: fields of it that are told once; `settled`: whether what
        goes on beside the answer has ended.
        """

        async def send(sent: Any, key: str, at: str = path) -> Answered:
            said = {**(headers or {}), "idempotency-key": key}
            return await self.rest.post(at, sent, key=token, headers=said)

        key, before = str(uuid4()), await self.effects()
        answers = await asyncio.gather(*(send(body, key) for _ in range(5)))
        told = [a for a in answers if a.status < 300 and "idempotency-replayed" not in a.headers]
        for answer in answers:
            if answer.status >= 300:
                check(answer, 409, "idempotency_in_flight")
        if settled is not None:
            await until_true(settled, seconds=60)
        done = await self.effects()
        assert [1, True] == [len(told), done != before], [a.body for a in answers]

        [first], again = told, await send(body, key)
        assert (first.status, "true") == (again.status, again.headers["idempotency-replayed"])
        assert {**first.json, **dict.fromkeys(secrets)} == again.json
        assert all(first.json[name] for name in secrets)
        for other, at in (({**(body or {}), "other": 1}, path), (body, f"{path}?x=1")):
            check(await send(other, key, at), 422, "idempotency_mismatch")
        assert done == await self.effects()
        return first


@asynccontextmanager
async def doing(rest: Rest) -> AsyncIterator[Doer]:
    connection = await asyncpg.connect(rest.database.admin_dsn)
    try:
        yield Doer(rest, connection)
    finally:
        await connection.close()


@pytest.fixture
async def plans(state: Path, database: Database, clock: ManualClock) -> AsyncIterator[Plans]:
    async with beside_entitlements(state, database, clock) as beside:
        yield beside


@promise("api:done-once")
async def test_plans_tenants_and_settings_change_once_per_key(plans: Plans) -> None:
    async with doing(plans.rest) as does:
        await _change_plans(plans, does)


async def _change_plans(plans: Plans, does: Doer) -> None:
    rest, boss = plans.rest, plans.boss
    mine = f"{TENANTS}/{plans.tenant}"
    licence = plans.token(plan="enterprise", limits={"tenants": 5})
    await does.once(ACTIVATE, {"key": licence}, boss.token)
    wanted = {"disable": ["context_gate"]}
    await does.once(f"{mine}/features", wanted, boss.token, headers=WHY)

    async def known() -> bool:
        found = "SELECT EXISTS (SELECT FROM entitlements.tenants WHERE slug = 'other')"
        return bool(await does.connection.fetchval(found))

    new = {"slug": "other", "name": "Other"}
    other = await does.once(TENANTS, new, boss.token, settled=known)
    there = f"{TENANTS}/{other.json['id']}"
    for verb in ("suspend", "resume"):
        await does.once(f"{there}:{verb}", None, boss.token, headers=WHY)
    anna = await joined(rest, "anna", "admin")
    assert 200 == (await put(rest, anna)).status
    await does.once("/api/v1/settings/auth:test", {}, anna.token, "uri")
    tagged = WHY | {"if-match": '"1"'}
    await does.once(f"{mine}/auth:approve", None, boss.token, headers=tagged)

    history = (await rest.get(f"{mine}/features", key=boss.token, headers=WHY)).json["history"]
    assert ["context_gate"] == [one["feature"] for one in history["items"]]


@promise("api:done-once")
async def test_a_second_factor_is_added_once_per_key_and_its_secrets_told_once(
    rest: Rest,
) -> None:
    async with doing(rest) as does:
        await _add_factors(rest, does)


async def _add_factors(rest: Rest, does: Doer) -> None:
    anna = await joined(rest, "anna")
    begun = await does.once(f"{MFA}/totp", {"name": "phone"}, anna.token, "secret", "uri")
    said = {"code": code(rest, begun.json["secret"])}
    await does.once(f"{MFA}/totp/{begun.json['id']}:confirm", said, anna.token, "recovery_codes")
    asked = await does.once(f"{MFA}/passkeys:begin", None, anna.token, "token")
    made = Authenticator(origin=ORIGIN).create(asked.json["options"])
    passkey = {"name": "key", "token": asked.json["token"], "credential": made}
    await does.once(f"{MFA}/passkeys", passkey, anna.token)
    codes = await does.once(f"{MFA}/recovery-codes", None, anna.token, "recovery_codes")
    listed = (await rest.get(MFA, key=anna.token)).json

    assert ["passkey", "totp"] == sorted(one["kind"] for one in listed["items"])
    assert len(codes.json["recovery_codes"]) == listed["recovery_codes_left"]
    kept = await does.connection.fetch(
        "SELECT answer FROM control.idempotency WHERE answer IS NOT NULL"
    )
    stored = b"".join(bytes(row["answer"]) for row in kept).decode()
    for secret in (begun.json["secret"], asked.json["token"], *codes.json["recovery_codes"]):
        assert secret not in stored
