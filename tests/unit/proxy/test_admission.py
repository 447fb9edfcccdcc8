"""What needs no identity to be refused (mcp.md 1.1 to 1.3)."""

from typing import Any

import pytest

from services.proxy import admission
from services.proxy.admission import EVENTS, JSON, MAX_BODY, Edges, edges

EDGES: Edges = edges(
    public_url="https://gw.example",
    issuer="https://id.example/",
    allowed_hosts=["Proxy.Internal:8700"],
    cors_origins=["https://page.example"],
)
GOOD = {
    "host": "gw.example",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "content-length": "2",
}
NEW, OLD = "2026-07-28", "2025-11-25"


def status(
    verb: str = "POST", *, path: tuple[str, str] = ("notes", ""), **changes: str | None
) -> int:
    """0 where it passes."""
    given = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    sent = {name.encode(): value.encode() for name, value in given.items() if value is not None}
    found = admission.refused(EDGES, path=path, verb=verb, sent=sent)
    return found.status if found else 0


CHECKED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "a reserved name": ({}, {"path": ("key", "")}, 404),
    "the other reserved name": ({}, {"path": ("all", "key")}, 404),
    "a name in capitals": ({}, {"path": ("Notes", "")}, 404),
    "a name of 41": ({"path": ("a" * 40, "")}, {"path": ("a" * 41, "")}, 404),
    "a name that ends with a hyphen": ({"path": ("a-b", "")}, {"path": ("ab-", "")}, 404),
    "a third form": ({"path": ("notes", "key")}, {"path": ("notes", "keys")}, 404),
    "a verb of nothing": ({}, {"verb": "PUT"}, 405),
    "a session that is none ends": (
        {"verb": "DELETE", "mcp_session_id": "s"}, {"verb": "DELETE"}, 405,
    ),
    "a modern session ends": (
        {"verb": "DELETE", "mcp_session_id": "s", "mcp_protocol_version": OLD},
        {"verb": "DELETE", "mcp_session_id": "s", "mcp_protocol_version": NEW}, 405,
    ),
    "another host": ({}, {"host": "evil.example"}, 421),
    "no host": ({}, {"host": None}, 421),
    "the host on another port": ({"host": "gw.example:443"}, {"host": "gw.example:8700"}, 421),
    "an allowed host of other case": (
        {"host": "proxy.internal:8700"}, {"host": "proxy.internal"}, 421,
    ),
    "two hosts": ({}, {"host": "gw.example, gw.example"}, 421),
    "another origin": ({"origin": "https://gw.example"}, {"origin": "http://gw.example"}, 403),
    "an origin within a listed one": (
        {"origin": "https://page.example"}, {"origin": "https://page.example.evil"}, 403,
    ),
    "no origin in particular": ({}, {"origin": "null"}, 403),
    "no media type": ({}, {"content_type": None}, 415),
    "text": ({"content_type": "application/json; charset=utf-8"}, {"content_type": "text/plain"},
             415),
    "nearly JSON": ({"content_type": "Application/JSON"}, {"content_type": "application/json5"},
                    415),
    "two media types": ({}, {"content_type": "application/json, text/plain"}, 415),
    "compressed": ({}, {"content_encoding": "gzip"}, 415),
    "encoded as itself": ({}, {"content_encoding": "identity"}, 415),
    "no accept": ({"accept": "*/*"}, {"accept": None}, 406),
    "events alone": ({"accept": "text/*, application/*"}, {"accept": "text/event-stream"}, 406),
    "JSON alone": ({"accept": "text/event-stream;q=0.1,application/json"},
                   {"accept": "application/json"}, 406),
    "no events": ({"accept": "*/*;q=0.5"}, {"accept": "*/*, text/event-stream;q=0"}, 406),
    "nothing": ({}, {"accept": "*/*;q=0.0"}, 406),
    "too long": ({"content_length": str(MAX_BODY)}, {"content_length": str(MAX_BODY + 1)}, 413),
    "of negative length": ({"content_length": "0"}, {"content_length": "-1"}, 413),
}  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "wanted"), CHECKED.values(), ids=CHECKED)
def test_each_refusal_has_an_innocent_twin(
    good: dict[str, Any], bad: dict[str, Any], wanted: int
) -> None:
    assert (0, wanted) == (status(**good), status(**bad))


def test_what_may_be_done_instead_is_told() -> None:
    found = admission.refused(EDGES, path=("notes", ""), verb="PUT", sent={})

    assert found is not None
    allowed = dict(found.headers)[b"allow"].decode().split(", ")
    assert ["POST", *admission.IN_SESSION] == allowed


