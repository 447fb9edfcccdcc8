"""Passwords that are changed and lost, and letters to one person: what ends, what is told to whom,
and what is kept nowhere.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from services.control.passwords import Passwords
from tests.fakes.asking import ask_until
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import Somebody, joined, run, signed_in
from tests.integration.control.factors import LOGIN, code, first_half, second_half, with_totp
from tests.integration.control.openid import signs_in_by
from tests.integration.control.people import INVITES, USERS, entitle, invited, operator
from tests.integration.control.receivers import MailReceiver, http_receiver, mail_receiver
from tests.integration.control.test_agents import everything_stored
from tests.integration.control.test_approval_page import Browser
from tests.integration.control.test_notifications import PASSWORD as MAIL_PASSWORD
from tests.integration.control.test_notifications import PATH as NOTIFICATIONS
from tests.integration.control.test_notifications import add, mail, webhook
from tests.integration.control.test_problems import check
from tests.promises import promise

CHANGE: Final = "/api/v1/me/password"
FORGOT: Final = "/api/v1/auth/password:forgot"
RESET: Final = "/api/v1/auth/password:reset"
NEW: Final = "another password of mine"


@pytest.fixture(autouse=True)
def entitled(rest: Rest) -> None:
    entitle(rest)


@pytest.fixture
async def mails(rest: Rest) -> AsyncIterator[MailReceiver]:
    """The tenant's mail server, as its notices use it."""
    async with mail_receiver(accounts={"relay": MAIL_PASSWORD}) as receiver:
        await add(rest, mail(rest, receiver.port))
        yield receiver


async def sign_in(rest: Rest, name: str, password: str) -> Answered:
    said = {"username": name, "password": password, "bearer": True}
    return await rest.post(LOGIN, said, key=None)


async def change(rest: Rest, person: Somebody, old: str, new: str = NEW) -> Answered:
    return await rest.post(CHANGE, {"old": old, "new": new}, key=person.token)


async def link_for(rest: Rest, person: Somebody, key: str = "") -> Answered:
    """By the admin, right after a sign-in, unless told."""
    key = key or (await signed_in(rest)).token
    return await rest.post(f"{USERS}/{person.id}:reset-password", key=key)


async def use(rest: Rest, token: str, password: str = NEW) -> Answered:
    return await rest.post(RESET, {"token": token, "password": password}, key=None)


async def with_address(rest: Rest, name: str, role: str = "analyst") -> Somebody:
    person = await joined(rest, name, role)
    await run(rest, "UPDATE control.users SET email = $2 WHERE id = $1", person.id, f"{name}@x.io")
    return person


def token_in(message: EmailMessage) -> str:
    found = re.search(r"#(bhv_\w+_[A-Za-z0-9_-]{43})\s", message.get_content())
    assert found
    return found[1]


async def reasons(rest: Rest, kind: str = "user.request_refused") -> list[str]:
    return [r["reason"] for r in await rest.records() if r["type"] == kind]


async def types(rest: Rest) -> list[str]:
    return [record["type"] for record in await rest.records()]


# Letters --------------------------------------------------------------------------------------


@promise("people:links-told-once")
async def test_an_invite_goes_by_mail_where_there_is_a_mail_server(
    rest: Rest, mails: MailReceiver, capfd: pytest.CaptureFixture[str]
) -> None:
    made = await invited(rest, "new@example.org", "analyst")
    assert (201, True, None, None) == (
        made.status, made.json["mailed"], made.json["token"], made.json["link"],
    )  # fmt: skip
    message, envelope = await mails.next_envelope()
    assert ["new@example.org"] == envelope.rcpt_tos
    assert "new@example.org" == message["To"]
    token = token_in(message)
    assert f"http://127.0.0.1:8701/join#{token}" in message.get_content()

    said = {"token": token, "password": NEW}
    assert 201 == (await rest.post(f"{INVITES}:accept", said, key=None)).status
    check(await rest.post(f"{INVITES}:accept", said, key=None), 401, "invite_invalid")
    assert 200 == (await sign_in(rest, "new@example.org", NEW)).status
    told = capfd.readouterr()
    for place in (told.out, told.err, str(await rest.records()), await everything_stored(rest)):
        assert token not in place
        assert NEW not in place


