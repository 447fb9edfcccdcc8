"""Rules of people: which codes fit, what keys are good for, where paths lead, how invites stand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyotp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.control import api_keys, invites, second_factors, tenancy
from services.control.features import allows
from services.control.passwords import Passwords
from services.control.sessions import Origins

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = "0199d0d0-0000-7000-8000-000000000001"


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_a_code_fits_one_step_around_now_and_never_up_to_the_last_one(away: int, last: int) -> None:
    secret, present = second_factors.new_secret(), int(NOW.timestamp()) // 30
    code = pyotp.TOTP(secret).generate_otp(present + away)
    step = second_factors.fitting_step(secret, code, NOW, after=present + last)

    assert (present + away if abs(away) <= 1 and away > last else None) == step


def test_a_sealed_secret_is_its_owners_alone() -> None:
    sealing = second_factors.Sealing.under(b"k" * 32)
    sealed = sealing.seal("SECRET", owner="anna")

    assert "SECRET" == sealing.opened(sealed, owner="anna")
    assert None is sealing.opened(sealed, owner="ben")
    assert None is second_factors.Sealing.under(b"x" * 32).opened(sealed, owner="anna")
    assert None is sealing.opened(sealed[:5], owner="anna")
    assert b"SECRET" not in sealed


def test_recovery_codes_are_read_however_they_are_typed() -> None:
    codes = second_factors.new_recovery_codes()
    assert second_factors.RECOVERY_CODES == len(set(codes))
    one = codes[0]

    assert second_factors.stored_code(one) == second_factors.stored_code(
        f" {one.replace('-', ' ').upper()} "
    )
    assert second_factors.stored_code(one) != second_factors.stored_code(codes[1])


@pytest.mark.parametrize(
    ("scopes", "writes", "allowed"),
    [((), True, True), (("agents",), True, True), (("agents:read",), False, True),
     (("agents:read",), True, False), (("servers",), False, False)],
)  # fmt: skip
def test_what_a_key_is_good_for(scopes: tuple[str, ...], writes: bool, allowed: bool) -> None:
    assert allowed is api_keys.within(scopes, "agents", writes=writes)


@pytest.mark.parametrize(
    ("scopes", "wanted", "allowed"),
    [((), (), True), ((), ("agents",), True), (("agents",), (), False),
     (("agents",), ("agents:read",), True), (("agents:read",), ("agents",), False)],
)  # fmt: skip
def test_what_a_key_may_give(
    scopes: tuple[str, ...], wanted: tuple[str, ...], allowed: bool
) -> None:
    assert allowed is api_keys.covers(scopes, wanted)


@pytest.mark.parametrize(
    ("path", "resource"),
    [("/api/v1/agents/{agent_id:uuid}:suspend", "agents"), ("/api/v1/api-keys", "api-keys"),
     ("/api/v1/settings/auth", "settings"), ("/healthz", "")],
)  # fmt: skip
def test_which_resource_a_route_is_of(path: str, resource: str) -> None:
    assert resource == api_keys.scope_of(path)


@pytest.mark.parametrize(
    ("rest", "inside"),
    [("agents", "/api/v1/agents"), ("agents/1:suspend", "/api/v1/agents/1:suspend"),
     ("plan-features", "/api/v1/plan-features"), ("features", None), ("plan", None),
     ("me", None), ("me/sessions", None), ("auth/login", None), ("auth:approve", None),
     ("tenants", None), ("", None), ("../agents", None), ("%2e%2e", None)],
)  # fmt: skip
def test_which_paths_lead_into_a_tenant(rest: str, inside: str | None) -> None:
    found = tenancy.inside(f"/api/v1/tenants/{TENANT}/{rest}")

    assert inside == (found.path if found else None)
    assert tenancy.inside(f"/api/v1/tenants/x/{rest}") is None


@pytest.mark.parametrize(
    ("text", "good"),
    [("x" * 8, True), ("x" * 7, False), ("x" * 500, True), ("x" * 501, False), ("x\ny" * 4, False),
     (" " * 20, False)],
)  # fmt: skip
def test_what_a_reason_is(text: str, good: bool) -> None:
    assert good is (tenancy.reason_of(text) is not None)


@pytest.mark.parametrize(
    ("row", "state"),
    [({}, "invited"), ({"accepted_at": NOW}, "accepted"), ({"revoked_at": NOW}, "revoked"),
     ({"expires_at": NOW}, "expired")],
)  # fmt: skip
def test_how_an_invite_stands(row: dict[str, Any], state: str) -> None:
    whole = {"accepted_at": None, "revoked_at": None, "expires_at": NOW + timedelta(days=1)} | row

    assert state == invites.state(whole, NOW)


@pytest.mark.parametrize(
    ("mode", "read", "write", "remove"),
    [("on", True, True, True), ("frozen", True, False, True), ("off", False, False, False),
     ("unheard-of", False, False, False)],
)  # fmt: skip
def test_what_a_mode_lets_through(mode: str, read: bool, write: bool, remove: bool) -> None:
    assert (read, write, remove) == (
        allows(mode, "read"), allows(mode, "write"), allows(mode, "remove")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("http://127.0.0.1:8701", True), ("http://localhost:1", True), ("http://[::1]:1", True),
     ("https://behavry.example", False), ("https://127.0.0.1.example", False)],
)  # fmt: skip
def test_whether_others_can_reach_us(url: str, loopback: bool) -> None:
    assert loopback is Origins(url).loopback


async def test_a_password_costs_what_rfc_9106_says_and_is_not_short() -> None:
    passwords = Passwords()
    stored = await passwords.hash("twelve letters")

    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await passwords.matches(stored, "twelve letters")
    assert not await passwords.matches(stored, "twelve Letters")
    assert not await passwords.matches(None, "no such user")
    with pytest.raises(ValueError, match="12"):
        await passwords.hash("eleven char")
