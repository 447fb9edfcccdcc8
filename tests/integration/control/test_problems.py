"""Every refusal of every route is a problem document, in the right order, and tells nobody's words
back. The routes come from the published description, so a new one is covered the day it appears.
"""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from uuid import uuid4

import aiohttp
import pytest

from services.common.postgres.connection import Connection
from services.control.problems import CATALOGUE
from services.control.store import keys
from tests.altered import altered
from tests.fakes.asking import ask_until
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import signed_in
from tests.integration.control.people import entitle, operator
from tests.promises import promise

PLANTED: Final = "planted-7f3a91"
#: Their refusals have another form: OAuth's, or none.
OWN_FORM: Final = {
    "/api/v1/auth/token", "/api/v1/auth/backchannel-logout", "/healthz", "/readyz",
    "/api/v1/auth/device/authorize", "/api/v1/auth/device/token",
}  # fmt: skip
GONE: Final = "00000000-0000-7000-8000-000000000000"
JSON: Final = {"content-type": "application/json"}
#: Super-admins say why, wherever they go.
WHY: Final = {"x-behavry-reason": "a test goes everywhere"}


@pytest.fixture(autouse=True)
def entitled(rest: Rest) -> None:
    """A tenant whose plan has what routes ask for."""
    entitle(rest)


class Operation:
    def __init__(self, path: str, method: str, described: dict[str, Any], tenant: str) -> None:
        self.path = path
        self.tenant = tenant
        self.method = method.upper()
        self.role = described["x-required-role"]
        self.reads_body = "requestBody" in described
        self.human = described.get("x-requires-human", False)
        self.keyed = any(p["name"] == "Idempotency-Key" for p in described.get("parameters", ()))
        self.name = described["operationId"]

    def headers(self) -> dict[str, str]:
        """A fresh key where one is mandatory."""
        return JSON | WHY | ({"idempotency-key": str(uuid4())} if self.keyed else {})

    def url(self, filler: str = GONE, *, tenant: str = "") -> str:
        """In the tenant itself, unless told."""
        named = self.path.replace("{tenant_id}", tenant or self.tenant)
        return re.sub(r"\{\w+\}", filler, named)


async def operations(rest: Rest) -> list[Operation]:
    description = (await rest.get("/openapi.json", key=None)).json
    found = [
        Operation(path, method, described, rest.running.tenant.id)
        for path, methods in description["paths"].items()
        for method, described in methods.items()
    ]
    assert len(found) > 30
    return [one for one in found if one.path not in OWN_FORM]


def check(answer: Answered, status: int | None = None, code: str | None = None) -> None:
    """That it is a problem document (RFC 9457), complete, with nothing of ours or theirs in it."""
    assert answer.status >= 400, answer
    assert "application/problem+json" == answer.headers["content-type"]
    problem = answer.json
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= set(problem)
    assert answer.status == problem["status"] == CATALOGUE[problem["code"]][0]
    assert answer.headers["x-request-id"] == problem["request_id"]
    assert f"/errors/{problem['code']}" == problem["type"]
    text = answer.body.decode()
    for word in (PLANTED, "Traceback", "asyncpg", "pydantic", "SELECT ", "control."):
        assert word not in text
    if status is not None:
        assert (status, code) == (answer.status, problem["code"])


async def key_of(rest: Rest, role: str) -> str:
    made = await rest.post("/api/v1/api-keys", {"name": role, "role": role})
    assert 201 == made.status
    return str(made.json["key"])


@promise("api:order-of-refusals")
async def test_without_a_credential_nothing_else_is_said(rest: Rest) -> None:
    for one in await operations(rest):
        if one.role is None:
            continue
        for body in (b"{", b'{"%s": 1}' % PLANTED.encode(), io.BytesIO(b"x" * 2_000_000)):
            data = body if one.reads_body else None
            answer = await rest.call(one.method, one.url(), data=data, headers=JSON, key=None)
            check(answer, 401, "unauthenticated")
            assert "Bearer" == answer.headers["www-authenticate"]


