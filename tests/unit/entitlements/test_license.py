"""Licences: the codes (E2), what makes each of them, which of several counts, and what it costs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from services.entitlements import choosing, effective, stored
from services.entitlements import license as licenses
from services.entitlements.choosing import Held
from services.entitlements.effective import Ceiling, Tenant
from services.entitlements.license import Expected, LicenseRefused, Limits, Revocations
from services.entitlements.sources import Configured
from services.entitlements.standing import State
from tests.fakes.licenses import (
    DAY_S,
    claims,
    issuers_keys,
    license_token,
    private_key,
    revocations_token,
)

NOW_S = 1_800_000_000
KEYS = issuers_keys()
OURS = licenses.fingerprint("this installation")
HERE = Expected(tenant=None, fingerprint=OURS)


def token(**said: Any) -> str:
    return license_token(now_s=NOW_S, key="issuer", **said)


def code_of(text: str, expected: Expected = HERE) -> str:
    with pytest.raises(LicenseRefused) as refused:
        licenses.verify(text, keys=KEYS, expected=expected)
    return refused.value.code


def believed(*texts: str, revoked: frozenset[str] = frozenset()) -> stored.Believed:
    return stored.believed(
        [Configured(text) for text in texts],
        keys=KEYS,
        expected=HERE,
        revocations=Revocations(serial=1, revoked=revoked),
    )


def seen(*texts: str, now_s: int = NOW_S, plan: str = "professional", **more: Any) -> Any:
    """What a tenant of that plan has under these installation licences."""
    ceiling = Ceiling(licenses=believed(*texts, **more).licenses, tenants=3)
    tenant = Tenant(plan=plan, plan_expires_at_s=None, plan_set_at_s=0)
    return effective.view(tenant, ceiling, now_s)


def encoded(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


# --- the fifteen codes --------------------------------------------------------------------------

LAST = NOW_S + 90 * DAY_S
IN_FORCE: dict[str, tuple[Callable[[], Any], int]] = {
    "VALID": (lambda: seen(token()), 10),
    "EXPIRING": (lambda: seen(token(), now_s=LAST - 30 * DAY_S), 10),
    "GRACE": (lambda: seen(token(), now_s=LAST), 10),
    "EXPIRED": (lambda: seen(token(), now_s=LAST + 14 * DAY_S), 0),
    "REVOKED": (lambda: seen(token(), revoked=frozenset({"licence-1"})), 0),
    "LIMIT_EXCEEDED": (lambda: seen(token(limits={"tenants": 2})), 10),
}


@pytest.mark.parametrize("code", IN_FORCE)
def test_a_believed_licence_has_its_state_and_its_effect(code: str) -> None:
    make, features = IN_FORCE[code]
    view = make()

    assert (State(code), features) == (view.state, len(view.allowed()))
    if code == "GRACE":
        assert {"grace"} == {one.source.value for one in view.answers if one.allowed}
    if features == 0:
        lapsed = [answer.mode for answer in view.answers]
        assert ["stopped", "frozen", "stopped"] == lapsed[:3]
        assert "off" in lapsed[10:]


def test_one_whose_time_has_not_come_is_scheduled_and_has_no_effect() -> None:
    view = seen(token(nbf=NOW_S + DAY_S))

    assert (State.NOT_YET_VALID, None, 3) == (
        view.scheduled.state,
        view.ceiling,
        len(view.allowed()),
    )
    assert NOW_S + DAY_S == dict(zip(_keys(view), view.changes_at_s, strict=True))["context_gate"]


def test_absent_leaves_the_trial_set() -> None:
    view = seen()

    assert (None, "trial", 3) == (view.ceiling, view.plan, len(view.allowed()))


def test_a_suspect_clock_is_told_and_changes_no_answer() -> None:
    tenant = Tenant(plan="trial", plan_expires_at_s=None, plan_set_at_s=0)
    plain = effective.view(tenant, Ceiling(), NOW_S)
    suspect = effective.view(tenant, Ceiling(clock_suspect=True), NOW_S)

    assert (State.CLOCK_SUSPECT, plain.answers) == (suspect.state, suspect.answers)


REFUSED: dict[str, Callable[[], str]] = {
    "MALFORMED": lambda: code_of("no token"),
    "SIGNATURE_INVALID": lambda: code_of(token()[:-86] + "A" * 86),
    "UNKNOWN_KEY": lambda: code_of(license_token(now_s=NOW_S, key="somebody")),
    "PRODUCT_MISMATCH": lambda: code_of(token(aud="another")),
    "SUBJECT_MISMATCH": lambda: code_of(token(tenant="another")),
    "FINGERPRINT_MISMATCH": lambda: code_of(token(fingerprint=licenses.fingerprint("another"))),
}


@pytest.mark.parametrize("code", REFUSED)
def test_one_that_is_not_believed_is_refused_and_stored_is_as_if_absent(code: str) -> None:
    assert code == REFUSED[code]()


def test_the_fifteen_codes_are_all_shown_here() -> None:
    shown = {*IN_FORCE, *REFUSED, "NOT_YET_VALID", "ABSENT", "CLOCK_SUSPECT"}

    assert 15 == len(shown)


def test_a_rejected_token_is_named_by_its_digest_and_leaves_the_trial_set() -> None:
    text = token(aud="another")
    found = believed(text)

    assert ((), ("PRODUCT_MISMATCH", licenses.sha256(text))) == (
        found.licenses,
        (found.rejected[0].code, found.rejected[0].token_sha256),
    )
    assert 3 == len(seen(text).allowed())


# --- the form -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", sorted(claims(now_s=NOW_S)))
def test_every_claim_is_mandatory(missing: str) -> None:
    said = claims(now_s=NOW_S)
    del said[missing]
    header = {"alg": "EdDSA", "typ": licenses.LICENSE_TYPE, "kid": "issuer"}

    assert "MALFORMED" == code_of(f"{encoded(header)}.{encoded(said)}.AAAA")


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp": NOW_S},
        {"exp": 10**15},
        {"nbf": -1},
        {"plan": "ultimate"},
        {"scope": "tenant"},
        {"grace_days": 31},
        {"features": {"context_gate": "yes"}},
        {"limits": {"agents": -1}},
    ],
    ids=str,
)
def test_claims_of_the_wrong_shape_are_malformed(wrong: dict[str, Any]) -> None:
    header = {"alg": "EdDSA", "typ": licenses.LICENSE_TYPE, "kid": "issuer"}
    said = claims(now_s=NOW_S) | wrong

    assert "MALFORMED" == code_of(f"{encoded(header)}.{encoded(said)}.AAAA")


def test_features_that_this_build_does_not_know_are_ignored_and_named() -> None:
    said = {"time_travel": True, "blast_radius": False}
    found = licenses.verify(token(features=said), keys=KEYS, expected=HERE)

    assert (frozenset({("blast_radius", False)}), ("time_travel",)) == (
        found.features,
        found.unknown_features,
    )


def test_more_than_sixteen_kilobytes_are_malformed_and_as_many_are_not() -> None:
    header = encoded({"alg": "EdDSA", "typ": licenses.LICENSE_TYPE, "kid": "nobody"})
    body = encoded(claims(now_s=NOW_S, iss="x" * 256))
    room = licenses.MAX_BYTES - len(header) - len(body) - 2

    assert "UNKNOWN_KEY" == code_of(f"{header}.{body}.{'A' * room}")
    assert "MALFORMED" == code_of(f"{header}.{body}.{'A' * (room + 1)}")


def test_bound_to_this_installation_it_is_believed_here() -> None:
    found = licenses.verify(token(fingerprint=OURS), keys=KEYS, expected=HERE)

    assert OURS == found.fingerprint


def test_limits_that_usage_is_above_of_are_named() -> None:
    limits = Limits(agents=2, tenants=1)

    assert ("agents",) == limits.exceeded({"agents": 3, "tenants": 1, "data_planes": 9})


# --- which one counts ---------------------------------------------------------------------------


def held(text: str, **more: Any) -> Held:
    found = licenses.verify(text, keys=KEYS, expected=HERE)
    return Held(license=found, activated_at_s=NOW_S, **more)


def test_in_force_comes_before_grace_before_expired_then_the_latest_issued() -> None:
    old = held(token(jti="old", iat=NOW_S - 5, exp=NOW_S + 100 * DAY_S))
    new = held(token(jti="new", iat=NOW_S, exp=NOW_S + 10 * DAY_S))

    def counts(now_s: int) -> str:
        found = choosing.counting([old, new], now_s)
        return found.license.jti if found else ""

    assert ["new", "old", "old", "new"] == [
        counts(NOW_S),
        counts(NOW_S + 10 * DAY_S),  # the new one is in grace
        counts(NOW_S + 99 * DAY_S),  # and has ended
        choosing.counting(
            [new, held(token(jti="x"), revoked=True)], NOW_S + 99 * DAY_S
        ).license.jti,  # type: ignore[union-attr]  # two were given
    ]


def test_a_scheduled_one_takes_over_by_itself() -> None:
    now = held(token(jti="now", exp=NOW_S + 10 * DAY_S))
    then = held(token(jti="then", iat=NOW_S + 1, nbf=NOW_S + 5 * DAY_S))

    assert ["now", "then"] == [
        found.license.jti
        for at in (NOW_S, NOW_S + 5 * DAY_S)
        if (found := choosing.counting([now, then], at))
    ]
    assert then == choosing.scheduled([now, then], NOW_S)


def test_the_list_with_the_highest_serial_counts_and_a_forged_one_never() -> None:
    lists = [
        revocations_token(now_s=NOW_S, serial=3, revoked=["b"], key="issuer"),
        revocations_token(now_s=NOW_S, serial=2, revoked=["a"], key="issuer"),
        revocations_token(now_s=NOW_S, serial=9, revoked=[], key="somebody"),
    ]
    found = stored.newest_list(lists, keys=KEYS)

    assert (3, frozenset({"b"})) == (found.serial, found.revoked)


def _keys(view: Any) -> list[str]:
    return [answer.feature for answer in view.answers]


# --- cost ---------------------------------------------------------------------------------------


def test_a_verification_costs_at_most_four_bare_ones() -> None:
    text = token()
    signing_input, _, signature = text.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    public, message = private_key("issuer").public_key(), signing_input.encode()

    def spent(work: Callable[[], object]) -> float:
        before = time.thread_time_ns()
        for _ in range(20):
            work()
        return float(time.thread_time_ns() - before)

    ratios = []
    for _ in range(15):  # in turns, so that a busy machine slows both
        ours = spent(lambda: licenses.verify(text, keys=KEYS, expected=HERE))
        ratios.append(ours / spent(lambda: public.verify(raw, message)))

    assert median(ratios) <= 4.0
