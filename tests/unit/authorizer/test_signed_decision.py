"""Which bytes are people's decision about an escalation, and which only look like one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey

from services.authorizer.signed_decision import DecisionRefused, Expected, verify

KEY = ECKey.generate_key("P-256")
OTHER = ECKey.generate_key("P-256")
KID = KEY.thumbprint()
KEYS = {KID: {**KEY.as_dict(private=False), "kid": KID}}
NOW = 1_767_225_600_000
HOUR = 3_600_000
EXPECTED = Expected(plane="dp-test", tenant="t", escalation="e")


def payload(**changes: Any) -> dict[str, Any]:
    return {
        "v": "behavry.escalation-decision/1",
        "plane": "dp-test",
        "tenant": "t",
        "escalation": "e",
        "binding": "b1:x",
        "verdict": "approve",
        "uses": 1,
        "decided_at_ms": NOW,
        "execute_by_ms": NOW + 900_000,
        "approvers": ["u"],
        **changes,
    }


def signed(
    *, key: Any = KEY, alg: str = "ES256", header: dict[str, Any] | None = None, **changes: Any
) -> str:
    named = {"alg": alg, "kid": KID, "typ": "behavry-decision", **(header or {})}
    protected = {name: value for name, value in named.items() if value is not None}
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    body = json.dumps(payload(**changes)).encode()
    return jws.serialize_compact(protected, body, key, registry=registry)


def part(content: Any) -> str:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(encoded).rstrip(b"=").decode()


def unsigned() -> str:
    header = {"alg": "none", "kid": KID, "typ": "behavry-decision"}
    return f"{part(header)}.{part(payload())}."


def hmac_with_the_public_key() -> str:
    """The classic confusion: what everybody may read serves as a shared secret."""
    header = {"alg": "HS256", "kid": KID, "typ": "behavry-decision"}
    text = f"{part(header)}.{part(payload())}"
    mac = hmac.new(KEY.as_pem(private=False), text.encode(), hashlib.sha256).digest()
    return f"{text}.{part(mac)}"


def hmac_that_says_es256() -> str:
    header = {"alg": "ES256", "kid": KID, "typ": "behavry-decision"}
    text = f"{part(header)}.{part(payload())}"
    mac = hmac.new(KEY.as_pem(private=False), text.encode(), hashlib.sha512).digest()
    return f"{text}.{part(mac)}"


def other_payload_under_a_good_signature() -> str:
    header, _, signature = signed().split(".")
    return f"{header}.{part(payload(uses=20))}.{signature}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"uses": 20, "execute_by_ms": NOW + HOUR},
        {"execute_by_ms": NOW + 24 * HOUR},
        {"decided_at_ms": NOW + 60_000},
        {"verdict": "deny", "uses": 0, "execute_by_ms": 0, "approvers": []},
        {"verdict": "revoke", "execute_by_ms": 0},
        {"verdict": "cancel", "execute_by_ms": 0},
    ],
)
def test_what_people_decided_is_taken_as_it_was_signed(changes: dict[str, Any]) -> None:
    said = verify(signed(**changes), EXPECTED, keys=KEYS, now_ms=NOW)

    assert payload(**changes)["verdict"] == said.verdict
    assert payload(**changes)["uses"] == said.uses


FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "no signature": (unsigned, "header"),
    "a shared secret": (hmac_with_the_public_key, "header"),
    "a shared secret that says ES256": (hmac_that_says_es256, "signature"),
    "another hand": (lambda: signed(key=OTHER), "signature"),
    "another hand under its own name": (
        lambda: signed(key=OTHER, header={"kid": OTHER.thumbprint()}),
        "unknown_key",
    ),
    "another algorithm": (
        lambda: signed(key=RSAKey.generate_key(2048), alg="RS256"),
        "header",
    ),
    "a shared key": (lambda: signed(key=OctKey.generate_key(256), alg="HS256"), "header"),
    "no key's name": (lambda: signed(header={"kid": None}), "header"),
    "another type": (lambda: signed(header={"typ": "JWT"}), "header"),
    "its own key beside it": (
        lambda: signed(key=OTHER, header={"jwk": OTHER.as_dict(private=False)}),
        "header",
    ),
    "a header that asks for more": (lambda: signed(header={"crit": ["kid"]}), "header"),
    "another payload": (other_payload_under_a_good_signature, "signature"),
    "a signature cut short": (lambda: signed()[:-4], "signature"),
    "no token": (lambda: "", "header"),
    "two parts": (lambda: signed().rsplit(".", 1)[0], "signature"),
    "bytes that are no text": (lambda: "\u2603." + signed(), "header"),
    "a page of zeros": (lambda: "0" * 10_000, "malformed"),
    "another version": (lambda: signed(v="behavry.escalation-decision/2"), "malformed"),
    "another plane": (lambda: signed(plane="dp-other"), "plane"),
    "another tenant": (lambda: signed(tenant="t2"), "tenant"),
    "another escalation": (lambda: signed(escalation="e2"), "escalation"),
    "an unknown verdict": (lambda: signed(verdict="maybe"), "malformed"),
    "a key too many": (lambda: signed(extra=1), "malformed"),
    "no use": (lambda: signed(uses=0), "uses"),
    "twenty-one uses": (lambda: signed(uses=21, execute_by_ms=NOW + 1), "malformed"),
    "uses that are no number": (lambda: signed(uses="1"), "malformed"),
    "nobody": (lambda: signed(approvers=[]), "uses"),
    "a day and a moment": (lambda: signed(execute_by_ms=NOW + 24 * HOUR + 1), "clocks"),
    "a grant of over an hour": (lambda: signed(uses=2, execute_by_ms=NOW + HOUR + 1), "clocks"),
    "no time at all": (lambda: signed(execute_by_ms=NOW), "clocks"),
    "a decision of tomorrow": (
        lambda: signed(decided_at_ms=NOW + 24 * HOUR, execute_by_ms=NOW + 25 * HOUR),
        "clocks",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_anything_else_is_refused_by_the_check_that_failed(name: str) -> None:
    forge, reason = FORGED[name]

    with pytest.raises(DecisionRefused) as refused:
        verify(forge(), EXPECTED, keys=KEYS, now_ms=NOW)

    assert reason == refused.value.reason


def test_without_a_key_of_the_role_nothing_is_a_decision() -> None:
    with pytest.raises(DecisionRefused):
        verify(signed(), EXPECTED, keys={}, now_ms=NOW)
