"""Super-admins past a plan, at random (E13): people, routes, bodies, plans of both tenants, and an
outbox that fails in several ways. As many records as calls that passed; none served without one; no
mode changed by any of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Final
from uuid import uuid4

import asyncpg

from tests.integration.control.conftest import Answered
from tests.integration.control.route_table import RULES
from tests.integration.control.test_order import (
    ADMITTED,
    JSON,
    STATES,
    Ask,
    Everyone,
    Path,
    everyone,
    first_refusals,
)
from tests.promises import promise

__all__ = ["everyone"]

CALLS: Final = 200
GATED: Final = [rule for rule in RULES if rule.feature]
#: What makes the outbox take nothing, and what ends that.
FAILURES: Final = {
    "no right": (
        "REVOKE INSERT ON control.outbox FROM behavry_control",
        "GRANT INSERT ON control.outbox TO behavry_control",
    ),
    "a full disk": (
        "CREATE TRIGGER full_disk BEFORE INSERT ON control.outbox EXECUTE FUNCTION pg_temp_full()",
        "DROP TRIGGER full_disk ON control.outbox",
    ),
    "away": (
        "ALTER TABLE control.outbox RENAME TO outbox_away",
        "ALTER TABLE control.outbox_away RENAME TO outbox",
    ),
}
_FULL: Final = """
CREATE FUNCTION pg_temp_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full';
END $$
"""


@asynccontextmanager
async def failing(connection: asyncpg.Connection, how: str) -> AsyncIterator[None]:
    breaks, mends = FAILURES[how]
    await connection.execute(breaks)
    try:
        yield
    finally:
        await connection.execute(mends)


def random_ask(everyone: Everyone, chance: Random) -> Ask:
    rule = chance.choice(GATED)
    path: Path = chance.choice(["", "own", "other", "other", "gone"])
    crowd = everyone.operators if chance.random() < 0.7 else everyone.people + everyone.visitors
    states = everyone.plans(own=chance.choice(STATES), other=chance.choice(STATES))
    return Ask(
        rule=rule,
        who=chance.choice(crowd),
        path=path,
        keyed=chance.random() < 0.8,
        broken=rule.reads and chance.random() < 0.5,
        states=states,
    )


async def asked(everyone: Everyone, ask: Ask) -> Answered:
    target = ask.target
    for name, tenant in everyone.tenants.items():
        target = target.replace(f"<{name}>", tenant)
    headers = JSON | ask.who.headers | ({"idempotency-key": str(uuid4())} if ask.keyed else {})
    body = (b"{" if ask.broken else b"{}") if ask.rule.method != "GET" else None
    sees = ask.who.operator and ask.rule.of_all_tenants
    return await everyone.door.ask(ask.rule.method, target, headers, body, sees_neighbour=sees)


def due(ask: Ask) -> bool:
    """Whether it goes past the guard, and so must be on record before."""
    passes = first_refusals(ask) <= {"malformed_json"} | ADMITTED
    return passes and ask.who.operator and (ask.bypasses or ask.visits)


@promise("plans:bypass-on-record")
async def test_as_many_records_as_calls_that_passed_whoever_whatever_and_however_it_fails(
    everyone: Everyone,
) -> None:
    chance = Random(20_261_121)
    modes_of = everyone.rest.running.control.features.of
    refused, failed = Counter[str](), Counter[str]()
    await everyone.connection.execute(_FULL)
    for _ in range(CALLS):
        ask = random_ask(everyone, chance)
        before = [modes_of(tenant) for tenant in everyone.tenants.values()]
        if chance.random() < 0.7:
            await everyone.check(ask)
        else:
            how = chance.choice([*FAILURES])
            async with failing(everyone.connection, how):
                answer = await asked(everyone, ask)
            if due(ask):
                said = (answer.status, answer.json["code"])
                assert (503, "dependency_unavailable") == said, f"{ask}: {said}, {how}"
                failed[how] += 1
            else:
                refused[str(answer.status)] += 1
        assert before == [modes_of(tenant) for tenant in everyone.tenants.values()]

    assert "" == "\n".join(everyone.wrong[:20])
    await everyone.check_records()
    assert everyone.bypasses.total() > CALLS / 20
    assert set(failed) == set(FAILURES)
    assert failed.total() > CALLS / 25
