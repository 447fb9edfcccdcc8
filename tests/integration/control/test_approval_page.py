"""The page where a person decides: what it shows, to whom, and from where it takes an answer."""

import json
import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from services.control.roles import Role
from tests.fakes.authenticator import Authenticator
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import (
    Somebody,
    asked,
    decided,
    joined,
    run,
    state_of,
    statements,
)
from tests.integration.control.factors import ORIGIN, STEP_UP, code, with_passkey, with_totp
from tests.integration.control.planes import linked
from tests.promises import promise

FORM: Final = "application/x-www-form-urlencoded"
EVIL: Final = "https://elsewhere.example"
GONE: Final = "0199d0d0-0000-7000-8000-0000000000ff"


class _Forms(HTMLParser):
    """The forms of a page: action -> fields, by the act that they stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append({"": named["action"]})
        if tag in {"input", "textarea"} and self.forms:
            self.forms[-1][named["name"]] = named.get("value", "")


@dataclass(kw_only=True)
class Browser:
    """A browser without script: cookies, forms, redirects."""

    rest: Rest
    cookies: dict[str, str] = field(default_factory=dict)
    page: Answered = field(init=False)

    async def open(self, path: str) -> Answered:
        return await self._send("GET", path)

    async def submit(self, act: str, /, *, origin: str | None = PUBLIC, **fields: str) -> Answered:
        """The form of that act (or that leads to an address of that name), and where it leads."""
        form = self.form(act)
        body = {**form, **fields}
        action = body.pop("")
        headers = {"content-type": FORM} | ({"origin": origin} if origin else {})
        answer = await self._send("POST", action, urlencode(body), headers)
        if answer.status == 303:
            return await self.open(answer.headers["location"])
        return answer

    def form(self, act: str) -> dict[str, str]:
        for form in self.forms:
            if form.get("act") == act or form[""].endswith(f"/{act}"):
                return form
        raise AssertionError(f"no form for {act}")

    @property
    def forms(self) -> list[dict[str, str]]:
        parser = _Forms()
        parser.feed(self.page.body.decode())
        return parser.forms

    @property
    def acts(self) -> set[str]:
        return {form["act"] for form in self.forms if "act" in form}

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", self.page.body.decode()))

    async def _send(
        self, method: str, path: str, data: str | None = None, headers: Any = None
    ) -> Answered:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {**(headers or {}), **({"cookie": cookie} if cookie else {})}
        async with self.rest.http.request(
            method, self.rest.base + path, data=data, headers=sent, allow_redirects=False
        ) as answer:
            for text in answer.headers.getall("set-cookie", []):
                name, _, value = text.partition(";")[0].partition("=")
                self.cookies[name] = value
                if "Max-Age=0" in text:
                    del self.cookies[name]
            self.page = Answered(
                status=answer.status,
                headers={name.lower(): value for name, value in answer.headers.items()},
                body=await answer.read(),
                json=None,
                cookies=answer.headers.getall("set-cookie", []),
            )
        self.page.looked_at(f"{method} {path}")
        return self.page


async def one(rest: Rest, **more: Any) -> str:
    async with linked(rest) as plane:
        return await asked(rest, plane, **more)


def password(rest: Rest) -> str:
    return (rest.state / "admin-password").read_text().strip()


async def signed_in(
    rest: Rest, escalation: str, username: str = "admin", secret: str = ""
) -> Browser:
    """A browser that followed the link and signed in."""
    browser = Browser(rest=rest)
    await browser.open(f"/approve/{escalation}")
    secret = secret or password(rest)
    answer = await browser.submit("sign-in", username=username, password=secret)
    assert 200 == answer.status
    return browser


# What is shown -------------------------------------------------------------------------------


@promise("page:approves-without-script")
async def test_a_person_follows_the_link_signs_in_and_approves_once(rest: Rest) -> None:
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        browser = await signed_in(rest, escalation)
        for word in ("demo-agent", "git_commit", "repo/one", "commits are looked at", "policy",
                     "depth", "in 4 hours", "within 15 minutes",
                     "One person suffices"):  # fmt: skip
            assert word in browser.text, word
        assert {"once", "grant", "deny"} == browser.acts
        answer = await browser.submit("once", reason="fine")
        said = decided(rest, await plane.next("escalation_decision"))

    assert (200, "approve", 1) == (answer.status, said["verdict"], said["uses"])
    assert "This call is approved. It may be made once, until" in browser.text
    assert {"revoke"} == browser.acts
    assert "UTC: fine" in browser.text


async def test_a_person_approves_for_a_while(rest: Rest) -> None:
    async with linked(rest) as plane:
        browser = await signed_in(rest, await asked(rest, plane))
        await browser.submit("grant", minutes="30", uses="3")
        said = decided(rest, await plane.next("escalation_decision"))

    assert (3, 1_800_000) == (said["uses"], said["execute_by_ms"] - said["decided_at_ms"])
    assert "It may be made 3 times" in browser.text


async def test_a_person_denies_and_says_why(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    silent = await browser.submit("deny")
    kept = await state_of(rest, escalation)
    await browser.submit("deny", reason="not\r\non Fridays")

    assert (422, "pending") == (silent.status, kept)
    assert "denied" == await state_of(rest, escalation)
    assert "This call was denied." in browser.text
    assert "not on Fridays" in browser.text
    assert set() == browser.acts


async def test_an_approval_is_taken_back(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    await browser.submit("once")
    await browser.submit("revoke")

    assert "revoked" == await state_of(rest, escalation)


async def test_a_second_click_finds_it_decided(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    form, page = browser.form("once"), browser.page
    await browser.submit("once")
    browser.page = page
    assert form == browser.form("once")
    again = await browser.submit("once")

    assert 409 == again.status
    assert "It is approved." in browser.text
    assert 1 == len([r for r in await rest.records() if r["type"] == "admin.escalation.approve"])


async def test_half_of_a_quorum_is_said_to_be_half(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    escalation = await one(rest, quorum=2)
    browser = await signed_in(rest, escalation)
    await browser.submit("once")
    first = browser.text
    assert {"deny"} == browser.acts
    other = await signed_in(rest, escalation, "anna", anna.password)
    await other.submit("once")

    assert "1 of 2 needed have approved it" in first
    assert "approved" == await state_of(rest, escalation)


async def test_what_would_hide_or_inject_is_spelled_out(rest: Rest) -> None:
    hostile = "a\u202eb\u200bc<script>alert(1)</script>\"'&\n\x1b[0m\u2066"
    escalation = await one(
        rest, tool=hostile, resource=hostile, reason=hostile, agent_name=hostile,
        codes=[hostile], policies=[hostile], requester_id=hostile, server=hostile,
        features=json.dumps({"k\u202e": "<b>v\u202e</b>"}).encode(),
        finding_tags=[hostile], tier=hostile, action=hostile, resource_kind=hostile,
    )  # fmt: skip
    browser = await signed_in(rest, escalation)
    text = browser.page.body.decode()

    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<b>" not in text
    for hidden in "\u202e\u200b\u2066\x1b":
        assert hidden not in text
        assert f"[U+{ord(hidden):04X}]" in text


async def test_what_the_call_looks_like_is_told_in_words(rest: Rest) -> None:
    features = {
        "arg_bytes": 73, "overflow": False, "urls": [], "depth": 0, "share": 0.5,
        "keys": [{"name": "repo_path", "type": "string"}, {"name": "message", "type": "string"}],
        "paths": [{"value": "/etc/passwd", "protected": True, "config": False}],
        "odd": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}, "none": None,
    }  # fmt: skip
    browser = await signed_in(rest, await one(rest, features=json.dumps(features).encode()))
    for words in ("arg bytes 73", "keys repo_path, type: string; message, type: string",
                  "paths /etc/passwd, protected: yes", "share 0.5"):  # fmt: skip
        assert words in browser.text, words
    for unsaid in ("overflow", "urls", "odd", "none "):
        assert unsaid not in browser.text.partition("What the call looks like")[2]


async def test_every_end_of_a_call_is_told_in_words(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    for state, words in {
        "expired": "Nobody decided in time", "superseded": "has to ask anew",
        "consumed": "used up", "lapsed": "not made in time", "cancelled": "withdrawn",
        "revoked": "taken back",
    }.items():  # fmt: skip
        await run(
            rest, "UPDATE control.escalations SET state = $1 WHERE id = $2", state, escalation
        )
        await browser.open(f"/approve/{escalation}")
        assert words in browser.text, state
        assert set() == browser.acts


# To whom -------------------------------------------------------------------------------------


async def test_before_the_sign_in_nothing_depends_on_the_address(rest: Rest) -> None:
    escalation = await one(rest)
    pages = []
    for named in (escalation, GONE):
        answer = await Browser(rest=rest).open(f"/approve/{named}")
        assert 200 == answer.status
        pages.append(re.sub(r'value="[^"]*"', "", answer.body.decode()).replace(named, "ID"))

    assert pages[0] == pages[1]
    assert "git_commit" not in pages[0]


@promise("tenancy:others-are-not-found")
async def test_an_unknown_call_and_another_tenants_look_alike(rest: Rest) -> None:
    tenant = str(uuid4())
    await run(
        rest, "INSERT INTO control.tenants VALUES ($1, 'second', 'Second', 'active', now())", tenant
    )
    foreign = await one(rest, tenant_id=tenant)
    browser = await signed_in(rest, await one(rest))
    pages = []
    for named in (foreign, GONE):
        answer = await browser.open(f"/approve/{named}")
        assert 404 == answer.status
        pages.append(answer.body.decode().replace(named, "ID"))

    assert pages[0] == pages[1]
    answer = await browser.submit("sign-out")
    assert 200 == answer.status


async def test_a_viewer_looks_and_cannot_answer(rest: Rest) -> None:
    vera = await joined(rest, "vera", Role.VIEWER.key)
    escalation = await one(rest)
    admin = await signed_in(rest, escalation)
    browser = await signed_in(rest, escalation, "vera", vera.password)
    assert "may look at this but not decide" in browser.text
    assert set() == browser.acts
    borrowed, csrf = admin.page, browser.form("sign-out")["csrf"]
    browser.page = borrowed
    answer = await browser.submit("once", csrf=csrf)

    assert (403, "pending") == (answer.status, await state_of(rest, escalation))


async def test_who_asked_is_not_offered_to_approve(rest: Rest) -> None:
    await joined(rest, "anna")
    escalation = await one(rest, requester_id="admin", requester_verified=True)
    browser = await signed_in(rest, escalation)

    assert {"deny"} == browser.acts
    assert "somebody else has to approve it" in browser.text


async def test_a_wrong_password_and_an_unknown_user_look_alike(rest: Rest) -> None:
    browser = Browser(rest=rest)
    await browser.open(f"/approve/{GONE}")
    pages = []
    for name in ("admin", "nobody"):
        answer = await browser.submit("sign-in", username=name, password="wrong wrong wrong")
        assert 401 == answer.status
        pages.append(answer.body)

    assert pages[0] == pages[1]
    assert "User name or password is wrong." in browser.text
    assert ["behavry_sign_in"] == list(browser.cookies)


async def test_signing_in_is_limited_here_too(rest: Rest) -> None:
    browser = Browser(rest=rest)
    await browser.open(f"/approve/{GONE}")
    for _ in range(11):
        await browser.submit("sign-in", username="admin", password="wrong wrong wrong")

    assert 429 == browser.page.status
    assert 1 <= int(browser.page.headers["retry-after"]) <= 60


# The password again --------------------------------------------------------------------------


async def test_high_risk_asks_for_the_password_and_keeps_what_was_typed(rest: Rest) -> None:
    escalation = await one(rest, tier="high")
    browser = await signed_in(rest, escalation)
    assert "password" not in browser.form("once")
    rest.clock.advance(6 * 60)
    late = await browser.submit("once", reason="<looked> at it")
    assert (403, "pending") == (late.status, await state_of(rest, escalation))
    assert "&lt;looked&gt; at it" in late.body.decode()
    before = dict(browser.cookies)
    wrong = await browser.submit("once", password="wrong wrong wrong")
    right = await browser.submit("once", password=password(rest))

    assert (403, 200) == (wrong.status, right.status)
    assert "approved" == await state_of(rest, escalation)
    assert before != browser.cookies  # another session id
    old = Browser(rest=rest, cookies=before)
    assert "Sign in to decide" in (await old.open(f"/approve/{escalation}")).body.decode()


async def test_a_session_that_ended_asks_for_a_sign_in_and_decides_nothing(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    rest.clock.advance(31 * 60)
    answer = await browser.submit("once")

    assert (401, "pending") == (answer.status, await state_of(rest, escalation))
    assert "Your session has ended" in browser.text
    await browser.submit("sign-in", username="admin", password=password(rest))
    assert {"once", "grant", "deny"} == browser.acts


# From where ----------------------------------------------------------------------------------


@promise("people:own-page-writes")
async def test_an_answer_comes_from_our_own_page_or_is_none(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    page = browser.page
    for spoilt in (
        {"origin": None}, {"origin": "null"}, {"origin": "https://elsewhere.example"},
        {"csrf": ""}, {"csrf": "x"},
    ):  # fmt: skip
        browser.page = page
        answer = await browser.submit("once", **spoilt)
        assert 403 == answer.status, spoilt
        assert "Nothing was done." in browser.text
    assert "pending" == await state_of(rest, escalation)

    browser.page = page
    assert 200 == (await browser.submit("once", origin="http://localhost:8701")).status
    assert "approved" == await state_of(rest, escalation)


async def test_another_site_cannot_sign_a_browser_in(rest: Rest) -> None:
    """Neither by sending our form from elsewhere nor with a form that it got for itself."""
    victim, attacker = Browser(rest=rest), Browser(rest=rest)
    for browser in (victim, attacker):
        await browser.open(f"/approve/{GONE}")
    good = {"username": "admin", "password": password(rest)}
    elsewhere = await victim.submit("sign-in", origin="https://elsewhere.example", **good)
    await victim.open(f"/approve/{GONE}")
    stolen = attacker.form("sign-in")["token"]
    planted = await victim.submit("sign-in", token=stolen, **good)

    assert [403, 403] == [elsewhere.status, planted.status]
    assert "behavry_local" not in victim.cookies


async def test_a_planted_session_id_is_not_taken_over(rest: Rest) -> None:
    planted = "A" * 43
    browser = Browser(rest=rest, cookies={"behavry_local": planted})
    await browser.open(f"/approve/{GONE}")
    await browser.submit("sign-in", username="admin", password=password(rest))

    assert planted != browser.cookies["behavry_local"]


async def test_signing_out_needs_our_own_page_and_ends_the_session(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    kept, page = dict(browser.cookies), browser.page
    assert 403 == (await browser.submit("sign-out", origin="https://elsewhere.example")).status
    browser.page = page
    await browser.submit("sign-out")

    assert "behavry_local" not in browser.cookies
    again = Browser(rest=rest, cookies=kept)
    assert "Sign in to decide" in (await again.open(f"/approve/{escalation}")).body.decode()


@promise("page:nobody-frames-it")
async def test_nobody_frames_the_page_and_it_loads_nothing_from_elsewhere(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    answers = [browser.page, await browser.open(f"/approve/{GONE}"),
               await browser.open("/approve/style.css"),
               await Browser(rest=rest).open(f"/approve/{GONE}")]  # fmt: skip
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert {
            "default-src 'none'", "style-src 'self'", "form-action 'self'",
            "frame-ancestors 'none'", "base-uri 'none'",
        } == set(policy.split("; "))  # fmt: skip
        assert "DENY" == answer.headers["x-frame-options"]
        assert "same-origin" == answer.headers["referrer-policy"]
        text = answer.body.decode()
        assert not re.search(r'(?:src|href|action)="(?!/approve/)', text)
        assert not re.search(r"<script|style=|\son\w+=", text)
    assert "no-store" == answers[0].headers["cache-control"]


@promise("people:own-page-writes")
async def test_what_came_from_elsewhere_is_on_record(rest: Rest) -> None:
    escalation = await one(rest)
    browser, visitor = await signed_in(rest, escalation), Browser(rest=rest)
    page = browser.page
    await visitor.open(f"/approve/{GONE}")
    asked = visitor.page
    good = {"username": "admin", "password": password(rest)}
    for act, who, at, bent in (
        ("once", browser, page, {"origin": EVIL}),
        ("once", browser, page, {"csrf": "x"}),
        ("sign-out", browser, page, {"origin": None}),
        ("sign-in", visitor, asked, {"origin": EVIL, **good}),
        ("sign-in", visitor, asked, {"token": "x", **good}),
    ):
        who.page = at
        assert 403 == (await who.submit(act, **bent)).status, (act, bent)

    refused = [r for r in await rest.records() if r["type"] == "user.request_refused"]
    assert [("csrf_failed", rest.running.tenant.id)] * 3 == [
        (r["reason"], r["tenant"]) for r in refused if r["actor"]["kind"] == "user"
    ]
    assert ["csrf_failed"] * 2 == [r["reason"] for r in refused if r["actor"]["kind"] == "unknown"]


# A second factor -----------------------------------------------------------------------------


def options_of(browser: Browser) -> dict[str, Any]:
    """What the page's script would ask a passkey."""
    found = re.search(r'data-passkey="([^"]*)"', browser.page.body.decode())
    assert found
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


