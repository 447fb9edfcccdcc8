"""What is proposed is tried by a real sign-in before it comes into force: it opens nothing, and one
that does not work leaves everything as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.openid import CLIENT, SECRET, OpenIdProvider, openid_provider
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import Somebody, joined, run, signed_in
from tests.integration.control.openid import (
    CALLBACK,
    LOGIN,
    SESSION,
    Browser,
    failures,
    signs_in_by,
)
from tests.integration.control.people import entitle, operator
from tests.integration.control.test_auth_settings import PATH, approve, put, tried
from tests.integration.control.test_problems import check
from tests.promises import promise

ROLES: Final = [{"value": "chiefs", "role": "admin"}]


@dataclass(kw_only=True)
class Proposal:
    """Anna proposed a provider; the boss has not said anything yet."""

    rest: Rest
    anna: Somebody
    boss: Somebody
    provider: OpenIdProvider
    oidc: dict[str, Any]

    async def link(self) -> dict[str, str]:
        """What the link says."""
        answer = await tried(self.rest, self.anna)
        assert 200 == answer.status, answer.body
        url = urlsplit(answer.json["uri"])
        assert LOGIN == url.path
        return dict(parse_qsl(url.query))

    async def shown(self) -> dict[str, Any]:
        told: dict[str, Any] = (await self.rest.get(PATH)).json["proposed"]
        return told

    async def tried(self, browser: Browser, **claims: Any) -> Answered:
        location = await browser.begin(**await self.link())
        return await browser.get(CALLBACK, **self.provider.consent(location, "chief", **claims))


@pytest.fixture
async def proposal(rest: Rest, clock: ManualClock) -> AsyncIterator[Proposal]:
    entitle(rest)
    secrets = rest.state / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "oidc").write_text(SECRET)
    anna, boss = await joined(rest, "anna", "admin"), await operator(rest)
    async with openid_provider(clock) as provider:
        oidc = {
            "issuer": provider.url, "client_id": CLIENT, "client_secret": "secret://oidc",
            "role_claim": "groups", "roles": ROLES, "just_in_time": True,
        }  # fmt: skip
        answer = await put(rest, anna, {"provider": "oidc", "oidc": oidc})
        assert 200 == answer.status, answer.body
        yield Proposal(rest=rest, anna=anna, boss=boss, provider=provider, oidc=oidc)


@promise("people:sign-in-changed-by-two")
async def test_a_sign_in_that_works_and_an_approval_bring_it_into_force(
    rest: Rest, proposal: Proposal
) -> None:
    browser = Browser(rest=rest)
    answer = await proposal.tried(browser, groups=["chiefs"])

    assert (200, {}) == (answer.status, browser.cookies)
    assert "would come in here as admin" in answer.body.decode()
    shown = await proposal.shown()
    assert (proposal.anna.id, ["approval"]) == (shown["tested_by"], shown["waits_for"])
    check(await browser.get(LOGIN, tenant="default"), 404, "not_found")  # passwords are in force
    types = [one["type"] for one in await rest.records()]
    assert "admin.auth.tested" in types
    assert not {"user.signin_failed", "admin.user.created"} & set(types)

    done = await approve(rest, proposal.boss, 1)
    assert ("oidc", None) == (done.json["provider"], done.json["proposed"])
    [record] = [r for r in await rest.records() if r["type"] == "admin.auth.updated"]
    told = {one["field"]: one["new"] for one in record["changes"]}
    parts = [proposal.anna.id, proposal.boss.id, proposal.anna.id]
    assert parts == [told[name] for name in ("proposed_by", "approved_by", "tested_by")]
    assert 303 == (await browser.sign_in(proposal.provider, "chief", groups=["chiefs"])).status
    assert "admin" == (await browser.me())["role"]


@promise("people:sign-in-changed-by-two")
async def test_the_last_of_the_three_may_be_the_test(rest: Rest, proposal: Proposal) -> None:
    assert 200 == (await approve(rest, proposal.boss, 1)).status
    assert "password" == (await rest.get(PATH)).json["provider"]
    assert 200 == (await proposal.tried(Browser(rest=rest))).status

    assert "oidc" == (await rest.get(PATH)).json["provider"]
    types = [one["type"] for one in await rest.records() if ".auth." in one["type"]]
    assert ["admin.auth.tested", "admin.auth.updated"] == types[-2:]


@promise("people:broken-provider-locks-nobody-out")
async def test_a_provider_that_does_not_work_never_comes_into_force(
    rest: Rest, proposal: Proposal
) -> None:
    """Whatever is wrong with it; and whoever signed in by a password still does."""
    assert 200 == (await approve(rest, proposal.boss, 1)).status
    provider = proposal.provider

    def elsewhere(claims: dict[str, Any]) -> dict[str, Any]:
        return claims | {"aud": "another"}

    for reason, bent in (
        ("oidc_audience_wrong", {"bend": elsewhere}),
        ("oidc_provider_answered_no", {"secret": "another"}),
        ("oidc_key_unknown", {"header": {"kid": "two"}}),
        ("oidc_provider_answered_no", {"away": 500}),
    ):
        rest.clock.advance(61)
        browser = Browser(rest=rest)
        location = await browser.begin(**await proposal.link())
        kept = {name: getattr(provider, name) for name in bent}
        for name, value in bent.items():
            setattr(provider, name, value)
        answer = await browser.get(CALLBACK, **provider.consent(location))
        for name, value in kept.items():
            setattr(provider, name, value)
        assert (401, reason) == (answer.status, (await proposal.shown())["test_failure"])
        assert "reason is shown with the proposal" in answer.body.decode()
        assert SESSION not in browser.cookies

    assert "password" == (await rest.get(PATH)).json["provider"]
    assert [] == await failures(rest)
    failed = [r["reason"] for r in await rest.records() if r["type"] == "admin.auth.test_failed"]
    assert 4 == len(failed)
    assert 200 == (await proposal.anna.step_up()).status


async def test_a_person_who_would_not_come_in_is_no_test(rest: Rest, proposal: Proposal) -> None:
    invited = proposal.oidc | {"just_in_time": False}
    assert 200 == (await put(rest, proposal.anna, {"provider": "oidc", "oidc": invited}, 1)).status
    assert 401 == (await proposal.tried(Browser(rest=rest))).status
    assert "oidc_not_invited" == (await proposal.shown())["test_failure"]
    named = proposal.oidc | {"email_domains": ["example.org"]}
    assert 200 == (await put(rest, proposal.anna, {"provider": "oidc", "oidc": named}, 2)).status
    assert None is (await proposal.shown())["test_failure"]
    told = {"email": "a@elsewhere.example", "email_verified": True}
    assert 401 == (await proposal.tried(Browser(rest=rest), **told)).status
    assert "oidc_domain_refused" == (await proposal.shown())["test_failure"]

    good = {"email": "a@example.org", "email_verified": True}
    assert 200 == (await proposal.tried(Browser(rest=rest), **good)).status


async def test_a_link_is_good_once_in_time_and_for_what_was_proposed(
    rest: Rest, proposal: Proposal
) -> None:
    link = (await proposal.link())["test"]
    for bent in (altered(link), f"{link[:44]}{'A' * 43}", f"{'A' * 43}{link[43:]}"):
        check(await Browser(rest=rest).get(LOGIN, test=bent), 404, "not_found")
    check(await Browser(rest=rest).get(LOGIN, test="x"), 400, "invalid_filter")
    browser = Browser(rest=rest)
    right = proposal.provider.consent(await browser.begin(test=link))
    check(await Browser(rest=rest).get(CALLBACK, **right), 401, "unauthenticated")
    assert "oidc_other_browser" == (await failures(rest))[-1]
    kept = dict(browser.cookies)
    assert 200 == (await browser.get(CALLBACK, **right)).status
    browser.cookies = kept
    check(await browser.get(CALLBACK, **right), 401, "unauthenticated")
    check(await browser.get(LOGIN, test=link), 404, "not_found")

    link = (await proposal.link())["test"]
    right = proposal.provider.consent(await browser.begin(test=link))
    body = {"provider": "oidc", "oidc": proposal.oidc}
    assert 200 == (await put(rest, proposal.anna, body, 1)).status
    check(await browser.get(CALLBACK, **right), 401, "unauthenticated")  # of the one before
    assert "oidc_settings_changed" == (await failures(rest))[-1]
    assert ["approval", "test"] == (await proposal.shown())["waits_for"]
    late = (await proposal.link())["test"]
    rest.clock.advance(601)
    check(await browser.get(LOGIN, test=late), 404, "not_found")


async def test_a_proposal_disturbs_nobody_who_is_on_the_way(rest: Rest, proposal: Proposal) -> None:
    await approve(rest, proposal.boss, 1)
    await proposal.tried(Browser(rest=rest))
    browser = Browser(rest=rest)
    location = await browser.begin()
    assert 200 == (await put(rest, proposal.anna, {"provider": "password"}, 3)).status

    assert 303 == (await browser.get(CALLBACK, **proposal.provider.consent(location))).status


@promise("people:broken-provider-locks-nobody-out")
async def test_a_provider_that_is_away_is_left_by_the_admin_who_has_a_password(
    rest: Rest, clock: ManualClock
) -> None:
    """Alone, where there is nobody else: proposed, shown that it works, approved, in force."""
    entitle(rest, mode="off")
    boss = await operator(rest)
    async with openid_provider(clock) as provider:
        await signs_in_by(rest, provider.url)
    check(await Browser(rest=rest).get(LOGIN, tenant="default"), 503, "dependency_unavailable")
    boss = await signed_in(rest)
    assert 200 == (await put(rest, boss, {"provider": "password"}, 1)).status
    assert 200 == (await tried(rest, boss, password=boss.password)).status
    done = await approve(rest, boss, 2)

    assert ("password", None) == (done.json["provider"], done.json["proposed"])
    anna = await joined(rest, "anna")
    assert "anna" == (await rest.get("/api/v1/me", key=anna.token)).json["name"]


async def test_an_approval_and_a_test_at_once_bring_it_into_force_once(
    rest: Rest, proposal: Proposal
) -> None:
    browser = Browser(rest=rest)
    location = await browser.begin(**await proposal.link())
    back = proposal.provider.consent(location)
    answers = await asyncio.gather(approve(rest, proposal.boss, 1), browser.get(CALLBACK, **back))

    assert [200, 200] == [answer.status for answer in answers]
    assert "oidc" == (await rest.get(PATH)).json["provider"]
    updated = [r for r in await rest.records() if r["type"] == "admin.auth.updated"]
    assert 1 == len(updated)


@promise("people:broken-provider-locks-nobody-out")
async def test_without_an_admin_who_has_a_password_no_provider_comes_into_force(
    rest: Rest, proposal: Proposal
) -> None:
    assert 200 == (await proposal.tried(Browser(rest=rest))).status
    ours = rest.running.tenant.id
    await run(rest, "UPDATE control.users SET password_hash = NULL WHERE tenant_id = $1", ours)
    check(await approve(rest, proposal.boss, 1), 409, "conflict")

    assert "password" == (await rest.get(PATH)).json["provider"]
