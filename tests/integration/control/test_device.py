"""A command line without a browser gets a session (RFC 8628): somebody signed in says yes on our
page. However they signed in; never more than they have, nor for longer; and nobody guesses a code.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import pytest

from services.control import device_codes
from services.control.api.auth_device import MAX_OPEN
from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.openid import openid_provider
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import Somebody, joined, run
from tests.integration.control.factors import code as code_of
from tests.integration.control.factors import with_totp
from tests.integration.control.openid import CALLBACK, SESSION, Browser, failures, signs_in_by
from tests.integration.control.test_oidc import sent
from tests.integration.control.test_problems import check
from tests.promises import promise

AUTHORIZE: Final = "/api/v1/auth/device/authorize"
TOKEN: Final = "/api/v1/auth/device/token"
FORM: Final = {"content-type": "application/x-www-form-urlencoded", "origin": PUBLIC}
_HIDDEN: Final = re.compile(r'name="(token|csrf|challenge)" value="([^"]*)"')


async def asks(rest: Rest, path: str, **form: str) -> Answered:
    data = urlencode({"client_id": device_codes.CLIENT, **form})
    return await rest.call("POST", path, data=data, headers=FORM, key=None)


@dataclass(kw_only=True)
class Device:
    """A command line that waits."""

    rest: Rest
    told: dict[str, Any]

    @property
    def page(self) -> str:
        return str(urlsplit(self.told["verification_uri_complete"]).path)

    async def poll(self, **bent: str) -> Answered:
        """In time."""
        self.rest.clock.advance(device_codes.INTERVAL_S)
        return await self.poll_now(**bent)

    async def poll_now(self, **bent: str) -> Answered:
        form = {"grant_type": device_codes.GRANT_TYPE, "device_code": self.told["device_code"]}
        return await asks(self.rest, TOKEN, **{**form, **bent})

    async def hears(self, error: str, status: int = 400) -> None:
        answer = await self.poll()
        assert (status, error) == (answer.status, answer.json["error"])


async def begun(rest: Rest, **form: str) -> Device:
    answer = await asks(rest, AUTHORIZE, **form)
    assert 200 == answer.status, answer.body
    return Device(rest=rest, told=answer.json)


@dataclass(kw_only=True)
class Page(Browser):
    """A browser that fills in forms."""

    async def submit(self, path: str, *, of: str = "", **typed: str) -> Answered:
        """`of`: the page with the form; its hidden fields go along."""
        shown = await self.get(of) if of else None
        hidden = dict(_HIDDEN.findall(shown.body.decode())) if shown else {}
        return await self.send(path, **{**hidden, **typed})

    async def sign_in_as(self, person: Somebody, page: str) -> Answered:
        return await self.submit(
            f"{page}/sign-in", of=page, username=person.name, password=person.password
        )


@pytest.fixture
async def anna(rest: Rest) -> Somebody:
    return await joined(rest, "anna")


@pytest.fixture
def page(rest: Rest) -> Page:
    return Page(rest=rest)


@promise("people:device")
async def test_somebody_with_a_password_lets_a_device_in(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    device = await begun(rest)
    assert f"{PUBLIC}/device" == device.told["verification_uri"]
    assert (600, 5) == (device.told["expires_in"], device.told["interval"])
    await device.hears("authorization_pending")
    form = await page.get(device.page)
    assert device.told["user_code"] not in form.body.decode().replace(device.page, "")
    assert 303 == (await page.sign_in_as(anna, device.page)).status
    shown = (await page.get(device.page)).body.decode()
    for told in (device.told["user_code"], "127.0.0.1", "anna", "analyst", "default"):
        assert told in shown
    await device.hears("authorization_pending")  # looking at it says nothing
    assert 200 == (await page.submit(device.page, of=device.page, act="approve")).status
    got = await device.poll()

    assert (200, "Bearer", "no-store") == (
        got.status, got.json["token_type"], got.headers["cache-control"]
    )  # fmt: skip
    me = (await rest.get("/api/v1/me", key=got.json["access_token"])).json
    assert (anna.id, "analyst") == (me["id"], me["role"])
    await device.hears("invalid_grant")  # once
    assert "device_code_spent" == (await failures(rest))[-1]
    types = [(one["type"], one.get("reason")) for one in await rest.records()]
    assert ("user.device_approved", None) in types
    assert ("user.signin", "device") in types
    text = str(await rest.records())
    assert device.told["device_code"] not in text
    assert device.told["user_code"] not in text


@promise("people:device")
async def test_somebody_with_a_provider_lets_a_device_in_and_the_provider_ends_it(
    rest: Rest, clock: ManualClock, page: Page
) -> None:
    async with openid_provider(clock) as provider:
        await signs_in_by(rest, provider.url)
        device = await begun(rest, tenant="default")
        form = (await page.get(device.page, tenant="default")).body.decode()
        [link] = re.findall(r'href="(/api/v1/auth/login[^"]*)"', form)
        location = (await page.get(link.replace("&amp;", "&"))).headers["location"]
        back = await page.get(CALLBACK, **provider.consent(location, sid="s1"))
        assert (303, device.page) == (back.status, back.headers["location"])
        assert 200 == (await page.submit(device.page, of=device.page, act="approve")).status
        token = (await device.poll()).json["access_token"]
        me = (await rest.get("/api/v1/me", key=token)).json
        assert "anna" in me["name"]
        assert 200 == (await sent(rest, provider.logout_token(sub="anna", sid="s1"))).status

        check(await rest.get("/api/v1/me", key=token), 401, "session_expired")


async def test_whoever_denies_it_or_waits_too_long_gives_nothing(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    denied, late = await begun(rest), await begun(rest)
    await page.sign_in_as(anna, denied.page)
    assert 200 == (await page.submit(denied.page, of=denied.page, act="deny")).status
    await denied.hears("access_denied")
    await denied.hears("access_denied")
    assert 404 == (await page.submit(denied.page, of=denied.page, act="approve")).status
    rest.clock.advance(600)
    await late.hears("expired_token")
    assert 404 == (await page.submit(late.page, of=late.page, act="approve")).status
    await late.hears("expired_token")
    rest.clock.advance(700)
    await begun(rest)  # whoever begins sweeps
    await late.hears("invalid_grant")

    assert "user.device_denied" in [one["type"] for one in await rest.records()]
    assert "device_code_unknown" == (await failures(rest))[-1]


async def test_whoever_asks_too_often_is_told_to_slow_down_for_good(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    device = await begun(rest)
    assert "authorization_pending" == (await device.poll_now()).json["error"]
    for _ in range(2):
        assert "slow_down" == (await device.poll_now()).json["error"]
    rest.clock.advance(14)
    assert "slow_down" == (await device.poll_now()).json["error"]  # it is 15 s by now
    rest.clock.advance(20)
    assert "authorization_pending" == (await device.poll_now()).json["error"]
    await page.sign_in_as(anna, device.page)
    await page.submit(device.page, of=device.page, act="approve")
    rest.clock.advance(19)
    assert "slow_down" == (await device.poll_now()).json["error"]
    rest.clock.advance(25)
    assert 200 == (await device.poll_now()).status


@promise("people:device")
async def test_what_is_given_ends_with_whoever_gave_it(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    """Their session, their account, its twelve hours."""
    for end in (
        (
            "UPDATE control.user_sessions SET ended_at = now()"
            " FROM control.users u WHERE u.id = user_id AND username = 'anna' AND kind = 'browser'"
        ),
        "UPDATE control.users SET status = 'deactivated' WHERE username = 'anna'",
    ):
        device, page = await begun(rest), Page(rest=rest)
        await page.sign_in_as(anna, device.page)
        assert 200 == (await page.submit(device.page, of=device.page, act="approve")).status
        await run(rest, end)
        await device.hears("invalid_grant")
    await run(rest, "UPDATE control.users SET status = 'active' WHERE username = 'anna'")
    page = Page(rest=rest)
    await page.sign_in_as(anna, (await begun(rest)).page)
    rest.clock.advance(29 * 60)
    await page.me()
    rest.clock.advance(29 * 60)
    device = await begun(rest)
    assert 200 == (await page.submit(device.page, of=device.page, act="approve")).status
    got = (await device.poll()).json
    token = got["access_token"]
    assert 12 * 3600 - 58 * 60 - 5 == got["expires_in"]
    me = (await rest.get("/api/v1/me", key=token)).json
    assert (await page.me())["stepped_up_until"] == me["stepped_up_until"]
    for _ in range(26):
        rest.clock.advance(25 * 60)
        assert 200 == (await rest.get("/api/v1/me", key=token)).status
    rest.clock.advance(25 * 60)  # twelve hours after the sign-in, eleven after this

    check(await rest.get("/api/v1/me", key=token), 401, "session_expired")


@promise("people:device")
async def test_codes_of_people_are_not_guessed(rest: Rest, anna: Somebody, page: Page) -> None:
    """Ten per person and five minutes, from wherever; each is on record."""
    device = await begun(rest)
    await page.sign_in_as(anna, device.page)
    other = Page(rest=rest)
    await other.sign_in_as(anna, device.page)
    guesses = [f"BCDF-GHJ{letter}" for letter in device_codes.ALPHABET]
    statuses = [(await (page, other)[n % 2].get(f"/device/{g}")).status
                for n, g in enumerate(guesses[:12])]  # fmt: skip
    assert [404] * 10 + [429] * 2 == statuses
    assert ["user_code_unknown"] * 10 == await failures(rest)
    assert 429 == (await page.get(device.page)).status  # the right one, too
    assert (
        429
        == (
            await page.submit(device.page, act="approve", csrf=(await page.me())["csrf_token"])
        ).status
    )
    rest.clock.advance(301)

    assert 200 == (await page.submit(device.page, of=device.page, act="approve")).status


@promise("people:device")
async def test_codes_of_devices_are_not_guessed(rest: Rest) -> None:
    """Thirty per address and minute; ten of them one by one on record, the others as a number."""
    device = await begun(rest)
    wrong = altered(device.told["device_code"])
    statuses = [(await device.poll_now(device_code=wrong)).status for _ in range(32)]
    assert [400] * 30 + [429] * 2 == statuses
    assert ["device_code_unknown"] * 10 == await failures(rest)
    assert 429 == (await device.poll_now()).status
    rest.clock.advance(61)

    assert "authorization_pending" == (await device.poll_now()).json["error"]
    statuses = [(await asks(rest, AUTHORIZE)).status for _ in range(31)]
    assert [200] * 30 + [429] == statuses


@promise("people:device")
async def test_no_other_page_says_yes(rest: Rest, anna: Somebody, page: Page) -> None:
    device = await begun(rest)
    sign_in = f"{device.page}/sign-in"
    told = {"username": anna.name, "password": anna.password}
    for headers, token in (({"origin": "https://elsewhere.example"}, "x"), ({}, "x")):
        answer = await rest.call(
            "POST", sign_in, data=urlencode({**told, "token": token}), key=None,
            headers={"content-type": FORM["content-type"], **headers},
        )  # fmt: skip
        assert 403 == answer.status
        assert SESSION not in str(answer.cookies)
    await page.sign_in_as(anna, device.page)
    csrf = (await page.me())["csrf_token"]
    for origin, token in (
        ("https://elsewhere.example", csrf),
        (PUBLIC, altered(csrf)),
        (PUBLIC, ""),
    ):
        headers = {**page._headers(), "content-type": FORM["content-type"], "origin": origin}
        data = urlencode({"act": "approve", "csrf": token})
        answer = await rest.call("POST", device.page, data=data, headers=headers, key=None)
        assert 403 == answer.status
    refused = [one for one in await rest.records() if one["type"] == "user.request_refused"]
    assert 5 == len(refused)
    await device.hears("authorization_pending")
    shown = await page.get(device.page)

    assert "frame-ancestors 'none'" in shown.headers["content-security-policy"]
    assert "DENY" == shown.headers["x-frame-options"]


async def test_a_fresh_proof_is_asked_for_where_the_device_needs_one(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    device = await begun(rest, scope="step_up")
    await page.sign_in_as(anna, device.page)
    rest.clock.advance(301)
    assert 403 == (await page.submit(device.page, of=device.page, act="approve")).status
    wrong = await page.submit(device.page, of=device.page, act="approve", password="another one")
    assert 403 == wrong.status
    right = await page.submit(device.page, of=device.page, act="approve", password=anna.password)
    assert 200 == right.status
    token = (await device.poll()).json["access_token"]

    assert (await page.me())["stepped_up_until"] == (
        (await rest.get("/api/v1/me", key=token)).json["stepped_up_until"]
    )


async def test_whoever_has_a_second_factor_gives_it_here_too(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    secret, _ = await with_totp(rest, anna)
    device = await begun(rest)
    half = await page.sign_in_as(anna, device.page)
    assert (200, False) == (half.status, SESSION in page.cookies)
    hidden = dict(_HIDDEN.findall(half.body.decode()))
    path = f"{device.page}/second-factor"
    wrong = await page.submit(path, **hidden, code="000000")
    assert (401, False) == (wrong.status, SESSION in page.cookies)
    half = await page.sign_in_as(anna, device.page)
    hidden = dict(_HIDDEN.findall(half.body.decode()))
    rest.clock.advance(30)
    done = await page.submit(path, **hidden, code=code_of(rest, secret))
    assert (303, True) == (done.status, SESSION in page.cookies)

    assert 200 == (await page.submit(device.page, of=device.page, act="approve")).status
    assert (
        303
        == (
            await page.submit(
                f"{device.page}/sign-out", of="", csrf=(await page.me())["csrf_token"]
            )
        ).status
    )
    check(await page.get("/api/v1/me"), 401, "unauthenticated")
    await device.hears("invalid_grant")  # it ended with the session


async def test_what_is_no_request_is_refused_as_oauth_says(rest: Rest) -> None:
    grant = {"grant_type": device_codes.GRANT_TYPE}
    for path, form, error in (
        (AUTHORIZE, {"client_id": "another"}, "invalid_client"),
        (AUTHORIZE, {"scope": "everything"}, "invalid_scope"),
        (AUTHORIZE, {"redirect_uri": "https://elsewhere.example"}, "invalid_request"),
        (TOKEN, {"grant_type": "password"}, "unsupported_grant_type"),
        (TOKEN, grant, "invalid_grant"),
        (TOKEN, grant | {"device_code": "x" * 201}, "invalid_request"),
    ):
        assert error == (await asks(rest, path, **form)).json["error"]
    await run(
        rest,
        "INSERT INTO control.device_requests SELECT sha256(n::text::bytea),"
        " sha256(('u' || n)::bytea), '', false, now(), 'infinity', 5 FROM generate_series(1, $1) n",
        MAX_OPEN,
    )
    full = await asks(rest, AUTHORIZE)
    assert (429, "rate_limited", "60") == (
        full.status, full.json["error"], full.headers["retry-after"],
    )  # fmt: skip


@promise("people:device")
async def test_a_device_is_answered_once_and_let_in_once_whoever_asks_at_once(
    rest: Rest, anna: Somebody, page: Page
) -> None:
    bob, other = await joined(rest, "bob"), Page(rest=rest)
    device = await begun(rest)
    await page.sign_in_as(anna, device.page)
    await other.sign_in_as(bob, device.page)
    csrf = [(await one.me())["csrf_token"] for one in (page, other)]
    said = await asyncio.gather(
        page.send(device.page, act="approve", csrf=csrf[0]),
        other.send(device.page, act="approve", csrf=csrf[1]),
    )
    assert 1 == [answer.status for answer in said].count(200)
    rest.clock.advance(device_codes.INTERVAL_S)
    polled = await asyncio.gather(*(device.poll_now() for _ in range(5)))

    assert 1 == [answer.status for answer in polled].count(200)
    rest.clock.advance(60)
    assert "invalid_grant" == (await device.poll_now()).json["error"]
    opened = [r for r in await rest.records() if r.get("reason") == "device"]
    assert 1 == len(opened)


async def test_a_code_is_typed_as_people_type(rest: Rest, page: Page) -> None:
    for typed in ("bcdf-ghjk", "BCDF GHJK", " bcdfghjk "):
        answer = await page.get("/device", user_code=typed)
        assert (303, "/device/BCDF-GHJK") == (answer.status, answer.headers["location"])
    for odd in ("ABCD-EFGH", "x", "<script>"):
        answer = await page.get("/device", user_code=odd)
        assert (400, False) == (answer.status, odd in answer.body.decode() and len(odd) > 1)
    assert 404 == (await page.get("/device/bcdf-ghjk")).status
    assert 200 == (await page.get("/device")).status