@promise("people:links-told-once")
@pytest.mark.parametrize("address", ["a;b@example.org", "new@example.org"])
async def test_an_invite_that_does_not_go_out_is_shown(rest: Rest, address: str) -> None:
    """The mail server is away; or the address is one that no header holds."""
    async with mail_receiver() as gone:
        await add(rest, mail(rest, gone.port))
    made = await invited(rest, address)
    token = made.json["token"]

    assert (False, f"http://127.0.0.1:8701/join#{token}") == (
        made.json["mailed"], made.json["link"],
    )  # fmt: skip
    accepted = await rest.post(f"{INVITES}:accept", {"token": token, "password": NEW}, key=None)
    assert 201 == accepted.status


async def test_where_a_provider_is_an_invite_leads_there_and_to_no_password(
    rest: Rest, mails: MailReceiver
) -> None:
    """An account with a password that opens nothing would be in the way of the real one."""
    early = (await invited(rest, "a;b@example.org")).json["token"]
    await signs_in_by(rest, "https://login.example.org")
    made = await invited(rest, "new@example.org")
    shown = await invited(rest, "c;d@example.org")
    link = f"{PUBLIC}/api/v1/auth/login?tenant={rest.running.tenant.slug}"
    assert (True, None, None) == (made.json["mailed"], made.json["token"], made.json["link"])
    assert (False, None, link) == (shown.json["mailed"], shown.json["token"], shown.json["link"])
    text = (await mails.next()).get_content()
    assert link in text
    assert "bhv_inv_" not in text
    said = {"token": early, "password": NEW}
    check(await rest.post(f"{INVITES}:accept", said, key=None), 409, "conflict")

    assert {"invited"} == {one["state"] for one in (await rest.get(INVITES)).json["items"]}


# Break-glass ---------------------------------------------------------------------------------


@promise("people:break-glass-alerts")
async def test_the_emergency_sign_in_is_on_record_and_told_to_every_destination(
    rest: Rest,
) -> None:
    """Also to one that asked for something else. Where passwords are the way, nobody is told."""
    async with http_receiver() as quiet, http_receiver() as away:
        only = {**webhook(rest, quiet.url), "events": ["kill_switch.on"]}
        await add(rest, only, "quiet")
        off = await add(rest, webhook(rest, away.url), "off")
        path = f"{NOTIFICATIONS}/{off.json['id']}"
        headers = {"if-match": off.headers["etag"]}
        switched = await rest.call("PATCH", path, {"enabled": False}, headers=headers)
        assert 200 == switched.status, switched.body
        admin, anna = await signed_in(rest), await joined(rest, "anna")
        assert "user.break_glass" not in await types(rest)
        await signs_in_by(rest, "https://login.example.org")

        check(await sign_in(rest, "anna", anna.password), 401, "unauthenticated")
        assert 200 == (await sign_in(rest, "admin", admin.password)).status
        told = json.loads((await quiet.next()).body)
    assert ("sign_in.break_glass", admin.id, "admin") == (
        told["event"], told["sign_in"]["user"]["id"], told["sign_in"]["user"]["name"],
    )  # fmt: skip
    assert ([], 1) == (away.received, len(quiet.received))
    (kept,) = [r for r in await rest.records() if r["type"] == "user.break_glass"]
    assert (admin.id, rest.running.tenant.id, "admin") == (
        kept["actor"]["id"], kept["tenant"], kept["chain"],
    )  # fmt: skip


# By whoever knows the old one ----------------------------------------------------------------


@promise("people:password-ends-sessions")
async def test_a_changed_password_ends_every_other_session_and_the_old_password(
    rest: Rest, mails: MailReceiver
) -> None:
    anna = await with_address(rest, "anna")
    elsewhere = await signed_in(rest, "anna", anna.password)
    done = await change(rest, anna, anna.password)

    assert (200, 1) == (done.status, done.json["sessions_ended"])
    assert 200 == (await rest.get("/api/v1/me", key=anna.token)).status
    check(await rest.get("/api/v1/me", key=elsewhere.token), 401, "session_expired")
    check(await sign_in(rest, "anna", anna.password), 401, "unauthenticated")
    assert 200 == (await sign_in(rest, "anna", NEW)).status
    recorded = await types(rest)
    assert 1 == recorded.count("admin.user.password_changed")
    assert 1 == recorded.count("admin.session.ended")
    assert NEW not in str(await rest.records())
    told = await mails.next()
    assert "was changed" in told.get_content()
    assert "#" not in told.get_content()


