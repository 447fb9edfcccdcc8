"""Requests that nobody means, made from the description itself: each field of each body wrong in
every way that its type has, and words that must not come back in paths, queries and headers. What
is refused is refused by a problem document that holds none of it (control.md 2.1).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import orjson
import pytest

from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.door import Door
from tests.integration.control.people import entitle
from tests.integration.control.principals import Registry, Who
from tests.integration.control.route_table import RULES, Rule
from tests.integration.control.test_order import FORMS
from tests.integration.control.test_problems import GONE, JSON, PLANTED, check
from tests.promises import promise

#: Wrong for most types; where one fits, it is no refusal that has to be looked at.
WRONG: Final[tuple[Any, ...]] = (
    PLANTED, f"{PLANTED}é" * 300, f"https://{PLANTED}.example/?{PLANTED}#'\"\n<b>",
    {PLANTED: PLANTED}, [{PLANTED: [PLANTED]}], [PLANTED] * 300, None, -1, 10**30, "", [],
)  # fmt: skip
#: What a path's place, a query or a header may hold; not all of it is one.
ODD: Final = (PLANTED, f"{PLANTED} é", f"'{PLANTED}--", f"../{PLANTED}", PLANTED * 400)
DEPTH: Final = 4


@pytest.fixture
async def anna(rest: Rest) -> AsyncIterator[Who]:
    """Somebody who may do everything, and says why."""
    entitle(rest)
    connection = await asyncpg.connect(rest.database.admin_dsn)
    made = Registry(connection=connection, rest=rest, tenants={"own": rest.running.tenant.id})
    yield (await made.person("anna", "admin", operator=True)).with_reason()
    await connection.close()


class Description:
    """The published one: a body that might do, and what is wrong with it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def body_of(self, rule: Rule) -> dict[str, Any]:
        """The schema of its body; empty: it has none."""
        one = self._document["paths"].get(rule.path, {}).get(rule.method.lower(), {})
        content = one.get("requestBody", {}).get("content", {})
        return dict(content.get("application/json", {}).get("schema", {}))

    def example(self, schema: dict[str, Any], depth: int = 0) -> Any:
        schema = self._resolved(schema)
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        match schema.get("type"):
            case "object":
                named = schema.get("properties", {})
                return {
                    name: self.example(it, depth + 1) for name, it in named.items() if depth < DEPTH
                }
            case "array":
                return [self.example(schema.get("items", {}), depth + 1)]
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return True
            case _:
                formats = {"uuid": GONE, "date-time": "2030-01-01T00:00:00Z"}
                return formats.get(schema.get("format", ""), "x" * schema.get("minLength", 3))

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The first form that is not null."""
        while True:
            forms = schema.get("anyOf") or schema.get("oneOf")
            if "$ref" in schema:
                name = schema["$ref"].rpartition("/")[2]
                schema = self._document["components"]["schemas"][name]
            elif forms:
                schema = next(form for form in forms if form.get("type") != "null")
            else:
                return schema


def bent(value: Any) -> Iterator[Any]:
    """The value with one place of it wrong, every place in every way."""
    yield from WRONG
    match value:
        case dict():
            for name, inner in value.items():
                yield {other: it for other, it in value.items() if other != name}
                yield from ({**value, name: wrong} for wrong in bent(inner))
            yield {**value, PLANTED: PLANTED}
        case [first, *_]:
            yield from ([wrong] for wrong in bent(first))


@promise("api:refusals-are-problems")
async def test_every_field_of_every_body_wrong_in_every_way_is_refused_without_an_echo(
    rest: Rest, anna: Who
) -> None:
    description = Description((await rest.get("/openapi.json", key=None)).json)
    door, refused = Door(rest), dict[str, int]()
    for rule in RULES:
        schema = description.body_of(rule)
        if not schema:
            continue
        refused[rule.key] = 0
        target = rule.path.replace("{tenant_id}", rest.running.tenant.id)
        target = re.sub(r"\{\w+_id\}", GONE, target)
        target = re.sub(r"\{\w+\}", "gone", target)
        for body in bent(description.example(schema)):
            headers = JSON | anna.headers | {"idempotency-key": str(uuid4()), "if-match": "*"}
            answer = await door.ask(rule.method, target, headers, orjson.dumps(_sendable(body)))
            if answer.status >= 400:
                assert answer.status != 500, (rule.key, body, answer.body)
                check(answer)
                refused[rule.key] += 1

    assert len(refused) >= 40
    assert 10 <= min(refused.values()), refused
    assert 2_000 < sum(refused.values())


def _sendable(body: Any) -> Any:
    """What the fastest writer of JSON cannot write."""
    match body:
        case int() if not isinstance(body, bool) and body > 2**63:
            return float(body)
        case dict():
            return {name: _sendable(value) for name, value in body.items()}
        case list():
            return [_sendable(value) for value in body]
        case _:
            return body


@promise("api:refusals-are-problems")
async def test_odd_words_in_paths_queries_and_headers_come_back_from_nowhere(
    rest: Rest, anna: Who
) -> None:
    door, asked = Door(rest), 0
    for rule in RULES:
        for odd in ODD:
            for target, headers in _oddly(rule, odd, rest.running.tenant.id):
                for who in (anna.headers, {}):
                    sent = JSON | {"idempotency-key": str(uuid4())} | who | headers
                    answer = await door.ask(
                        rule.method, target, sent, b"{}", sees_neighbour=rule.of_all_tenants
                    )
                    _no_echo(rule, answer)
                    asked += 1

    assert asked > 2_000


def _oddly(rule: Rule, odd: str, tenant: str) -> Iterator[tuple[str, dict[str, str]]]:
    """In each place, one at a time."""
    whole = rule.path.replace("{tenant_id}", tenant)
    if "{" in whole:
        yield re.sub(r"\{\w+\}", quote(odd, safe=""), whole), {}
    plain = re.sub(r"\{\w+\}", GONE, whole)
    if rule.ends:
        return  # it would
    for name in ("filter", "page_token", "state", PLANTED):
        yield f"{plain}?{name}={quote(odd, safe='')}", {}
    headers = ("x-behavry-reason", "if-match", "idempotency-key", "traceparent", "content-type")
    yield plain, dict.fromkeys(headers, odd)
    yield plain, {"authorization": f"Bearer {odd}", "cookie": f"behavry_local={odd}"}


def _no_echo(rule: Rule, answer: Answered) -> None:
    assert answer.status != 500, (rule.key, answer.body)
    told = answer.body.decode() + str(answer.headers)
    assert PLANTED not in told, rule.key
    is_page = "html" in answer.headers.get("content-type", "")
    if answer.status >= 400 and not is_page and rule.path.startswith("/api/v1/"):
        if rule.path not in FORMS:
            check(answer)
        assert answer.headers["x-request-id"]
