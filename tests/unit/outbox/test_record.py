"""The canonical bytes of a record: the profile, its RFC 8785 form, and what is trimmed."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.outbox.record import (
    KEPT_FINDINGS,
    MAX_BODY_BYTES,
    ProfileError,
    canonical_bytes,
    check_profile,
)

INTEGERS = st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1)
KEYS = st.from_regex(r"[a-z0-9_]{1,40}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.booleans() | INTEGERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(KEYS, VALUES, max_size=6)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth(item) for item in value), default=0)
    return 0


@settings(max_examples=500, deadline=None)
@given(BODIES.filter(lambda body: depth(body) <= 8))
def test_the_bytes_are_those_of_an_independent_rfc_8785(body: dict[str, Any]) -> None:
    encoded = canonical_bytes(body)

    assert rfc8785.dumps(body) == encoded
    assert body == check_profile(encoded)


def test_escapes_are_those_of_rfc_8785() -> None:
    body = {"text": "".join(map(chr, range(0x30))) + "\x7f\u2028€𐀀\\/"}

    assert rfc8785.dumps(body) == canonical_bytes(body)


@pytest.mark.parametrize(
    "body",
    [
        {"a": 0.5},
        {"a": math.nan},
        {"a": math.inf},
        {"a": 2**53},
        {"a": -(2**53)},
        {"a": "\ud800"},
        {"a": b"bytes"},
        {"a": [None]},
        {"A": 1},
        {"a-b": 1},
        {"": 1},
        {"k" * 41: 1},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}},
        {"a": [[[[[[[[1]]]]]]]]},
    ],
    ids=lambda body: json.dumps(body, default=str)[:30],
)
def test_what_is_outside_the_profile_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ProfileError):
        canonical_bytes(body)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (2**53, "an integer beyond 2^53-1"),
        ([{"b": 2**70}], "an integer beyond 2^53-1"),
        ("\ud800", "invalid Unicode"),
    ],
)
def test_a_refusal_names_the_rule(value: object, rule: str) -> None:
    with pytest.raises(ProfileError) as refused:
        canonical_bytes({"a": value})

    assert rule == refused.value.rule


@pytest.mark.parametrize(
    "body",
    [
        {"a": 2**53 - 1, "b": -(2**53) + 1},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}},
        {"a": [[[[[[[1]]]]]]]},
        {"k" * 40: True},
    ],
)
def test_the_edge_of_the_profile_is_taken(body: dict[str, Any]) -> None:
    assert body == check_profile(canonical_bytes(body))


class Verdict(StrEnum):
    ALLOW = "allow"


def test_named_strings_are_written_as_their_text() -> None:
    assert b'{"a":["allow"],"verdict":"allow"}' == canonical_bytes(
        {"verdict": Verdict.ALLOW, "a": (Verdict.ALLOW,)}
    )


def test_none_means_absent_at_every_level() -> None:
    body = {"a": None, "b": {"c": None, "d": 1}, "e": [{"f": None}]}

    assert b'{"b":{"d":1},"e":[{}]}' == canonical_bytes(body)


@pytest.mark.parametrize(
    "encoded",
    [
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1,"a":1}',
        b'{"a":null}',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":-0}',
        b'{"a":9007199254740992}',
        b'{"a":123456789012345678901234567890}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b"[]",
        b"1",
        b"",
        b'{"a":1} ',
        b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"a":"' + b"x" * MAX_BODY_BYTES + b'"}',
    ],
    ids=lambda encoded: repr(encoded[:24]),
)
def test_bytes_that_nobody_made_canonical_are_refused(encoded: bytes) -> None:
    with pytest.raises(ProfileError):
        check_profile(encoded)


def oversized(**more: Any) -> dict[str, Any]:
    return {"type": "call.denied", "filling": "x" * (MAX_BODY_BYTES - 3000), **more}


def test_findings_past_twenty_go_first() -> None:
    findings = [{"rule": f"rule-{number}", "text": "y" * 70} for number in range(40)]

    body = check_profile(canonical_bytes(oversized(dlp_findings=findings, reasons=["a"])))

    assert ["dlp_findings"] == body["trimmed"]
    assert findings[:KEPT_FINDINGS] == body["dlp_findings"]
    assert ["a"] == body["reasons"]


def test_trimming_goes_on_in_its_order_until_it_fits() -> None:
    body = check_profile(
        canonical_bytes(
            oversized(
                shadow=["s" * 3000],
                reasons=["r" * 3000],
                changes=[{"field": "source", "old": "o" * 3000, "new": "n"}],
            ),
            lambda text: f"h1:0:{len(text)}",
        )
    )

    assert ["shadow", "reasons", "changes"] == body["trimmed"]
    assert [{"field": "source", "old": "h1:0:3002", "new": "h1:0:3"}] == body["changes"]
    assert "shadow" not in body
    assert "reasons" not in body


def test_what_trimming_cannot_help_is_refused() -> None:
    with pytest.raises(ProfileError):
        canonical_bytes({"filling": "x" * MAX_BODY_BYTES, "reasons": ["r"]})


def test_what_fits_is_not_trimmed() -> None:
    body = {"reasons": ["r"], "dlp_findings": [{"rule": "a"}] * 30}

    assert body == check_profile(canonical_bytes(body))
