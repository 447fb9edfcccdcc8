"""The raw key planted wherever a request can carry it (E19), as by somebody who pastes it into the
wrong field: it is in no answer, no record, no table, no file, no log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.gateway import until
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Answered
from tests.integration.control.people import TENANTS, WHY
from tests.integration.control.plans import ACTIVATE, LICENSE, Plans, beside_entitlements
from tests.promises import promise

_TEXTS = """
SELECT table_schema, table_name FROM information_schema.tables
WHERE table_schema IN ('control', 'entitlements') AND table_type = 'BASE TABLE'
"""
#: The only place where a raw key may be, as it was given.
KEPT = "entitlements.installation_licenses"


@pytest.fixture
async def plans(state: Path, database: Database, clock: ManualClock) -> AsyncIterator[Plans]:
    async with beside_entitlements(state, database, clock) as beside:
        yield beside


async def pasted(plans: Plans, key: str) -> list[Answered]:
    """The key in every place of a request but the right one, and there too."""
    rest, boss = plans.rest, plans.boss.token
    once = {"idempotency-key": str(uuid4())}
    own = f"{TENANTS}/{plans.tenant}"
    headers = (
        "idempotency-key", "if-match", "if-none-match", "x-behavry-reason", "x-request-id",
        "user-agent", "referer", "cookie", "accept", "x-forwarded-for", "traceparent", "origin",
    )  # fmt: skip
    answers = [
        await rest.get(f"{LICENSE}?key={key}"),
        await rest.get(f"{LICENSE}/{key}"),
        await rest.get(f"/{key}"),
        await rest.get(f"/api/v1/agents?page_token={key}&filter={key}"),
        await rest.get(f"{TENANTS}/{key}/features", key=boss, headers=WHY),
        await rest.get(f"{own}/features?page_token={key}", key=boss, headers=WHY),
        await rest.get(LICENSE, key=key),
        await rest.get(LICENSE, headers={"authorization": f"Basic {key}"}, key=None),
        *[
            await rest.post(ACTIVATE, {"key": "none"}, headers=once | {name: key})
            for name in headers
        ],
        *[
            await rest.post(f"{own}/features", {"clear": ["saml_sso"]}, key=boss, headers=told)
            for told in (WHY | {"if-match": key}, {"x-behavry-reason": key})
        ],
    ]
    bodies: tuple[Any, ...] = (
        {"key": [key]}, {key: key}, {"key": key, "replace": key}, {"key": key, "token": key}, [key],
        {"key": {"raw": key}}, key, {"key": f" {key}\n"},
    )  # fmt: skip
    answers += [await rest.post(ACTIVATE, body, headers=_fresh()) for body in bodies]
    for text in (key, f'{{"key": "{key}"', f'"{key}"'):
        answers.append(await rest.call("POST", ACTIVATE, data=text.encode(), headers=_fresh()))
    for body in ({"enable": [key]}, {"ends_at": key}, {key: ["saml_sso"]}):
        answers.append(await rest.post(f"{own}/features", body, key=boss, headers=WHY))
    answers += [
        await rest.put(f"{own}/plan", {"plan": key}, key=boss, headers=WHY),
        await rest.put(f"{own}/plan", {"plan": "trial", "expires_at": key}, key=boss, headers=WHY),
        await rest.post("/api/v1/auth/login", {"username": key, "password": key}, key=None),
        await rest.post("/api/v1/enroll", {"token": key, "name": "x"}, key=None),
        await rest.token(client_id=key, client_secret=key),
    ]
    return answers


def _fresh() -> dict[str, str]:
    return {"idempotency-key": str(uuid4()), "content-type": "application/json"}


async def tables(database: Database) -> dict[str, str]:
    """Every row of both services' tables, as text."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        found = {}
        for schema, table in await connection.fetch(_TEXTS):
            name = f"{schema}.{table}"
            rows = await connection.fetch(f"SELECT t::text FROM {name} t")
            found[name] = "\n".join(row[0] for row in rows)
        # As text, bytes are hexadecimal.
        drafts = await connection.fetch("SELECT draft FROM control.outbox")
        found["control.outbox"] = "\n".join(str(bytes(row["draft"])) for row in drafts)
    finally:
        await connection.close()
    return found


@promise("plans:key-is-nowhere")
async def test_wherever_it_is_pasted_the_key_stays_nowhere(
    plans: Plans, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    good = plans.token(jti="good", plan="enterprise")
    keys = (good, altered(plans.token(jti="bad", plan="enterprise"), at=-9))
    answers = [answer for key in keys for answer in await pasted(plans, key)]
    answers += [await plans.activate(key) for key in keys]
    copy = plans.rest.running.control.settings.entitlements_copy
    await until(copy.exists)  # written beside the answers
    printed = "".join(capfd.readouterr())
    kept = await tables(database)
    said = {
        "answers": "\n".join(f"{one.body.decode()} {one.headers} {one.cookies}" for one in answers),
        "records": str(await plans.rest.records()),
        "log": printed,
        "copy": copy.read_bytes().decode("latin-1"),
        **kept,
    }

    assert len(answers) > 80
    assert good in said.pop(KEPT)  # else nothing of this was looked for in the right way
    hits = [
        (where, part[:12])
        for key in keys
        for part in (key, *key.split(".")[1:], key.split(".")[1][:60], key[-40:])
        for where, text in said.items()
        if part in text or part.encode().hex() in text
    ]
    assert [] == hits
    assert len(kept) > 20
    assert not any(answer.status >= 500 for answer in answers)
