"""People sign in by their organization's provider: who they become, and what ends it."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from tests.fakes.clock import ManualClock
from tests.fakes.openid import CLIENT, OpenIdProvider, openid_provider
from tests.integration.control.conftest import PUBLIC, Rest
from tests.integration.control.escalated import asked, joined, run, signed_in, state_of
from tests.integration.control.openid import (
    CALLBACK,
    LOGIN,
    LOGOUT,
    SESSION,
    Browser,
    by_password_again,
    failures,
    signs_in_by,
)
from tests.integration.control.people import entitle, invited
from tests.integration.control.planes import linked
from tests.integration.control.test_problems import check
from tests.promises import promise

ROLES = [{"value": "chiefs", "role": "admin"}, {"value": "staff", "role": "analyst"}]


@pytest.fixture
async def provider(rest: Rest, clock: ManualClock) -> Any:
    async with openid_provider(clock) as made:
        await signs_in_by(rest, made.url)
        entitle(rest)
        yield made


async def test_whoever_the_provider_knows_comes_in_as_a_viewer(
    rest: Rest, provider: OpenIdProvider
) -> None:
    browser = Browser(rest=rest)
    location = await browser.begin()
    asked = dict(parse_qsl(urlsplit(location).query))
    answer = await browser.get(
        CALLBACK, **provider.consent(location, email="Anna@example.org", email_verified=True)
    )

    assert (303, "/") == (answer.status, answer.headers["location"])
    assert f"{PUBLIC}{CALLBACK}" == asked["redirect_uri"]
    assert {"code", "S256"} == {asked["response_type"], asked["code_challenge_method"]}
    me = await browser.me()
    assert ("viewer", "default:anna@example.org") == (me["role"], me["name"])
    assert [SESSION] == list(browser.cookies)
    types = [one["type"] for one in await rest.records()][-2:]
    assert ["admin.user.created", "user.signin"] == types
    text = str(await rest.records())
    assert asked["state"] not in text


async def test_a_person_is_a_subject_whatever_their_address_says(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await by_password_again(rest)
    await joined(rest, "anna@example.org", "admin")
    await signs_in_by(rest, provider.url)
    told = {"email": "anna@example.org", "email_verified": True}
    first, second, third = (Browser(rest=rest) for _ in range(3))
    await first.sign_in(provider, "a-1", **told)
    await second.sign_in(provider, "a-2", **told)
    await third.sign_in(provider, "a-1", email="other@example.org", email_verified=True)

    people = [await one.me() for one in (first, second, third)]
    assert ["viewer"] * 3 == [one["role"] for one in people]
    assert people[0]["id"] == people[2]["id"] != people[1]["id"]


async def test_the_first_rule_that_fits_gives_the_role_at_each_sign_in(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await signs_in_by(rest, provider.url, role_claim="groups", roles=ROLES)
    seen = []
    for groups in (["staff", "chiefs"], "staff", ["STAFF"], 7, None, ["chiefs"], {"staff": 1}):
        browser = Browser(rest=rest)
        await browser.sign_in(provider, groups=groups)
        seen.append((await browser.me())["role"])

    assert ["admin", "analyst", "viewer", "viewer", "viewer", "admin", "viewer"] == seen
    changes = [o for o in await rest.records() if o["type"] == "admin.user.role_changed"]
    assert 4 == len(changes)


async def test_without_teams_everybody_is_a_viewer_and_a_plan_that_ended_raises_nobody(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await signs_in_by(rest, provider.url, role_claim="groups", roles=ROLES)
    seen = []
    for mode, groups in (("on", "staff"), ("kept", "chiefs"), ("off", "chiefs"), ("kept", "staff")):
        entitle(rest, mode=mode)
        browser = Browser(rest=rest)
        await browser.sign_in(provider, groups=groups)
        seen.append((await browser.me())["role"])

    assert ["analyst", "analyst", "viewer", "viewer"] == seen


async def test_the_last_admin_does_not_come_in_as_less(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """Nor stays in under a role that the provider does not give any more."""
    chief, later = Browser(rest=rest), Browser(rest=rest)
    await by_password_again(rest)  # else the one with a password stays
    await run(rest, "INSERT INTO control.users VALUES (gen_random_uuid(), $1, 'x', 'admin', NULL,"
              " 'active', now())", rest.running.tenant.id)  # fmt: skip
    await run(rest, "UPDATE control.users SET status = 'deactivated' WHERE username = 'admin'")
    await signs_in_by(rest, provider.url, role_claim="groups", roles=ROLES)
    await chief.sign_in(provider, groups="chiefs")
    await run(rest, "UPDATE control.users SET status = 'deactivated' WHERE username = 'x'")
    check(await later.sign_in(provider, groups="staff"), 401, "unauthenticated")

    assert "oidc_last_admin" == (await failures(rest))[-1]
    check(await chief.get("/api/v1/me"), 401, "session_expired")
    assert 303 == (await later.sign_in(provider, groups="chiefs")).status
    assert "admin" == (await later.me())["role"]


async def test_where_a_provider_is_an_admin_with_a_password_stays(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """Whoever the provider makes an admin may not take away the way in without it."""
    await signs_in_by(rest, provider.url, role_claim="groups", roles=ROLES)
    chief = Browser(rest=rest)
    await chief.sign_in(provider, groups="chiefs")
    csrf = (await chief.me())["csrf_token"]
    glass = await signed_in(rest)
    refused = await chief.post(f"/api/v1/users/{glass.id}:deactivate", csrf=csrf)
    check(refused, 409, "last_admin")
    await run(rest, "INSERT INTO control.users VALUES (gen_random_uuid(), $1, 'bob', 'admin', 'x',"
              " 'active', now())", rest.running.tenant.id)  # fmt: skip
    done = await chief.post(f"/api/v1/users/{glass.id}:deactivate", csrf=csrf)

    assert 200 == done.status


@promise("people:provider-gives-roles")
async def test_a_role_that_the_provider_takes_goes_with_what_was_made_by_it(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await signs_in_by(rest, provider.url, role_claim="groups", roles=ROLES)
    old, new = Browser(rest=rest), Browser(rest=rest)
    await old.sign_in(provider, groups="chiefs")
    csrf = (await old.me())["csrf_token"]
    keys = {}
    for role in ("viewer", "admin"):
        body = {"name": role, "role": role}
        keys[role] = (await old.post("/api/v1/api-keys", body, csrf=csrf)).json["key"]
    await new.sign_in(provider, groups=["nobody-knows"])

    assert ["viewer", "viewer"] == [(await one.me())["role"] for one in (old, new)]
    check(await rest.get("/api/v1/me", key=keys["admin"]), 401, "unauthenticated")
    assert 200 == (await rest.get("/api/v1/me", key=keys["viewer"])).status
    gone = [r for r in await rest.records() if r["type"] == "admin.api_key.deleted"]
    assert 1 == len(gone)


async def test_an_invite_is_found_by_a_verified_address_alone(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await signs_in_by(rest, provider.url, just_in_time=False)
    assert 201 == (await invited(rest, "anna@example.org", "analyst")).status
    for told in ({}, {"email": "anna@example.org"}, {"email": "bob@example.org"},
                 {"email": "anna@example.org", "email_verified": "true"}):  # fmt: skip
        browser = Browser(rest=rest)
        claims: dict[str, Any] = {"email_verified": None, **told}
        answer = await browser.sign_in(provider, **claims)
        check(answer, 401, "unauthenticated")
    assert {"oidc_not_invited"} == set(await failures(rest))
    browser = Browser(rest=rest)
    await browser.sign_in(provider, email="ANNA@example.org", email_verified=True)

    assert "analyst" == (await browser.me())["role"]
    invite = (await rest.get("/api/v1/invites")).json["items"][0]
    assert "accepted" == invite["state"]
    again = Browser(rest=rest)
    await again.sign_in(provider)
    assert "analyst" == (await again.me())["role"]


async def test_only_verified_addresses_of_the_named_domains_come_in(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await signs_in_by(rest, provider.url, email_domains=["example.org"])
    statuses = []
    for address, verified in (
        ("a@example.org", False), ("a@sub.example.org", True), ("a@example.org.evil", True),
        ("example.org", True), ("a@example.org", True),
    ):  # fmt: skip
        answer = await Browser(rest=rest).sign_in(provider, email=address, email_verified=verified)
        statuses.append(answer.status)

    assert [401] * 4 + [303] == statuses


async def test_whoever_is_deactivated_stays_out(rest: Rest, provider: OpenIdProvider) -> None:
    browser = Browser(rest=rest)
    await browser.sign_in(provider)
    me = (await browser.me())["id"]
    assert 200 == (await rest.post(f"/api/v1/users/{me}:deactivate")).status
    check(await browser.get("/api/v1/me"), 401, "unauthenticated")
    check(await browser.sign_in(provider), 401, "unauthenticated")
    assert "user_not_active" == (await failures(rest))[-1]
    assert 200 == (await rest.post(f"/api/v1/users/{me}:reactivate")).status

    assert 303 == (await browser.sign_in(provider)).status


async def test_sign_ins_of_one_subject_at_once_make_one_person(
    rest: Rest, provider: OpenIdProvider
) -> None:
    browsers = [Browser(rest=rest) for _ in range(4)]
    answers = await asyncio.gather(*(one.sign_in(provider) for one in browsers))

    assert [303] * 4 == [answer.status for answer in answers]
    assert 1 == len({(await one.me())["id"] for one in browsers})


async def test_a_step_up_is_the_providers_proof_of_now(
    rest: Rest, provider: OpenIdProvider
) -> None:
    browser, bob = Browser(rest=rest), Browser(rest=rest)
    await browser.sign_in(provider, auth_time=None)
    await bob.sign_in(provider, "bob")
    old = dict(browser.cookies)
    now = rest.clock.now_ns() // 10**9
    rest.clock.advance(1)
    assert (await browser.me())["stepped_up_until"] < "2026-01-01T00:00:00"
    too_old, nobody = (403, "step_up_required"), (401, "unauthenticated")
    for subject, auth_time, told_back in (
        ("anna", None, too_old), ("anna", now - 120, too_old),
        ("bob", None, nobody), ("carl", 0, nobody),
    ):  # fmt: skip
        location = await browser.begin(step_up="true")
        assert "login" == dict(parse_qsl(urlsplit(location).query))["prompt"]
        told = {} if subject in {"bob", "carl"} else {"auth_time": auth_time}
        answer = await browser.get(CALLBACK, **provider.consent(location, subject, **told))
        check(answer, *told_back)
        assert (auth_time is None) == ("auth_time" in answer.json["detail"]) or told_back == nobody
    location = await browser.begin(step_up="true", return_to="/")
    assert 303 == (await browser.get(CALLBACK, **provider.consent(location))).status

    assert (await browser.me())["stepped_up_until"] > "2026-01-01T00:04:00"
    assert old[SESSION] != browser.cookies[SESSION]
    check(await Browser(rest=rest, cookies=old).get("/api/v1/me"), 401, "session_expired")
    assert "user.step_up" == (await rest.records())[-1]["type"]
    assert {"oidc_proof_too_old", "oidc_proof_time_missing", "oidc_somebody_else"} == set(
        await failures(rest)
    )


async def test_a_session_that_was_planted_is_worth_nothing_afterwards(
    rest: Rest, provider: OpenIdProvider
) -> None:
    planted = Browser(rest=rest)
    await planted.sign_in(provider, "mallory")
    victim = Browser(rest=rest, cookies=dict(planted.cookies))
    await victim.sign_in(provider, "victim")

    assert victim.cookies[SESSION] != planted.cookies[SESSION]
    check(await planted.get("/api/v1/me"), 401, "session_expired")


@promise("people:provider-ends-sessions")
async def test_the_provider_ends_sessions_at_once(rest: Rest, provider: OpenIdProvider) -> None:
    one, other, bob = (Browser(rest=rest) for _ in range(3))
    await one.sign_in(provider, sid="s1")
    await other.sign_in(provider, sid="s2")
    await bob.sign_in(provider, "bob", sid="s3")
    token = provider.logout_token(sub="anna", sid="s1")
    assert 200 == (await sent(rest, token)).status
    check(await one.get("/api/v1/me"), 401, "session_expired")
    assert "anna" in (await other.me())["name"]
    check(await sent(rest, token), 400, "invalid_argument")
    assert 200 == (await sent(rest, provider.logout_token(sub="anna"))).status
    check(await other.get("/api/v1/me"), 401, "session_expired")

    assert "bob" in (await bob.me())["name"]
    assert ["oidc_logout_used"] == await failures(rest)
    ended = [r["reason"] for r in await rest.records() if r["type"] == "user.signout"]
    assert ["oidc_backchannel"] * 2 == ended


@promise("people:provider-ends-sessions")
async def test_a_logout_is_heard_once_however_often_it_comes_and_by_whose_word_it_is(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """Both names that it has must fit; five alike at once are one."""
    anna, bob = Browser(rest=rest), Browser(rest=rest)
    await anna.sign_in(provider, sid="s1")
    await bob.sign_in(provider, "bob", sid="s2")
    assert 200 == (await sent(rest, provider.logout_token(sub="bob", sid="s1"))).status
    assert 200 == (await sent(rest, provider.logout_token(sub="nobody"))).status
    assert "anna" in (await anna.me())["name"]
    assert "bob" in (await bob.me())["name"]
    token = provider.logout_token(sid="s1")
    answers = await asyncio.gather(*(sent(rest, token) for _ in range(5)))
    assert [200, 400, 400, 400, 400] == sorted(answer.status for answer in answers)
    check(await anna.get("/api/v1/me"), 401, "session_expired")
    assert ["oidc_logout_used"] * 4 == await failures(rest)

    assert 303 == (await anna.sign_in(provider, sid="s3")).status  # they may come again
    check(await sent(rest, token), 400, "invalid_argument")
    assert "anna" in (await anna.me())["name"]


@promise("people:provider-ends-sessions")
async def test_a_sign_in_that_was_on_its_way_when_the_logout_came_is_not_let_in(
    rest: Rest, provider: OpenIdProvider
) -> None:
    now_s = rest.clock.now_ns() // 10**9
    for whose, claims, status in (
        ({"sid": "s1"}, {"sid": "s1"}, 401),
        ({"sid": "s2", "sub": "anna"}, {"sid": "s2"}, 401),
        ({"sid": "s3", "sub": "bob"}, {"sid": "s3"}, 303),
        ({"sid": "s4"}, {"sid": "s5"}, 303),
        ({"sub": "anna"}, {"sid": "s6", "iat": now_s - 1}, 401),
        ({"sub": "anna"}, {"sid": "s7"}, 303),  # they came back after it
    ):
        browser = Browser(rest=rest)
        back = provider.consent(await browser.begin(), **claims)
        assert 200 == (await sent(rest, provider.logout_token(**whose))).status
        assert status == (await browser.get(CALLBACK, **back)).status, whose

    assert ["oidc_signed_out"] * 3 == await failures(rest)


async def test_whoever_signs_out_is_told_where_to_do_it_at_the_provider(
    rest: Rest, provider: OpenIdProvider
) -> None:
    provider.description = {"end_session_endpoint": f"{provider.url}/end"}
    browser = Browser(rest=rest)
    await browser.sign_in(provider)
    csrf = (await browser.me())["csrf_token"]
    answer = await browser.post("/api/v1/auth/logout", {}, csrf=csrf)
    url = answer.headers["link"].partition(">")[0].removeprefix("<")
    asked = dict(parse_qsl(urlsplit(url).query))

    assert (204, f"{provider.url}/end") == (answer.status, url.partition("?")[0])
    assert {"client_id": CLIENT, "post_logout_redirect_uri": f"{PUBLIC}/"} == asked
    check(await browser.get("/api/v1/me"), 401, "session_expired")
    by_key = await rest.post("/api/v1/auth/logout", {})
    assert "link" not in by_key.headers


async def test_whoever_signs_in_by_a_provider_decides_on_the_page_that_a_call_waits_at(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """It leads to the provider and back, and there again for a fresh proof."""
    await signs_in_by(rest, provider.url, role_claim="groups", roles=ROLES)
    browser = Browser(rest=rest)
    async with linked(rest) as plane:
        ticket = await asked(rest, plane, tier="critical")
        page = f"/approve/{ticket}"
        for link in ("Sign in with", "Prove it with"):
            shown = (await browser.get(page, tenant="default")).body.decode()
            [url] = re.findall(rf'href="([^"]*)">{link} your organization', shown)
            location = (await browser.get(unescape(url))).headers["location"]
            told: dict[str, Any] = {"groups": "staff"} | (
                {"auth_time": None} if "step_up" not in url else {}
            )
            back = await browser.get(CALLBACK, **provider.consent(location, **told))
            assert (303, page) == (back.status, back.headers["location"])
        csrf = (await browser.me())["csrf_token"]
        done = await browser.send(page, act="once", reason="looked at", csrf=csrf)

        assert 303 == done.status
        assert "approved" == await state_of(rest, ticket)


async def sent(rest: Rest, token: str) -> Any:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    data = urlencode({"logout_token": token})
    return await rest.call("POST", LOGOUT, data=data, headers=headers, key=None)


@promise("people:provider-instead-of-passwords")
async def test_passwords_open_nothing_but_the_first_admin_where_a_provider_is(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await by_password_again(rest)
    rest.clock.advance(1)
    anna = await joined(rest, "anna", "admin")
    await signs_in_by(rest, provider.url)
    body = {"username": anna.name, "password": anna.password, "bearer": True}
    check(await rest.post(LOGIN, body, key=None), 401, "unauthenticated")
    password = (rest.state / "admin-password").read_text().strip()
    glass = await rest.post(LOGIN, body | {"username": "admin", "password": password}, key=None)

    assert 200 == glass.status
    assert ["password_not_used_here"] == await failures(rest)


async def test_a_tenant_without_a_provider_is_as_unknown_as_any(
    rest: Rest, provider: OpenIdProvider, other_key: str
) -> None:
    browser = Browser(rest=rest)
    for query in ({"tenant": "second"}, {"tenant": "nobody-there"}, {}):
        check(await browser.get(LOGIN, **query), 404, "not_found")

    assert 302 == (await browser.get(LOGIN, tenant="default")).status
