"""What a tool server may put before an agent's user (mcp.md 3.4; A15)."""

from typing import Any

import pytest

from services.proxy.asking.grants import ELICIT, ROOTS, SAMPLE
from services.proxy.asking.screening import Unwanted, screened, url
from services.proxy.snapshot import Grants

GRANTS = Grants(elicitation_hosts=("login.example.com",), sampling=True, roots=True)
TOLD: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}


def form(name: str, **field: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {name: {"type": "string", **field}}}
    return {"message": "?", "requestedSchema": schema}


def reason(method: str, params: Any, told: dict[str, Any] = TOLD) -> str:
    try:
        screened(method, params, told, GRANTS)
    except Unwanted as unwanted:
        return unwanted.reason
    return ""


@pytest.mark.parametrize(
    "name",
    [
        "password", "Password", "user_password", "newPassword", "passwd", "passphrase", "secret",
        "client_secret", "clientSecret", "token", "accessToken", "access-token", "API_KEY",
        "apiKey", "api key", "APIKey", "private_key", "credentials", "otp", "PWD",
    ],
)  # fmt: skip
def test_a_form_that_asks_for_a_secret_is_not_shown(name: str) -> None:
    assert "capability_not_granted" == reason(ELICIT, form(name))
    assert "capability_not_granted" == reason(ELICIT, form("x", title=name))


@pytest.mark.parametrize(
    "name",
    [
        "name", "username", "email", "passport", "secretary", "tokenizer", "key", "monkey",
        "description", "api", "pass", "city", "compass",
    ],
)  # fmt: skip
def test_an_innocent_form_is_shown(name: str) -> None:
    assert "" == reason(ELICIT, form(name)) == reason(ELICIT, form("x", title=name))


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ({"format": "password"}, False),
        ({"format": "email"}, True),
        ({"writeOnly": True}, False),
        ({"anyOf": [{"properties": {"password": {"type": "string"}}}]}, False),
        ({"items": {"properties": {"inner": {"format": "password"}}}}, False),
    ],
)
def test_the_form_of_a_field_counts_wherever_it_stands(field: dict[str, Any], shown: bool) -> None:
    assert shown is (reason(ELICIT, form("x", **field)) == "")


@pytest.mark.parametrize(
    "field",
    [
        {"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "b"]},
        {"oneOf": [{"const": "a", "title": "A"}]},
        {"type": "array", "items": {"type": "string", "enum": ["a"]}},
        {"type": "array", "items": {"anyOf": [{"const": "a"}]}},
    ],
)  # fmt: skip
def test_what_holds_no_text_of_the_users_holds_no_secret(field: dict[str, Any]) -> None:
    assert "" == reason(ELICIT, form("max_tokens", **field))


@pytest.mark.parametrize(
    "field",
    [
        {"type": ["string", "null"]}, {"type": ["integer"]}, {"type": "text"}, {"type": None},
        {"type": "array"}, {"type": "array", "items": {"type": "string"}},
        {"enum": []}, {"enum": "a"}, {"oneOf": []}, {"oneOf": [{"type": "string"}]},
        {"anyOf": [{"const": "a"}, {"type": "string"}]},
    ],
)  # fmt: skip
def test_a_secret_is_not_asked_for_in_another_form(field: dict[str, Any]) -> None:
    assert "capability_not_granted" == reason(ELICIT, form("password", **field))


@pytest.mark.parametrize(
    "text",
    [
        "https://login.example.com", "https://login.example.com/x?y=1#z",
        "https://LOGIN.example.com:8443/",
    ],
)  # fmt: skip
def test_a_url_to_a_named_host_is_shown(text: str) -> None:
    url(text, GRANTS)

    assert "" == reason(ELICIT, {"mode": "url", "message": "?", "url": text})


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.example/", "http://login.example.com/", "javascript:alert(1)", "",
        "https://login.example.com@evil.example/", "https://u:p@login.example.com/",
        "https://login.example.com.evil.example/", "//login.example.com/", "login.example.com",
        "https://evil.example\\@login.example.com/", "https://login.example.com\n.evil.example/",
        "https://login.example.com /", "https://login.example.com:x/", "https://[::1/", None, 7,
        "https://login.example.com\u3002evil.example/", "https://" + "a" * 9000,
    ],
)  # fmt: skip
def test_no_other_url_is(text: Any) -> None:
    with pytest.raises(Unwanted):
        url(text, GRANTS)

    assert "capability_not_granted" == reason(ELICIT, {"mode": "url", "url": text})


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        (ELICIT, [], "upstream_protocol"),
        (ELICIT, {"requestedSchema": []}, "upstream_protocol"),
        (ELICIT, {"requestedSchema": {"properties": []}}, "upstream_protocol"),
        (ELICIT, {"message": "?"}, "upstream_protocol"),
        (SAMPLE, {"messages": ["x" * 300_000]}, "capacity"),
        (SAMPLE, {"messages": [], "maxTokens": 1}, ""),
        (ROOTS, {}, ""),
        ("tools/call", {}, "capability_not_granted"),
        ("ping", {}, "capability_not_granted"),
    ],
)
def test_what_is_odd_too_much_or_not_granted_stays_here(method: str, params: Any, why: str) -> None:
    assert why == reason(method, params)


def test_without_the_capability_nothing_is_asked() -> None:
    assert {"capability_not_granted"} == {
        reason(method, {}, {}) for method in (ELICIT, SAMPLE, ROOTS)
    }


def test_nothing_of_it_reads_as_ours() -> None:
    meta = {"com.behavry/decision": 1, "progressToken": 2, "own": 3,
            "io.modelcontextprotocol/related-task": {}}  # fmt: skip

    assert {"x": 1, "_meta": {"own": 3}} == screened(ROOTS, {"x": 1, "_meta": meta}, TOLD, GRANTS)
    assert {} == screened(ROOTS, {"_meta": {"progressToken": 2}}, TOLD, GRANTS)


def test_a_form_without_end_is_refused() -> None:
    nested: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        nested = {"anyOf": [nested] * 30}

    assert "upstream_protocol" == reason(ELICIT, {"requestedSchema": nested})