def test_checks_come_in_their_order() -> None:
    """Whoever fails several hears of the first."""
    bad: dict[str, Any] = {
        "content_length": "99999999",
        "accept": "x",
        "content_type": "x",
        "origin": "x",
    }

    assert 413 == status(content_length="99999999")
    assert 415 == status(**{**bad, "origin": None})
    assert 403 == status(**bad)
    assert 421 == status(host="x", **bad)
    assert 405 == status("PUT", host="x", **bad)
    assert 404 == status("PUT", path=("all", ""), host="x", **bad)


def test_a_header_on_two_lines_reads_as_a_list() -> None:
    lines = [(b"accept", b"application/json"), (b"host", b"a"), (b"accept", b"text/event-stream")]
    sent = admission.joined(lines)

    assert {b"host": b"a", b"accept": b"application/json, text/event-stream"} == sent
    assert admission.admits(sent[b"accept"], JSON)
    assert admission.admits(sent[b"accept"], EVENTS)


def test_blanks_around_a_value_are_not_part_of_it() -> None:
    lines = [(b"mcp-name", b"  a b \t"), (b"accept", b"*/* "), (b"accept", b" text/plain")]

    assert {b"mcp-name": b"a b", b"accept": b"*/*, text/plain"} == admission.joined(lines)


def found(*lines: tuple[str, str], query: str = "", key: bool = False) -> tuple[bytes | None, bool]:
    raw = [(name.encode(), value.encode()) for name, value in lines]
    return admission.credential(admission.joined(raw), raw, query.encode(), key=key)


BEARER = ("authorization", "Bearer t")
KEY = ("x-api-key", "k")


def test_the_one_credential_is_found() -> None:
    assert (b"t", False) == found(BEARER)
    assert (b"t", False) == found(("authorization", "bearer  t "), query="page=2&session=s")
    assert (b"t", False) == found(BEARER, key=True)
    assert (b"k", False) == found(KEY, key=True)
    assert (None, False) == found(KEY)
    assert (None, False) == found()
    assert (b"", False) == found(("authorization", "Basic dDp0"))


@pytest.mark.parametrize("key", [False, True])
def test_two_are_none(key: bool) -> None:  # a table's column
    assert found(BEARER, KEY, key=key)[1]
    assert found(BEARER, BEARER, key=key)[1]
    assert found(KEY, KEY, key=key)[1]


@pytest.mark.parametrize(
    "query",
    [
        "access_token=t", "ACCESS_TOKEN=t", "access%5Ftoken=t", "x=1;token=t", "api-key=t",
        "X-Api-Key=t", "key", "x=bhv_ak_a.b", "x=eyJhbGciOiJub25lIn0.e30.", "x=Bearer%20t",
        "authorization=t", "client_secret=s",
    ],
)  # fmt: skip
def test_one_in_the_query_is_one_too_many(query: str) -> None:
    assert found(BEARER, query=query)[1]
    assert found(query=query)[1]


def test_loopback_has_several_names() -> None:
    made = edges(public_url="http://127.0.0.1:8700", issuer="x", allowed_hosts=[], cors_origins=[])

    assert {"127.0.0.1:8700", "localhost:8700", "[::1]:8700"} == made.hosts
    assert frozenset({"http://127.0.0.1:8700"}) == made.origins


def test_a_page_of_a_listed_site_is_told_what_it_may_send() -> None:
    asked = {
        b"origin": b"https://page.example",
        b"access-control-request-headers": b"Authorization, mcp-param-Region,cookie, x-evil",
    }
    answer = admission.preflight(EDGES, asked)

    assert 204 == answer.status
    said = dict(answer.headers)
    assert b"authorization, mcp-param-region" == said[b"access-control-allow-headers"]
    assert 403 == admission.preflight(EDGES, {b"origin": b"https://gw.example.evil"}).status


def test_only_listed_sites_may_read_and_never_with_cookies() -> None:
    shown = dict(admission.cors_headers(EDGES, {b"origin": b"https://page.example"}))

    assert b"https://page.example" == shown[b"access-control-allow-origin"]
    assert b"origin" == shown[b"vary"]
    assert b"access-control-allow-credentials" not in shown
    assert () == admission.cors_headers(EDGES, {b"origin": b"https://gw.example"})
    assert () == admission.cors_headers(EDGES, {})
