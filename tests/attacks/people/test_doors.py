"""What is tried to become somebody, or to have somebody's browser act: each is refused and on
record, each has an innocent twin.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from services.control import api_keys
from services.control.passwords import Passwords
from tests.altered import altered
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import joined, run
from tests.integration.control.factors import LOGIN, SECOND, code, first_half, with_totp
from tests.integration.control.people import INVITES, entitle, invited, operator
from tests.integration.control.test_problems import check, operations
from tests.promises import promise

EVIL: Final = "https://evil.example"


async def sign_in(rest: Rest, name: str, password: str, **headers: str) -> Answered:
    body = {"username": name, "password": password}
    return await rest.post(LOGIN, body, key=None, headers=headers)


async def browser(rest: Rest, name: str, password: str) -> dict[str, str]:
    """The headers of somebody's browser on our own page."""
    answer = await sign_in(rest, name, password, origin=PUBLIC)
    assert 200 == answer.status, answer.body
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return {"cookie": cookie, "x-csrf-token": answer.json["csrf_token"], "origin": PUBLIC}


async def refusals(rest: Rest) -> Counter[str]:
    """How many of each reason are on record, those that were merged included."""
    found: Counter[str] = Counter()
    for record in await rest.records():
        if record["type"] in {"user.signin_failed", "user.request_refused"}:
            found[record["reason"]] += record.get("count", 1)
    return found


@promise("people:no-planted-session")
async def test_a_session_that_was_planted_before_the_sign_in_is_worth_nothing_after_it(
    rest: Rest,
) -> None:
    anna = await joined(rest, "anna")
    planted = {"cookie": "behavry_local=planted-by-somebody-else-0123456789abcdef"}
    answer = await sign_in(rest, "anna", anna.password, **planted, origin=PUBLIC)
    mine = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
    assert mine != planted
    check(await rest.get("/api/v1/me", key=None, headers=planted), 401, "unauthenticated")
    assert 200 == (await rest.get("/api/v1/me", key=None, headers=mine)).status

    headers = mine | {"origin": PUBLIC, "x-csrf-token": answer.json["csrf_token"]}
    said = {"password": anna.password}
    again = await rest.post("/api/v1/auth/step-up", said, key=None, headers=headers)
    assert again.headers["set-cookie"].partition(";")[0] != mine["cookie"]
    check(await rest.get("/api/v1/me", key=None, headers=mine), 401, "session_expired")
    assert 1 == (await refusals(rest))["session_unknown"]


