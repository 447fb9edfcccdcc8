"""The same request twice is done once."""

import asyncio
from typing import Any

from tests.integration.control.conftest import Answered, Rest
from tests.promises import promise

AGENTS = "/api/v1/agents"


async def make(rest: Rest, key: str, body: dict[str, Any], path: str = AGENTS) -> Answered:
    return await rest.post(path, body, headers={"idempotency-key": key})


async def count(rest: Rest) -> int:
    return len((await rest.get(AGENTS)).json["items"])


async def test_a_repetition_is_answered_as_the_first_but_without_its_secret(rest: Rest) -> None:
    first = await make(rest, "k1", {"name": "one"})
    again = await make(rest, "k1", {"name": "one"})

    assert (201, 201, 1) == (first.status, again.status, await count(rest))
    assert first.json | {"client_secret": None} == again.json
    assert "true" == again.headers["idempotency-replayed"]


async def test_another_body_under_the_same_key_is_refused(rest: Rest) -> None:
    await make(rest, "k1", {"name": "one"})
    other = await make(rest, "k1", {"name": "two"})

    assert (422, "idempotency_mismatch") == (other.status, other.json["code"])
    assert 1 == await count(rest)


@promise("api:done-once")
async def test_many_at_once_have_one_effect(rest: Rest) -> None:
    answers = await asyncio.gather(*(make(rest, "k1", {"name": "one"}) for _ in range(8)))

    assert 1 == await count(rest)
    assert {a.status for a in answers} <= {201, 409}
    assert {a.json["code"] for a in answers if a.status == 409} <= {"idempotency_in_flight"}


async def test_a_refusal_gives_the_key_back(rest: Rest) -> None:
    await make(rest, "k0", {"name": "one"})
    taken = await make(rest, "k1", {"name": "one"})
    free = await make(rest, "k1", {"name": "two"})

    assert [409, 201] == [taken.status, free.status]


async def test_a_key_belongs_to_its_principal_and_route(rest: Rest) -> None:
    await rest.add_role("r", "time:read")
    made = await rest.post("/api/v1/api-keys", {"name": "other", "role": "admin"})
    await make(rest, "k1", {"name": "one"})
    other = await rest.post(
        AGENTS, {"name": "two"}, key=made.json["key"], headers={"idempotency-key": "k1"}
    )
    elsewhere = await make(rest, "k1", {"label": "x"}, "/api/v1/enrollment-tokens")

    assert [201, 201] == [other.status, elsewhere.status]


async def test_a_verb_on_another_agent_is_another_request(rest: Rest) -> None:
    one, two = await rest.add_agent("one"), await rest.add_agent("two")
    first = await make(rest, "k1", {}, f"{AGENTS}/{one['id']}:suspend")
    other = await make(rest, "k1", {}, f"{AGENTS}/{two['id']}:suspend")

    assert [200, 422] == [first.status, other.status]


async def test_a_key_is_forgotten_after_a_day(rest: Rest) -> None:
    await make(rest, "k1", {"name": "one"})
    rest.clock.advance(24 * 3600 + 1)

    assert 201 == (await make(rest, "k1", {"name": "two"})).status


async def test_a_key_that_is_none_is_refused(rest: Rest) -> None:
    for key in ("", "x" * 129, "a b"):
        answer = await make(rest, key, {"name": "one"})
        assert (400, "invalid_argument") == (answer.status, answer.json["code"]), key
    assert 0 == await count(rest)
