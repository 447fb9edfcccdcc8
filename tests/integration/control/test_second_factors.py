"""Second factors: one-time codes, passkeys, recovery codes; what they open, and what not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.control.settings import ControlSettings
from tests.fakes.authenticator import Authenticator
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Rest, opened
from tests.integration.control.escalated import joined, signed_in
from tests.integration.control.factors import (
    MFA,
    ORIGIN,
    STEP_UP,
    code,
    first_half,
    second_half,
    signed_in_again,
    with_passkey,
    with_totp,
)
from tests.integration.control.test_problems import check
from tests.promises import promise


@promise("people:second-factor")
async def test_whoever_has_a_second_factor_is_not_in_with_the_password_alone(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, codes = await with_totp(rest, anna)
    asked = await first_half(rest, anna)
    assert ["totp"] == asked["factors"]
    check(await second_half(rest, asked["token"], totp="000000"), 401, "unauthenticated")
    answer = await second_half(rest, asked["token"], totp=code(rest, secret, steps=1))
    me = await rest.get("/api/v1/me", key=answer.json["token"])

    assert (200, ["totp"], 10) == (me.status, me.json["factors"], len(set(codes)))
    refused = [r for r in await rest.records() if r["type"] == "user.signin_failed"]
    assert ["second_factor_refused"] == [one["reason"] for one in refused]


@promise("people:codes-once")
async def test_a_code_fits_once_and_one_step_to_either_side(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, _ = await with_totp(rest, anna)
    rest.clock.advance(300)
    for steps, status in ((-2, 401), (2, 401), (-1, 200), (-1, 401), (0, 200), (1, 200), (0, 401)):
        asked = await first_half(rest, anna)
        answer = await second_half(rest, asked["token"], totp=code(rest, secret, steps=steps))
        assert status == answer.status, steps

    rest.clock.advance(300)
    begun = [await first_half(rest, anna) for _ in range(4)]
    now = code(rest, secret)
    answers = await asyncio.gather(*(second_half(rest, a["token"], totp=now) for a in begun))
    assert [200, 401, 401, 401] == sorted(answer.status for answer in answers)


@promise("people:codes-once")
async def test_a_recovery_code_opens_one_session_and_renewed_ones_end_the_old(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    _, codes = await with_totp(rest, anna)
    anna = await signed_in_again(rest, anna, recovery_code=codes[0].upper().replace("-", " "))
    asked = await first_half(rest, anna)
    check(await second_half(rest, asked["token"], recovery_code=codes[0]), 401, "unauthenticated")
    assert 9 == (await rest.get(MFA, key=anna.token)).json["recovery_codes_left"]
    renewed = await rest.post(f"{MFA}/recovery-codes", key=anna.token)

    asked = await first_half(rest, anna)
    check(await second_half(rest, asked["token"], recovery_code=codes[1]), 401, "unauthenticated")
    await signed_in_again(rest, anna, recovery_code=renewed.json["recovery_codes"][1])
    text = str(await rest.records())
    assert not [one for one in codes if one in text]


async def test_a_challenge_has_few_tries_little_time_and_one_use(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    _, codes = await with_totp(rest, anna)
    used = await first_half(rest, anna)
    assert 200 == (await second_half(rest, used["token"], recovery_code=codes[0])).status
    old = await first_half(rest, anna)
    rest.clock.advance(301)
    tried = await first_half(rest, anna)
    for _ in range(5):
        await second_half(rest, tried["token"], recovery_code="0000-0000")

    for one, spare in ((used, codes[1]), (old, codes[2]), (tried, codes[3])):
        answer = await second_half(rest, one["token"], recovery_code=spare)
        check(answer, 401, "unauthenticated")
    rest.clock.advance(301)
    await signed_in_again(rest, anna, recovery_code=codes[1])


@promise("people:second-factor")
async def test_a_passkey_signs_in_and_proves_again(rest: Rest) -> None:
    anna, key = await joined(rest, "anna"), Authenticator(origin=ORIGIN)
    made = await with_passkey(rest, anna, key)
    assert (201, 10) == (made.status, len(made.json["recovery_codes"])), made.body
    asked = await first_half(rest, anna)
    answer = await second_half(rest, asked["token"], passkey=key.get(asked["passkey"]))
    assert 200 == answer.status, answer.body
    token = answer.json["token"]
    check(await rest.post(STEP_UP, {"password": anna.password}, key=token), 403, "step_up_required")
    begun = (await rest.post(f"{STEP_UP}:begin", key=token)).json
    proof = {"token": begun["token"], "passkey": key.get(begun["passkey"])}
    again = await rest.post(STEP_UP, proof, key=token)

    assert 200 == again.status, again.body
    assert again.json["token"] != token
    check(await rest.get("/api/v1/me", key=token), 401, "session_expired")
    check(await rest.post(STEP_UP, proof, key=again.json["token"]), 403, "step_up_required")


@promise("people:second-factor")
@pytest.mark.parametrize("lie", ["origin", "site", "unverified", "copied", "challenge", "forged"])
async def test_a_passkey_that_lies_opens_nothing(rest: Rest, lie: str) -> None:
    anna, key = await joined(rest, "anna"), Authenticator(origin=ORIGIN, count=7)
    assert 201 == (await with_passkey(rest, anna, key)).status
    asked = await first_half(rest, anna)
    options = asked["passkey"]
    match lie:
        case "origin":
            key = replace(key, origin="https://evil.example")
        case "site":
            key = replace(key, rp_id="evil.example")
        case "unverified":
            key = replace(key, verifies=False)
        case "copied":
            key = replace(key, count=3)
        case "challenge":
            options = (await first_half(rest, anna))["passkey"]
        case "forged":
            key = Authenticator(origin=ORIGIN, count=7, credential_id=key.credential_id)
    answer = await second_half(rest, asked["token"], passkey=key.get(options))

    check(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    "credential",
    [{}, {"id": 1}, {"id": "x", "rawId": "x", "type": "public-key", "response": {}},
     {"id": "AAAA", "rawId": "AAAA", "type": "public-key",
      "response": {"clientDataJSON": "x", "authenticatorData": "%", "signature": "",
                   "attestationObject": "gA"}}],
)  # fmt: skip
async def test_what_is_no_passkey_is_refused_and_breaks_nothing(
    rest: Rest, credential: dict[str, object]
) -> None:
    anna = await joined(rest, "anna")
    begun = await rest.post(f"{MFA}/passkeys:begin", key=anna.token)
    body = {"name": "x", "token": begun.json["token"], "credential": credential}
    check(await rest.post(f"{MFA}/passkeys", body, key=anna.token), 403, "step_up_required")
    assert 201 == (await with_passkey(rest, anna)).status
    asked = await first_half(rest, anna)

    answer = await second_half(rest, asked["token"], passkey=credential)
    check(answer, 401, "unauthenticated")


@promise("people:step-up-for-factors")
async def test_a_session_that_was_not_proven_lately_changes_no_factor(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    secret, _ = await with_totp(rest, anna)
    (factor,) = (await rest.get(MFA, key=anna.token)).json["items"]
    rest.clock.advance(301)
    for method, path, body in (
        ("POST", f"{MFA}/totp", {"name": "theirs"}),
        ("POST", f"{MFA}/passkeys:begin", None),
        ("POST", f"{MFA}/recovery-codes", None),
        ("DELETE", f"{MFA}/{factor['id']}", None),
    ):
        check(await rest.call(method, path, body, key=anna.token), 403, "step_up_required")
    said = {"totp": code(rest, secret)}
    token = (await rest.post(STEP_UP, said, key=anna.token)).json["token"]

    assert 204 == (await rest.call("DELETE", f"{MFA}/{factor['id']}", key=token)).status
    assert anna.password
    await signed_in(rest, "anna", anna.password)  # with the password alone again


async def test_nobody_has_to_do_with_the_factors_of_somebody_else(rest: Rest) -> None:
    anna, ben = await joined(rest, "anna"), await joined(rest, "ben")
    await with_totp(rest, anna)
    (factor,) = (await rest.get(MFA, key=anna.token)).json["items"]
    check(await rest.call("DELETE", f"{MFA}/{factor['id']}", key=ben.token), 404, "not_found")
    begun = await rest.post(f"{MFA}/passkeys:begin", key=anna.token)
    key = Authenticator(origin=ORIGIN)
    body = {
        "name": "x",
        "token": begun.json["token"],
        "credential": key.create(begun.json["options"]),
    }

    check(await rest.post(f"{MFA}/passkeys", body, key=ben.token), 403, "step_up_required")


@promise("people:codes-once")
async def test_guessing_codes_stops_soon_however_many_sign_ins_are_begun(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    await with_totp(rest, anna)
    statuses = []
    for _ in range(12):
        asked = await first_half(rest, anna)
        statuses.append((await second_half(rest, asked["token"], totp="000000")).status)

    assert [401] * 10 + [429] * 2 == statuses


@pytest.fixture
async def public(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> AsyncIterator[Rest]:
    """Behind a public address, where others than this machine come."""
    away = replace(settings, public_url="https://behavry.example")
    async with opened(away, clock, control_database) as running:
        yield running


@promise("people:second-factor")
async def test_off_loopback_a_password_alone_does_nothing_but_add_a_factor(public: Rest) -> None:
    admin = await signed_in(public)
    for path in ("agents", "policies", "escalations"):
        answer = await public.get(f"/api/v1/{path}", key=admin.token)
        check(answer, 403, "second_factor_required")
    said = {"password": admin.password}
    check(await public.post(STEP_UP, said, key=admin.token), 403, "step_up_required")
    key = Authenticator(origin="https://behavry.example", rp_id="behavry.example")
    assert 201 == (await with_passkey(public, admin, key)).status

    assert 200 == (await public.get("/api/v1/agents", key=admin.token)).status