async def half_way(rest: Rest, escalation: str, person: Somebody) -> Browser:
    browser = Browser(rest=rest)
    await browser.open(f"/approve/{escalation}")
    answer = await browser.submit("sign-in", username=person.name, password=person.password)
    assert 200 == answer.status
    assert "behavry_local" not in browser.cookies
    return browser


async def fresh_options(browser: Browser) -> tuple[str, dict[str, Any]]:
    """What the script fetches for a step-up, and the challenge's token."""
    headers = {"x-csrf-token": browser.form("once")["csrf"], "origin": PUBLIC}
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    answer = await browser.rest.post(
        f"{STEP_UP}:begin", key=None, headers=headers | {"cookie": cookie}
    )
    assert 200 == answer.status, answer.body
    return answer.json["token"], answer.json["passkey"]


@promise("page:passkeys-decide")
async def test_whoever_has_nothing_but_a_passkey_signs_in_and_approves_by_it(rest: Rest) -> None:
    anna, key = await joined(rest, "anna"), Authenticator(origin=ORIGIN)
    assert 201 == (await with_passkey(rest, anna, key)).status
    escalation = await one(rest, tier="high")
    browser = await half_way(rest, escalation, anna)
    for policy in ("script-src 'self'", "connect-src 'self'", "default-src 'none'"):
        assert policy in browser.page.headers["content-security-policy"].split("; ")
    assert "this browser runs none here" in browser.text
    proof = json.dumps(key.get(options_of(browser)))
    assert 200 == (await browser.submit("second-factor", passkey=proof)).status
    assert {"once", "grant", "deny"} == browser.acts
    assert "<script" not in browser.page.body.decode()  # there is nothing to prove yet

    rest.clock.advance(6 * 60)
    await browser.open(f"/approve/{escalation}")
    assert '<script src="/approve/page.js" defer></script>' in browser.page.body.decode()
    assert "password" not in browser.form("once")
    page, before = browser.page, dict(browser.cookies)
    for wrong in ("", "{", "[]", "1", json.dumps(key.get((await fresh_options(browser))[1]))):
        browser.page = page
        assert 403 == (await browser.submit("once", passkey=wrong, challenge="x")).status, wrong
    assert "pending" == await state_of(rest, escalation)
    browser.page = page
    challenge, options = await fresh_options(browser)
    proof = json.dumps(key.get(options))
    assert 200 == (await browser.submit("once", passkey=proof, challenge=challenge)).status

    assert "approved" == await state_of(rest, escalation)
    assert before != browser.cookies
    assert "user.step_up" in [record["type"] for record in await rest.records()]


