"""What a provider's word is worth over time: a test that passed counts for an hour, and who cannot
say when somebody proved who they are is told so, before it comes into force and at each try.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from services.control.auth_changes import TEST_LIFE
from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import signed_in
from tests.integration.control.openid import CALLBACK, Browser, failures
from tests.integration.control.test_auth_settings import PATH, approve
from tests.integration.control.test_oidc_trials import Proposal, proposal
from tests.integration.control.test_problems import check
from tests.promises import promise

__all__ = ["proposal"]

LIFE_S = int(TEST_LIFE.total_seconds())


@promise("people:sign-in-changed-by-two")
async def test_a_test_of_long_ago_brings_nothing_into_force(rest: Rest, proposal: Proposal) -> None:
    assert 200 == (await proposal.tried(Browser(rest=rest))).status
    assert ["approval"] == (await proposal.shown())["waits_for"]
    rest.clock.advance(LIFE_S)
    late = await approve(rest, await signed_in(rest), 1)

    assert (200, "password") == (late.status, late.json["provider"])
    assert ["test"] == late.json["proposed"]["waits_for"]
    proposal.anna = await signed_in(rest, "anna", proposal.anna.password)
    assert 200 == (await proposal.tried(Browser(rest=rest))).status
    assert "oidc" == (await rest.get(PATH)).json["provider"]


@promise("people:sign-in-changed-by-two")
async def test_within_its_hour_a_test_counts(rest: Rest, proposal: Proposal) -> None:
    """The innocent twin."""
    assert 200 == (await proposal.tried(Browser(rest=rest))).status
    rest.clock.advance(LIFE_S - 1)

    assert "oidc" == (await approve(rest, await signed_in(rest), 1)).json["provider"]


@promise("people:broken-provider-locks-nobody-out")
async def test_a_provider_that_does_not_say_when_is_told_of_by_its_test(
    rest: Rest, proposal: Proposal
) -> None:
    """It is asked as for a fresh proof: then it has to say."""
    browser = Browser(rest=rest)
    location = await browser.begin(**await proposal.link())
    asked = dict(parse_qsl(urlsplit(location).query))
    silent = await browser.get(
        CALLBACK, **proposal.provider.consent(location, "chief", auth_time=None)
    )
    says = await proposal.tried(Browser(rest=rest))

    assert ("login", "0") == (asked["prompt"], asked["max_age"])
    assert (200, 200) == (silent.status, says.status)
    assert (True, False) == (b"auth_time" in silent.body, b"auth_time" in says.body)


async def test_when_a_token_was_made_is_no_proof_of_a_person(
    rest: Rest, proposal: Proposal
) -> None:
    """Fresh `iat`, no `auth_time`: the session goes on, no more is allowed than before, and whoever
    tried is told what to do about it.
    """
    assert 200 == (await approve(rest, proposal.boss, 1)).status
    assert 200 == (await proposal.tried(Browser(rest=rest))).status
    provider, browser = proposal.provider, Browser(rest=rest)
    await browser.sign_in(provider, "chief", groups=["chiefs"], auth_time=None)
    rest.clock.advance(1)
    location = await browser.begin(step_up="true")
    back = provider.consent(location, "chief", groups=["chiefs"], auth_time=None)
    refused = await browser.get(CALLBACK, **back)
    check(refused, 403, "step_up_required")
    me = await browser.me()
    body = {"name": "k", "role": "viewer"}
    check(await browser.post("/api/v1/api-keys", body, csrf=me["csrf_token"]),
          403, "step_up_required")  # fmt: skip

    assert "auth_time" in refused.json["detail"]
    assert "oidc_proof_time_missing" in await failures(rest)
    location = await browser.begin(step_up="true")
    back = provider.consent(location, "chief", groups=["chiefs"])
    assert 303 == (await browser.get(CALLBACK, **back)).status
    made = await browser.post("/api/v1/api-keys", body, csrf=(await browser.me())["csrf_token"])
    assert 201 == made.status