async def test_whoever_does_not_know_the_old_password_changes_none(rest: Rest) -> None:
    """A session that somebody left behind, or took, is not enough; guessing stops."""
    anna = await joined(rest, "anna")
    rest.clock.advance(61)
    wrong = [await change(rest, anna, f"guess {n}") for n in range(11)]
    assert [403] * 10 + [429] == [answer.status for answer in wrong]
    check(wrong[0], 403, "step_up_required")
    check(await change(rest, anna, anna.password), 429, "rate_limited")
    rest.clock.advance(61)
    assert 10 == (await reasons(rest)).count("old_password_wrong")

    assert 200 == (await change(rest, anna, anna.password)).status


async def test_a_password_is_changed_right_after_a_proof_by_a_person_for_another_one(
    rest: Rest,
) -> None:
    anna = await joined(rest, "anna")
    check(await rest.post(CHANGE, {"old": "x", "new": NEW}), 403, "human_required")
    check(await change(rest, anna, anna.password, "too short"), 422, "validation_failed")
    check(await change(rest, anna, anna.password, anna.password), 422, "validation_failed")
    rest.clock.advance(301)
    check(await change(rest, anna, anna.password), 403, "step_up_required")
    assert "admin.user.password_changed" not in await types(rest)
    assert 200 == (await anna.step_up()).status

    assert 200 == (await change(rest, anna, anna.password)).status