async def test_wrong_credentials_are_all_alike(rest: Rest) -> None:
    wrong = [
        altered(rest.key, -1),  # checksum
        f"bhv_sk_local_{'0' * 16}_{'0' * 64}{'0' * 8}",
        f"bhv_sk_{PLANTED}",
        "eyJhbGciOiJub25lIn0.e30.",
        PLANTED,
    ]
    for text in wrong:
        for header in (f"Bearer {text}", f"Basic {text}", text):
            check(await rest.get("/api/v1/me", headers={"authorization": header}, key=None),
                  401, "unauthenticated")  # fmt: skip


async def test_a_key_with_a_wrong_checksum_costs_no_look_up(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = keys.find
    asked: list[str] = []

    async def note(connection: Connection, id: str) -> keys.KeyRow | None:
        asked.append(id)
        return await find(connection, id)

    monkeypatch.setattr(keys, "find", note)
    wrong = altered(rest.key, -1)
    assert [401, 200] == [(await rest.get("/api/v1/me", key=key)).status for key in (wrong, "")]

    assert 1 == len(asked)


@promise("api:order-of-refusals")
async def test_a_role_too_low_is_refused_before_the_body_is_read(rest: Rest) -> None:
    viewer = await key_of(rest, "viewer")
    author = await key_of(rest, "policy_author")
    levels = {"viewer": 1, "analyst": 2, "policy_author": 3, "admin": 4, "super_admin": 5}
    for one in await operations(rest):
        if one.role is None:
            continue
        for key, level in ((viewer, 1), (author, 3)):
            data = b"{" if one.reads_body else None
            answer = await rest.call(one.method, one.url(), data=data, headers=JSON, key=key)
            if levels[one.role] > level:
                check(answer, 403, "role_required")
                assert one.role == answer.json["required_role"]
            elif one.human:
                check(answer, 403, "human_required")
            else:
                assert 403 != answer.status, (one.name, answer.body)


@promise("api:refusals-are-problems")
async def test_a_body_that_cannot_be_used_is_said_to_be_so(rest: Rest) -> None:
    nul = b'{"name": "a\\u0000b"}'
    bad: list[tuple[bytes, dict[str, str], int]] = [
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"[]", JSON, 422),
        (b'{"%s": "%s"}' % (PLANTED.encode(), PLANTED.encode()), JSON, 422),
        (nul, JSON, 422),
        (b'{"a": ["\\u0000"]}', JSON, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": f"application/{PLANTED}"}, 415),
    ]
    person = (await operator(rest)).token
    for one in await operations(rest):
        if one.reads_body:
            key = person if one.human else ""
            for body, headers, status in bad:
                sent = one.headers() | headers
                answer = await rest.call(one.method, one.url(), data=body, headers=sent, key=key)
                check(answer)
                assert status == answer.status, (one.name, body[:40], answer.body)


async def test_where_a_key_is_mandatory_its_absence_is_said_before_the_body_is_read(
    rest: Rest,
) -> None:
    person = (await signed_in(rest)).token
    keyed = [one for one in await operations(rest) if one.keyed]
    for one in keyed:
        answer = await rest.call(one.method, one.url(), data=b"{", headers=JSON, key=person)
        check(answer, 400, "idempotency_key_required")

    assert {"approve_escalation", "deny_escalation"} <= {one.name for one in keyed}


async def test_a_field_is_named_and_its_value_is_not(rest: Rest) -> None:
    answer = await rest.post(
        "/api/v1/agents",
        {"name": "", "type": PLANTED, "roles": ["ok", PLANTED.upper() + "!"], PLANTED: PLANTED,
         "token_life_seconds": 5, "tags": PLANTED},
    )  # fmt: skip
    check(answer, 422, "validation_failed")

    assert {
        ("/name", "too_short"),
        ("/type", "not_allowed"),
        ("/roles/1", "pattern"),
        ("", "unknown_field"),
        ("/token_life_seconds", "too_small"),
        ("/tags", "not_a_list"),
    } == {(error["pointer"], error["code"]) for error in answer.json["errors"]}


async def test_a_body_over_a_megabyte_is_refused_however_it_comes(rest: Rest) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    path = "/api/v1/servers"
    check(
        await rest.post(path, data=io.BytesIO(b" " * 1_100_000), headers=JSON),
        413,
        "body_too_large",
    )
    check(await rest.post(path, data=chunks(), headers=JSON), 413, "body_too_large")


async def test_what_is_nowhere_is_not_found_and_not_told_back(rest: Rest) -> None:
    for path in (f"/{PLANTED}", f"/api/v1/{PLANTED}", f"/api/v1/agents/{PLANTED}",
                 f"/api/v1/roles/{PLANTED}", f"/api/v1/servers/{PLANTED}",
                 "/api/v1/servers/%00", "/api/v1/agents/", "/docs", "/redoc"):  # fmt: skip
        check(await rest.get(path), 404, "not_found")
    person = (await operator(rest)).token
    for one in await operations(rest):
        if one.name == "get_trace":  # only audit can say so, and it is away
            continue
        if "{" in one.path and one.method in {"GET", "DELETE"} and one.role:
            key, headers = person if one.human else "", WHY | {"if-match": '"1"'}
            gone = one.url(tenant=GONE)
            check(await rest.call(one.method, gone, headers=headers, key=key), 404, "not_found")


async def test_another_method_is_refused_with_those_that_exist(rest: Rest) -> None:
    answer = await rest.call("DELETE", "/api/v1/me")
    check(answer, 405, "method_not_allowed")

    assert "GET" == answer.headers["allow"]


async def test_a_query_that_we_do_not_know_is_refused(rest: Rest) -> None:
    for path in ("agents", "roles", "servers", "api-keys", "traces"):
        for query in (f"{PLANTED}=1", f"page_size={PLANTED}", "page_size=0", "page_size=501"):
            check(await rest.get(f"/api/v1/{path}?{query}"), 400, "invalid_filter")


async def test_a_request_id_is_taken_over_when_it_is_one(rest: Rest) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    traced = await rest.get("/", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    asked = await rest.get("/", headers={"x-request-id": GONE})
    odd = await rest.get("/", headers={"x-request-id": PLANTED, "traceparent": PLANTED})

    assert [trace, GONE] == [answer.headers["x-request-id"] for answer in (traced, asked)]
    assert PLANTED not in odd.headers["x-request-id"]


async def test_the_257th_request_at_once_is_told_to_come_back(rest: Rest) -> None:
    """Requests that wait for their bodies are in flight; health is answered beside them."""
    release = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await release.wait()

    held = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:

        async def hold() -> None:
            headers = {**JSON, "authorization": f"Bearer {rest.key}"}
            async with http.post(
                f"{rest.base}/api/v1/agents", data=slow(), headers=headers
            ) as answer:
                held.append(answer.status)

        for _ in range(256):
            group.create_task(hold())
        answer = await ask_until(lambda: rest.get("/"), lambda a: a.status != 200, timeout_s=60)
        check(answer, 503, "overloaded")
        assert "1" == answer.headers["retry-after"]
        assert 204 == (await rest.get("/healthz", key=None)).status
        release.set()

    assert [400] * 256 == held
    assert 200 == (await rest.get("/")).status


async def test_an_error_that_nobody_expected_says_nothing_of_itself(
    rest: Rest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(PLANTED)

    monkeypatch.setattr("services.control.store.agents.page", fail)
    check(await rest.get("/api/v1/agents"), 500, "internal")

    written = capsys.readouterr()
    assert PLANTED not in written.out + written.err
    assert "ZeroDivisionError" in written.out


async def test_every_operation_is_described_with_its_role_and_its_errors(rest: Rest) -> None:
    description = (await rest.get("/openapi.json", key=None)).json
    assert description["openapi"].startswith("3.1")
    named = [op["operationId"] for _, op in _each(description)]

    assert len(named) == len(set(named))
    for path, operation in _each(description):
        assert "x-required-role" in operation, path
        assert "default" in operation["responses"], path
        assert "422" not in operation["responses"], path
    text = str(description)
    schemas = description["components"]["schemas"]
    assert all(ref in schemas for ref in re.findall(r"#/components/schemas/(\w+)", text))


async def test_pages_load_nothing_from_elsewhere(rest: Rest) -> None:
    for path in ("/", "/reference", "/errors/conflict", "/errors/unknown"):
        page = await rest.get(path, key=None)
        assert 200 == page.status
        assert "script-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(rb'(?:src|href)="(?!/)', page.body)
    assert b"createagent" in (await rest.get("/reference", key=None)).body.replace(b"_", b"")


def _each(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for operation in methods.values():
            yield path, operation