@promise("people:no-planted-session")
async def test_the_first_half_of_a_sign_in_is_no_session(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, _ = await with_totp(rest, anna)
    answer = await sign_in(rest, "anna", anna.password, origin=PUBLIC)
    half = answer.json["second_factor"]["token"]
    assert "set-cookie" not in answer.headers
    for headers in ({"cookie": f"behavry_local={half}"}, {"authorization": f"Bearer {half}"}):
        refused = await rest.get("/api/v1/me", key=None, headers=headers)
        check(refused, 401, "unauthenticated")
    assert 1 == (await refusals(rest))["session_unknown"]

    said = {"token": half, "totp": code(rest, secret, steps=1)}
    done = await rest.post(SECOND, said, key=None, headers={"origin": PUBLIC})
    assert done.headers["set-cookie"].startswith("behavry_local=")


@promise("people:no-other-site-writes")
async def test_no_other_site_writes_with_somebodys_cookie(rest: Rest) -> None:
    """Every route that writes, from elsewhere, from nowhere and without the token."""
    admin = await operator(rest)
    entitle(rest)
    headers = await browser(rest, "admin", admin.password)
    tried = 0
    for one in await operations(rest):
        if one.role is None or one.method == "GET":
            continue
        for bent in (
            {"origin": EVIL},
            {"origin": ""},
            {"origin": "null"},
            {"x-csrf-token": ""},
            {"x-csrf-token": "0" * 43},
        ):
            sent = one.headers() | headers | bent
            answer = await rest.call(one.method, one.url(), data=b"{}", headers=sent, key=None)
            check(answer, 403, "csrf_failed")
            tried += 1
    body = {"name": "by myself"}
    assert 201 == (await rest.post("/api/v1/agents", body, key=None, headers=headers)).status

    rest.clock.advance(61)
    await rest.post("/api/v1/agents", body, key=None, headers=headers | {"origin": EVIL})
    assert tried + 1 == (await refusals(rest))["csrf_failed"]


@promise("people:no-other-site-writes")
async def test_no_other_site_signs_a_browser_in(rest: Rest) -> None:
    entitle(rest)
    anna = await joined(rest, "anna")
    token = (await invited(rest, "new@example.org")).json["token"]
    tries: list[tuple[str, dict[str, Any]]] = [
        (LOGIN, {"username": "anna", "password": anna.password}),
        (SECOND, {"token": "x", "totp": "000000"}),
        (f"{INVITES}:accept", {"token": token, "password": "twelve letters"}),
        ("/api/v1/auth/password:forgot", {"username": "anna"}),
        ("/api/v1/auth/password:reset", {"token": "x", "password": "twelve letters"}),
    ]
    for path, body in tries:
        for origin in (EVIL, "null", f"{PUBLIC}.evil.example", "http://127.0.0.1:1"):
            answer = await rest.post(path, body, key=None, headers={"origin": origin})
            check(answer, 403, "csrf_failed")
            assert "set-cookie" not in answer.headers

    rest.clock.advance(61)
    await rest.post(LOGIN, {"username": "a", "password": "b"}, key=None, headers={"origin": EVIL})
    assert 21 == (await refusals(rest))["csrf_failed"]
    assert 200 == (await sign_in(rest, "anna", anna.password, origin=PUBLIC)).status


@promise("people:not-told-apart")
async def test_who_exists_is_told_neither_by_words_nor_by_work(
    rest: Rest, other_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is the number of passwords that are looked at: one for each try, whoever it names."""
    tenant = (await rest.get("/api/v1/me", key=other_key)).json["tenant"]["id"]
    anna, ben, cara, dora = [
        await joined(rest, name, tenant=tenant if name == "dora" else None)
        for name in ("anna", "ben", "cara", "dora")
    ]
    await with_totp(rest, cara)
    await run(rest, "UPDATE control.users SET status = 'deactivated' WHERE id = $1", ben.id)
    await run(rest, "UPDATE control.tenants SET status = 'suspended' WHERE id = $1", tenant)
    await run(
        rest,
        "INSERT INTO control.users (id, tenant_id, username, role, status, created_at)"
        " VALUES (gen_random_uuid(), $1, 'elsewhere', 'viewer', 'active', now())",
        rest.running.tenant.id,
    )
    looked = Counter[str]()
    verify, who = Passwords._verify, ""

    def note(self: Passwords, stored: str, password: str) -> bool:
        looked[who] += 1
        return verify(self, stored, password)

    monkeypatch.setattr(Passwords, "_verify", note)
    told = {}
    for who, password in (
        ("nobody", "x"), ("anna", "x"), ("ben", ben.password), ("cara", "x"),
        ("dora", dora.password), ("elsewhere", "x"), ("' OR 1=1 --", "x"),
    ):  # fmt: skip
        answer = await sign_in(rest, who, password)
        check(answer, 401, "unauthenticated")
        del answer.json["request_id"]
        told[who] = (str(answer.json), sorted(answer.headers), len(answer.body))

    assert 1 == len({str(one) for one in told.values()})
    assert dict.fromkeys(told, 1) == dict(looked)
    assert 7 == (await refusals(rest))["unauthenticated"]
    who = "anna"
    assert 200 == (await sign_in(rest, "anna", anna.password)).status


@promise("people:guessing-stops")
async def test_guessing_a_password_stops_after_ten_tries_even_for_the_right_one(
    rest: Rest,
) -> None:
    anna = await joined(rest, "anna")
    rest.clock.advance(61)
    statuses = [(await sign_in(rest, "anna", f"guess {n}")).status for n in range(12)]
    assert [401] * 10 + [429] * 2 == statuses
    limited = await sign_in(rest, "anna", anna.password)
    check(limited, 429, "rate_limited")
    assert 0 < int(limited.headers["retry-after"]) <= 60
    rest.clock.advance(61)

    assert 200 == (await sign_in(rest, "anna", anna.password)).status
    assert 10 == (await refusals(rest))["unauthenticated"]


@promise("people:guessing-stops")
async def test_one_password_for_many_names_stops_at_the_address(rest: Rest) -> None:
    rest.clock.advance(61)
    statuses = Counter(
        [(await sign_in(rest, f"user{n}", "Summer2026!!")).status for n in range(62)]
    )

    assert {401: 60, 429: 2} == dict(statuses)


@promise("people:guessing-stops")
@pytest.mark.parametrize("kind", ["totp", "recovery_code"])
async def test_guessing_a_second_factor_stops_and_is_on_record(rest: Rest, kind: str) -> None:
    anna = await joined(rest, "anna")
    secret, codes = await with_totp(rest, anna)
    wrong = {"totp": "000000", "recovery_code": "00000-00000-00000-00000"}[kind]
    right = {"totp": code(rest, secret, steps=1), "recovery_code": codes[0]}[kind]
    statuses, half = list[int](), dict[str, Any]()
    for n in range(12):
        if n % 4 == 0:
            half = await first_half(rest, anna)
        said = {"token": half["token"], kind: wrong}
        statuses.append((await rest.post(SECOND, said, key=None)).status)
    assert [401] * 10 + [429] * 2 == statuses
    half = await first_half(rest, anna)
    said = {"token": half["token"], kind: right}
    check(await rest.post(SECOND, said, key=None), 429, "rate_limited")
    assert 10 == (await refusals(rest))["second_factor_refused"]
    rest.clock.advance(301)
    half = await first_half(rest, anna)
    said = {"token": half["token"], "recovery_code": codes[1]}

    assert 200 == (await rest.post(SECOND, said, key=None)).status


@promise("people:guessing-stops")
async def test_guessing_invites_stops_and_is_on_record(rest: Rest) -> None:
    entitle(rest)
    token = (await invited(rest, "new@example.org")).json["token"]
    said: dict[str, Any] = {"password": "twelve letters"}
    statuses = [
        (
            await rest.post(f"{INVITES}:accept", said | {"token": f"bhv_inv_{n:043d}"}, key=None)
        ).status
        for n in range(32)
    ]
    assert [401] * 30 + [429] * 2 == statuses
    limited = await rest.post(f"{INVITES}:accept", said | {"token": token}, key=None)
    check(limited, 429, "rate_limited")
    rest.clock.advance(61)

    taken = await rest.post(f"{INVITES}:accept", said | {"token": token}, key=None)
    assert 201 == taken.status
    assert 10 <= (await refusals(rest))["invite_invalid"]


@promise("people:guessing-stops")
async def test_a_guessed_session_or_key_is_on_record_and_never_right(rest: Rest) -> None:
    """Each kind by itself; what a checksum refuses never comes that far."""
    anna = await joined(rest, "anna")
    made = (await rest.post("/api/v1/api-keys", {"name": "k", "role": "viewer"})).json["key"]
    known = api_keys.parse(made)
    assert known
    guessed = replace(known, secret="0" * 64).text
    for n in range(12):
        token = f"bhv_us_{n:043d}"
        check(await rest.get("/api/v1/me", key=token), 401, "unauthenticated")
    for key in (guessed, altered(made, -1), f"bhv_sk_local_{'0' * 16}_{'0' * 72}"):
        check(await rest.get("/api/v1/me", key=key), 401, "unauthenticated")
    rest.clock.advance(61)
    check(await rest.get("/api/v1/me", key="bhv_us_x"), 401, "unauthenticated")

    assert {"session_unknown": 13, "key_unknown": 1} == dict(await refusals(rest))
    for credential in (anna.token, made):
        assert 200 == (await rest.get("/api/v1/me", key=credential)).status


@promise("people:no-other-site-writes")
async def test_a_sign_in_leads_nowhere_else_and_who_wants_it_to_is_on_record(rest: Rest) -> None:
    tries = [("return_to", EVIL), ("return_to", "//evil.example"), ("redirect_uri", EVIL)]
    for field, value in tries:
        query = urlencode({"tenant": "default", field: value})
        answer = await rest.get(f"{LOGIN}?{query}", key=None)
        check(answer, 400, "invalid_filter")
        assert "location" not in answer.headers

    assert 3 == (await refusals(rest))["sign_in_query_refused"]


@promise("people:no-other-site-writes")
@pytest.mark.parametrize("field", ["next", "return_to", "redirect", "url", "token"])
async def test_the_way_back_from_a_sign_in_is_never_somewhere_else(rest: Rest, field: str) -> None:
    """The one page that redirects leads to itself, whatever a form or an address says."""
    escalation = "0199d0d0-0000-7000-8000-0000000000aa"
    path = f"/approve/{escalation}"
    page = await rest.get(f"{path}?{field}={EVIL}", key=None)
    cookie = page.headers["set-cookie"].partition(";")[0]
    token = page.body.decode().partition('name="token" value="')[2].partition('"')[0]
    password = (rest.state / "admin-password").read_text().strip()
    form = {field: EVIL, "token": token, "username": "admin", "password": password}
    headers = {"cookie": cookie, "origin": PUBLIC}
    answer = await rest.call(
        "POST", f"{path}/sign-in?{field}={EVIL}", data=form, headers=headers, key=None
    )

    assert (303, path) == (answer.status, answer.headers["location"])