@promise("people:password-ends-sessions")
async def test_what_the_old_password_has_opened_half_way_stays_half(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, _ = await with_totp(rest, anna)
    half = await first_half(rest, anna)
    assert 200 == (await change(rest, anna, anna.password)).status
    refused = await second_half(rest, half["token"], totp=code(rest, secret, steps=1))
    check(refused, 401, "unauthenticated")
    anna.password = NEW
    half = await first_half(rest, anna)

    fine = await second_half(rest, half["token"], totp=code(rest, secret, steps=1))
    assert 200 == fine.status


@promise("people:password-ends-sessions")
async def test_a_password_that_is_changed_while_it_is_looked_at_opens_nothing(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = await joined(rest, "anna")
    matches, changed = Passwords.matches, list[Answered]()

    async def and_then_changed(self: Passwords, stored: str | None, password: str) -> bool:
        fits = await matches(self, stored, password)
        monkeypatch.setattr(Passwords, "matches", matches)
        changed.append(await change(rest, anna, anna.password))
        return fits

    monkeypatch.setattr(Passwords, "matches", and_then_changed)
    late = await sign_in(rest, "anna", anna.password)

    assert [200] == [answer.status for answer in changed]
    check(late, 401, "unauthenticated")


# By a link -----------------------------------------------------------------------------------


@promise("people:links-told-once")
async def test_an_admins_link_sets_another_password_once_and_ends_the_sessions(
    rest: Rest,
) -> None:
    anna = await joined(rest, "anna")
    made = await link_for(rest, anna)
    token = made.json["token"]
    assert (200, False) == (made.status, made.json["mailed"])
    assert f"http://127.0.0.1:8701/reset#{token}" == made.json["link"]
    assert 200 == (await sign_in(rest, "anna", anna.password)).status  # until it is used

    both = await asyncio.gather(use(rest, token), use(rest, token))
    assert [200, 401] == sorted(answer.status for answer in both)
    check(await use(rest, token), 401, "password_reset_invalid")
    check(await rest.get("/api/v1/me", key=anna.token), 401, "session_expired")
    check(await sign_in(rest, "anna", anna.password), 401, "unauthenticated")
    assert 200 == (await sign_in(rest, "anna", NEW)).status
    recorded = await rest.records()
    assert token not in str(recorded)
    assert 1 == [r["type"] for r in recorded].count("admin.user.password_reset_made")
    assert 1 == [r["type"] for r in recorded].count("admin.user.password_changed")
    assert 2 == (await reasons(rest, "user.signin_failed")).count("password_reset_invalid")


async def test_an_admins_link_goes_by_mail_where_it_can(rest: Rest, mails: MailReceiver) -> None:
    anna = await with_address(rest, "anna")
    made = await link_for(rest, anna)
    assert (True, None, None) == (made.json["mailed"], made.json["token"], made.json["link"])
    message, envelope = await mails.next_envelope()

    assert ["anna@x.io"] == envelope.rcpt_tos
    assert 200 == (await use(rest, token_in(message))).status


async def test_what_is_wrong_with_a_link_is_told_alike(rest: Rest) -> None:
    anna, ben = await joined(rest, "anna"), await joined(rest, "ben")
    replaced = (await link_for(rest, anna)).json["token"]
    overtaken = (await link_for(rest, ben)).json["token"]
    assert 200 == (await change(rest, ben, ben.password)).status
    old = (await link_for(rest, anna)).json["token"]
    rest.clock.advance(24 * 3600)
    gone = (await link_for(rest, ben)).json["token"]
    await rest.post(f"{USERS}/{ben.id}:deactivate")

    told = []
    for token in (replaced, overtaken, old, gone, "bhv_rst_" + "x" * 43, "x"):
        answer = await use(rest, token)
        check(answer, 401, "password_reset_invalid")
        told.append({k: v for k, v in answer.json.items() if k != "request_id"})
    assert 1 == len({str(one) for one in told})


async def test_whoever_was_out_comes_back_to_no_link_and_no_half_of_a_sign_in(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, _ = await with_totp(rest, anna)
    token, half = (await link_for(rest, anna)).json["token"], await first_half(rest, anna)
    for verb in ("deactivate", "reactivate"):
        assert 200 == (await rest.post(f"{USERS}/{anna.id}:{verb}")).status
    check(await use(rest, token), 401, "password_reset_invalid")
    proof = code(rest, secret, steps=1)
    check(await second_half(rest, half["token"], totp=proof), 401, "unauthenticated")
    half = await first_half(rest, anna)

    assert 200 == (await second_half(rest, half["token"], totp=proof)).status


async def test_a_link_opens_no_account_that_is_above_who_made_it(rest: Rest) -> None:
    boss, anna = await operator(rest), await joined(rest, "anna", "admin")
    check(await link_for(rest, boss, anna.token), 403, "role_required")
    check(await link_for(rest, anna, rest.key), 403, "human_required")
    author = await joined(rest, "ben", "policy_author")
    check(await link_for(rest, anna, author.token), 403, "role_required")
    rest.clock.advance(301)
    check(await link_for(rest, author, anna.token), 403, "step_up_required")
    assert 200 == (await anna.step_up()).status

    assert 200 == (await link_for(rest, author, anna.token)).status


async def test_a_link_takes_no_second_factor_away(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, _ = await with_totp(rest, anna)
    assert 200 == (await use(rest, (await link_for(rest, anna)).json["token"])).status
    anna.password = NEW
    half = await first_half(rest, anna)

    done = await second_half(rest, half["token"], totp=code(rest, secret, steps=1))
    assert 200 == done.status


async def test_nobody_gets_a_password_where_a_provider_signs_them_in(rest: Rest) -> None:
    anna, ben = await joined(rest, "anna"), await joined(rest, "ben")
    await run(
        rest,
        "INSERT INTO control.auth_settings (tenant_id, provider, revision, updated_at)"
        " VALUES ($1, 'oidc', 1, now())",
        rest.running.tenant.id,
    )
    await run(rest, "UPDATE control.users SET password_hash = NULL WHERE id = $1", anna.id)
    check(await link_for(rest, anna), 409, "conflict")

    assert 200 == (await link_for(rest, ben)).status


# By mail -------------------------------------------------------------------------------------


async def forgotten(rest: Rest, name: str) -> Answered:
    return await rest.post(FORGOT, {"username": name}, key=None)


async def recorded(rest: Rest, kind: str, times: int) -> list[dict[str, Any]]:
    """What comes after an answer, as soon as it is there."""

    async def look() -> list[dict[str, Any]]:
        return [r for r in await rest.records() if (r.get("reason") or r["type"]) == kind]

    return await ask_until(look, lambda found: len(found) >= times)


@promise("people:not-told-apart")
async def test_whoever_forgot_finds_a_link_in_their_mail_and_nobody_else_learns_of_it(
    rest: Rest, mails: MailReceiver
) -> None:
    await with_address(rest, "anna")
    told = [await forgotten(rest, name) for name in ("anna", "nobody", "' OR 1=1 --")]
    assert [202] * 3 == [answer.status for answer in told]
    assert 1 == len({answer.body for answer in told})
    assert 1 == len({str(sorted(answer.headers)) for answer in told})
    message, envelope = await mails.next_envelope()
    assert ["anna@x.io"] == envelope.rcpt_tos
    await recorded(rest, "reset_for_nobody", 2)
    assert 1 == len(await recorded(rest, "user.password_reset_asked", 1))

    assert 200 == (await use(rest, token_in(message))).status
    assert 200 == (await sign_in(rest, "anna", NEW)).status
    assert 2 == len(mails.raw) or "was changed" in (await mails.next()).get_content()


@promise("people:not-told-apart")
async def test_nothing_is_looked_at_before_whoever_forgot_has_their_answer(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is work: the answer is there while the database has been asked nothing."""
    await with_address(rest, "anna")
    asked = list[Any]()
    monkeypatch.setattr(rest.running.control.supervisor, "once", lambda *one: asked.append(one))
    counters, costs = rest.running.control.pool.counters, []
    for name in ("anna", "nobody"):
        tries = []
        for _ in range(4):  # what runs beside requests is counted with them
            before = counters.statements
            assert 202 == (await forgotten(rest, name)).status
            tries.append(counters.statements - before)
        costs.append(min(tries))

    assert [0, 0] == costs
    assert 8 == len(asked)


@promise("people:guessing-stops")
async def test_letters_are_asked_for_a_few_times(rest: Rest, mails: MailReceiver) -> None:
    await with_address(rest, "anna")
    for _ in range(4):
        assert 202 == (await forgotten(rest, "anna")).status
    await recorded(rest, "reset_too_often", 1)
    for _ in range(3):
        await mails.next()
    for n in range(6):
        assert 202 == (await forgotten(rest, f"name-{n}")).status
    check(await forgotten(rest, "anna"), 429, "rate_limited")
    rest.clock.advance(901)
    assert 202 == (await forgotten(rest, "anna")).status

    token = token_in(await mails.next())
    rest.clock.advance(3600)
    check(await use(rest, token), 401, "password_reset_invalid")


async def test_without_a_mail_server_or_an_address_no_link_is_made(
    rest: Rest, mails: MailReceiver
) -> None:
    await joined(rest, "anna")
    assert 202 == (await forgotten(rest, "anna")).status
    assert 202 == (await forgotten(rest, "nobody")).status
    await recorded(rest, "reset_for_nobody", 1)

    assert [] == mails.raw
    assert "user.password_reset_asked" not in await types(rest)


@promise("people:guessing-stops")
async def test_guessing_links_stops_and_is_on_record(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    token = (await link_for(rest, anna)).json["token"]
    statuses = [(await use(rest, f"bhv_rst_{n:043d}")).status for n in range(31)]
    assert [401] * 30 + [429] == statuses
    check(await use(rest, token), 429, "rate_limited")
    rest.clock.advance(61)
    assert 200 == (await use(rest, token)).status

    failed = [r for r in await rest.records() if r["type"] == "user.signin_failed"]
    assert 10 <= sum(r["reason"] == "password_reset_invalid" for r in failed)


# The pages behind links ----------------------------------------------------------------------


@promise("people:links-told-once")
@pytest.mark.parametrize("page", ["join", "reset"])
async def test_a_link_leads_to_a_page_that_uses_it_once(rest: Rest, page: str) -> None:
    """By plain forms; looking at it uses nothing up, and no address holds the token."""
    if page == "join":
        made, name = await invited(rest, "new@example.org"), "new@example.org"
    else:
        made, name = await link_for(rest, await joined(rest, "anna")), "anna"
    token, link = made.json["token"], made.json["link"]
    browser = Browser(rest=rest)
    for _ in range(2):
        shown = await browser.open(urlsplit(link).path)
        assert (200, f"/{page}", "") == (shown.status, urlsplit(link).path, urlsplit(link).query)
        assert token not in shown.body.decode()
    typed = {"token": token, "password": NEW, "again": NEW}
    shown = browser.page
    for bent, status in (
        ({"again": "another one entirely"}, 422),
        ({"password": "short", "again": "short"}, 422),
        ({"token": "x"}, 401),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": None}, 403),
    ):
        browser.page = shown
        answer = await browser.submit(page, **{**typed, **bent})
        assert status == answer.status, bent
        assert NEW not in answer.body.decode()
    browser.page = shown
    assert 200 == (await browser.submit(page, **typed)).status
    assert f"Sign in as {name}" in browser.text
    assert "behavry_local" not in browser.cookies
    browser.page = shown
    assert 401 == (await browser.submit(page, **typed)).status

    assert 200 == (await sign_in(rest, name, NEW)).status
    assert 2 == (await reasons(rest)).count("csrf_failed")
