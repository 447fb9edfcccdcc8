"""People sign in with a password; browsers write only from our own page."""

import asyncio
from typing import Any

import pytest
from argon2.profiles import RFC_9106_LOW_MEMORY

from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.promises import promise

LOGIN = "/api/v1/auth/login"


@pytest.fixture
def dear_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost what they cost. Asked for before control starts."""
    monkeypatch.setattr("services.control.passwords.RFC_9106_LOW_MEMORY", RFC_9106_LOW_MEMORY)


async def sign_in(rest: Rest, **more: Any) -> Answered:
    password = (rest.state / "admin-password").read_text().strip()
    body = {"username": "admin", "password": password, **more}
    return await rest.post(LOGIN, body, key=None)


async def browser(rest: Rest) -> dict[str, str]:
    """Headers of a signed-in browser on our own page."""
    answer = await sign_in(rest)
    assert 200 == answer.status, answer.body
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return {"cookie": cookie, "x-csrf-token": answer.json["csrf_token"], "origin": PUBLIC}


@pytest.mark.usefixtures("dear_passwords")
async def test_the_admin_signs_in_and_is_known_afterwards(rest: Rest) -> None:
    headers = await browser(rest)
    answer = await rest.get("/api/v1/me", key=None, headers=headers)

    assert 200 == answer.status
    me = answer.json
    assert ("user", "admin", "admin") == (me["kind"], me["name"], me["role"])
    assert headers["x-csrf-token"] == me["csrf_token"]


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(rest: Rest) -> None:
    cookie = (await sign_in(rest)).headers["set-cookie"]

    assert cookie.startswith("behavry_local=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))


@pytest.mark.usefixtures("dear_passwords")
async def test_a_wrong_password_and_an_unknown_user_look_alike(rest: Rest) -> None:
    wrong = await sign_in(rest, password="not the password")
    unknown = await sign_in(rest, username="nobody", password="not the password")

    assert 401 == wrong.status == unknown.status
    assert {k: v for k, v in wrong.json.items() if k != "request_id"} == {
        k: v for k, v in unknown.json.items() if k != "request_id"
    }
    assert "set-cookie" not in wrong.headers


async def test_sign_ins_are_recorded_and_failed_ones_too(rest: Rest) -> None:
    await sign_in(rest, password="not the password")
    await sign_in(rest, username="nobody@example.org")
    await sign_in(rest)

    records = [r for r in await rest.records() if r["type"].startswith("user.")]
    assert [
        ("user.signin_failed", "admin"), ("user.signin_failed", "system"), ("user.signin", "admin"),
    ] == [(r["type"], r["chain"]) for r in records]  # fmt: skip
    assert "nobody@example.org" not in str(records)


@promise("people:sign-in-limited")
async def test_the_eleventh_try_within_a_minute_is_refused_and_a_later_one_is_not(
    rest: Rest,
) -> None:
    tries = [await sign_in(rest, password="wrong wrong wrong") for _ in range(11)]

    assert [401] * 10 + [429] == [answer.status for answer in tries]
    assert "rate_limited" == tries[-1].json["code"]
    assert 1 <= int(tries[-1].headers["retry-after"]) <= 60

    rest.clock.advance(61)
    assert 200 == (await sign_in(rest)).status


async def test_a_success_clears_the_way_for_the_next_tries(rest: Rest) -> None:
    answers = []
    for _ in range(12):
        await sign_in(rest, password="wrong wrong wrong")
        answers.append(await sign_in(rest))

    assert {200} == {answer.status for answer in answers}


@promise("people:own-page-writes")
async def test_a_write_with_the_cookie_needs_the_token_and_our_own_origin(rest: Rest) -> None:
    good = await browser(rest)
    body = {"permissions": ["time:read"]}
    for spoil in ("x-csrf-token", "origin"):
        for value in (None, "https://elsewhere.example"):
            headers = {k: v for k, v in good.items() if k != spoil} | (
                {spoil: value} if value else {}
            )
            answer = await rest.put("/api/v1/roles/r", body, key=None, headers=headers)
            assert (403, "csrf_failed") == (answer.status, answer.json["code"]), (spoil, value)

    assert 200 == (await rest.put("/api/v1/roles/r", body, key=None, headers=good)).status
    other_spelling = good | {"origin": "http://localhost:8701"}
    assert 200 == (await rest.put("/api/v1/roles/r", body, key=None, headers=other_spelling)).status


async def test_another_site_cannot_sign_a_browser_in(rest: Rest) -> None:
    password = (rest.state / "admin-password").read_text().strip()
    body = {"username": "admin", "password": password}
    answer = await rest.post(LOGIN, body, key=None, headers={"origin": "https://elsewhere.example"})

    assert 403 == answer.status


async def test_a_session_ends_after_half_an_hour_of_silence(rest: Rest) -> None:
    headers = await browser(rest)
    for _ in range(3):
        rest.clock.advance(29 * 60)
        assert 200 == (await rest.get("/api/v1/me", key=None, headers=headers)).status

    rest.clock.advance(31 * 60)
    answer = await rest.get("/api/v1/me", key=None, headers=headers)
    assert (401, "session_expired") == (answer.status, answer.json["code"])


async def test_a_session_ends_after_twelve_hours_however_busy(rest: Rest) -> None:
    headers = await browser(rest)
    for _ in range(24):
        rest.clock.advance(29 * 60)
        assert 200 == (await rest.get("/api/v1/me", key=None, headers=headers)).status

    rest.clock.advance(25 * 60)
    assert 401 == (await rest.get("/api/v1/me", key=None, headers=headers)).status


async def test_signing_out_ends_the_session_for_good(rest: Rest) -> None:
    headers = await browser(rest)
    assert 204 == (await rest.post("/api/v1/auth/logout", {}, key=None, headers=headers)).status

    assert 401 == (await rest.get("/api/v1/me", key=None, headers=headers)).status


async def test_an_api_key_has_no_session_to_end(rest: Rest) -> None:
    assert 400 == (await rest.post("/api/v1/auth/logout", {})).status


@pytest.mark.usefixtures("dear_passwords")
async def test_many_tries_at_once_do_not_starve_the_others(rest: Rest) -> None:
    async with asyncio.timeout(20):
        answers = await asyncio.gather(
            *(sign_in(rest, password="wrong wrong wrong") for _ in range(8)),
            rest.get("/api/v1/me"),
        )

    assert 200 == answers[-1].status