async def test_the_other_half_takes_a_code_and_nothing_that_is_wrong(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, codes = await with_totp(rest, anna)
    escalation = await one(rest)
    for good in (code(rest, secret, steps=1), codes[0]):
        for wrong in ("", "000000", "x", "x" * 64):
            browser = await half_way(rest, escalation, anna)
            answer = await browser.submit("second-factor", code=wrong)
            assert (401, "behavry_local" in browser.cookies) == (answer.status, False), wrong
        browser = await half_way(rest, escalation, anna)
        page = browser.page
        assert 403 == (await browser.submit("second-factor", code=good, token="x")).status
        browser.page = page
        assert 200 == (await browser.submit("second-factor", code=good)).status
        assert {"once", "grant", "deny"} == browser.acts
        rest.clock.advance(61)

    refused = [r for r in await rest.records() if r.get("reason") == "second_factor_refused"]
    assert 8 == len(refused)


async def test_a_form_that_was_bent_decides_nothing(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    page = browser.page
    bent: list[dict[str, str]] = [
        {"minutes": "61"}, {"minutes": "0"}, {"minutes": "-1"}, {"minutes": "x"}, {"minutes": ""},
        {"uses": "21"}, {"uses": "\u0661"}, {"reason": "x" * 501}, {"reason": "a\0b"},
        {"act": "sudo"}, {"act": ""},
    ]  # fmt: skip
    for fields in bent:
        browser.page = page
        assert 422 == (await browser.submit("grant", **fields)).status, fields

    assert "pending" == await state_of(rest, escalation)


async def test_refusals_are_said_in_words(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)
    path = f"/approve/{escalation}"
    odd: list[tuple[str, str, str, str, int]] = [
        ("GET", "/approve/planted-7f3a91", "", FORM, 404),
        ("DELETE", path, "", FORM, 405),
        ("POST", path, "{}", "application/json", 415),
        ("POST", path, "a=%ff", FORM, 400),
        ("POST", path, "&".join(f"f{n}=1" for n in range(30)), FORM, 400),
        ("POST", path, "a=" + "x" * 20_000, FORM, 413),
    ]
    for method, where, data, kind, status in odd:
        answer = await browser._send(method, where, data, {"content-type": kind, "origin": PUBLIC})
        assert status == answer.status, (method, where, data[:20])
        assert "text/html" in answer.headers["content-type"]
        assert "planted" not in answer.body.decode()
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]

    assert "pending" == await state_of(rest, escalation)


async def test_looking_costs_two_statements(rest: Rest) -> None:
    escalation = await one(rest)
    browser = await signed_in(rest, escalation)

    assert 2 >= await statements(rest, lambda: browser.open(f"/approve/{escalation}"))
