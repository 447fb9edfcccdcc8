"""Headers that agree with the body, and headers made from it (mcp.md 3.2)."""

import base64
from typing import Any

import pytest
from mcp.shared import inbound

from services.proxy import headers
from services.proxy.answers import HEADER_MISMATCH, Rejection
from services.proxy.messages import Kind, Message


def message(method: str = "tools/call", **params: Any) -> Message:
    return Message(Kind.REQUEST, 1, method, params, has_params=True)


def sent(**given: str) -> dict[bytes, bytes]:
    return {
        name.replace("_", "-").encode(): value.encode("latin-1") for name, value in given.items()
    }


def b64(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


AGREE = {
    "plain": (sent(mcp_method="tools/call", mcp_name="read"), message(name="read")),
    "disguised": (sent(mcp_method="tools/call", mcp_name=b64("read")), message(name="read")),
    "not ASCII": (sent(mcp_method="tools/call", mcp_name=b64("lésen")), message(name="lésen")),
    "a URI": (
        sent(mcp_method="resources/read", mcp_name="file:///a"),
        message("resources/read", uri="file:///a"),
    ),
    "a method without name": (sent(mcp_method="tools/list"), message("tools/list")),
    "a needless name": (sent(mcp_method="tools/list", mcp_name="x"), message("tools/list")),
}
DISAGREE = {
    "another method": (sent(mcp_method="tools/list", mcp_name="read"), message(name="read")),
    "no method": (sent(mcp_name="read"), message(name="read")),
    "method of other case": (sent(mcp_method="Tools/Call", mcp_name="read"), message(name="read")),
    "another name": (sent(mcp_method="tools/call", mcp_name="write"), message(name="read")),
    "no name": (sent(mcp_method="tools/call"), message(name="read")),
    "another name, disguised": (
        sent(mcp_method="tools/call", mcp_name=b64("write")), message(name="read"),
    ),
    "base64 that is none": (
        sent(mcp_method="tools/call", mcp_name="=?base64?%%%?="), message(name="read"),
    ),
    "base64 not canonical": (
        sent(mcp_method="tools/call", mcp_name="=?base64?cmVhZB==?="), message(name="read"),
    ),
    "double disguise": (
        sent(mcp_method="tools/call", mcp_name=b64(b64("read"))), message(name="read"),
    ),
    "raw bytes that two readers read differently": (
        sent(mcp_method="tools/call", mcp_name="lésen"), message(name="lésen"),
    ),
    "a method disguised": (
        sent(mcp_method=b64("tools/call"), mcp_name="read"), message(name="read"),
    ),
    "a needed name beside another disguise": (
        sent(mcp_method="tools/call", mcp_name="=?BASE64?cmVhZA==?="), message(name="read"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "body"), AGREE.values(), ids=AGREE)
def test_headers_that_say_what_the_body_says_pass(given: dict[bytes, bytes], body: Message) -> None:
    assert headers.agree(given, body) is None


@pytest.mark.parametrize(("given", "body"), DISAGREE.values(), ids=DISAGREE)
def test_headers_that_say_something_else_do_not(given: dict[bytes, bytes], body: Message) -> None:
    found = headers.agree(given, body)

    assert found is not None
    assert (400, HEADER_MISMATCH) == (found.status, found.code)


@pytest.mark.parametrize(
    "name", [b"mcp-name", b"mcp-method", b"mcp-protocol-version", b"mcp-session-id", b"mcp-param-x"]
)
def test_a_header_twice_is_seen(name: bytes) -> None:
    assert headers.doubled([(name, b"a"), (b"accept", b"x"), (name, b"a")])
    assert not headers.doubled([(name, b"a"), (b"accept", b"x"), (b"accept", b"y")])


SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "deep": {
            "type": "object",
            "properties": {"flag": {"type": "boolean", "x-mcp-header": "Flag"}},
        },
    },
}


def params_agree(arguments: dict[str, Any], **given: str) -> bool:
    expected = headers.annotated(SCHEMA)
    return headers.agree_params(expected, sent(**given), arguments) == ()


@pytest.mark.parametrize(
    ("arguments", "given", "wanted"),
    [
        ({}, {}, True),
        ({"region": "eu"}, {"mcp_param_region": "eu"}, True),
        ({"region": "eu"}, {"mcp_param_region": b64("eu")}, True),
        ({"region": "eu"}, {"mcp_param_region": "us"}, False),
        ({"region": "eu"}, {}, False),
        ({}, {"mcp_param_region": "eu"}, False),
        ({"region": None}, {}, True),
        ({"region": ["eu"]}, {"mcp_param_region": "eu"}, False),
        ({"count": 42}, {"mcp_param_count": "42"}, True),
        ({"count": 42}, {"mcp_param_count": "42.0"}, True),
        ({"count": 42.0}, {"mcp_param_count": "42"}, True),
        ({"count": 42}, {"mcp_param_count": "43"}, False),
        ({"count": 42}, {"mcp_param_count": "4.2e1"}, False),
        ({"count": 2**70}, {"mcp_param_count": str(2**70)}, True),
        ({"count": 2**70}, {"mcp_param_count": str(2**70 + 1)}, False),
        ({"deep": {"flag": True}}, {"mcp_param_flag": "true"}, True),
        ({"deep": {"flag": True}}, {"mcp_param_flag": "True"}, False),
        ({"deep": 1}, {}, True),
    ],
)
def test_annotated_arguments_and_their_headers_come_together(
    arguments: dict[str, Any], given: dict[str, str], wanted: bool
) -> None:
    assert wanted == params_agree(arguments, **given)


def test_upstream_headers_are_made_from_the_arguments() -> None:
    made = dict(
        headers.param_headers(headers.annotated(SCHEMA), {"region": "é", "deep": {"flag": False}})
    )

    assert {"mcp-param-region": b64("é"), "mcp-param-flag": "false"} == made


@pytest.mark.parametrize(
    "schema",
    [
        {"x-mcp-header": "A"},
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A b"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": ""}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": 1}}},
        {"properties": {"a": {"type": ["string"], "x-mcp-header": "A"}}},
        {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"allOf": [{"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}]},
        {
            "properties": {
                "a": {"type": "string", "x-mcp-header": "A"},
                "b": {"type": "string", "x-mcp-header": "a"},
            }
        },
    ],
)
def test_annotations_that_cannot_be_followed_are_told_apart(schema: dict[str, Any]) -> None:
    assert inbound.find_invalid_x_mcp_header(schema) is not None
    with pytest.raises(headers.InvalidAnnotation):
        headers.annotated(schema)


def passed(*given: tuple[bytes, bytes]) -> tuple[tuple[str, str], ...] | tuple[int, int]:
    """What travels on, or the refusal's (status, code)."""
    region = (b"mcp-param-region", b"eu")
    found = headers.agree_params(
        headers.annotated(SCHEMA), dict((region, *given)), {"region": "eu"}
    )
    return (found.status, found.code) if isinstance(found, Rejection) else found


def test_headers_that_no_schema_knows_travel_on_in_one_spelling() -> None:
    assert () == passed((b"x-other", b"1"))
    assert (("mcp-param-b", "plain"),) == passed((b"mcp-param-b", b"plain"))
    assert (("mcp-param-b", "plain"),) == passed((b"mcp-param-b", b64("plain").encode()))
    assert (("mcp-param-b", b64("é")),) == passed((b"mcp-param-b", b64("é").encode()))
    assert (400, HEADER_MISMATCH) == passed((b"mcp-param-b", b"=?base64?%?="))
    assert (400, HEADER_MISMATCH) == passed((b"mcp-param-b", "é".encode()))


def test_they_are_few_and_short_and_the_known_ones_do_not_count() -> None:
    assert 16 == len(passed(*((b"mcp-param-%d" % i, b"x" * 1024) for i in range(16))))
    assert (431, -32600) == passed(*((b"mcp-param-%d" % i, b"x") for i in range(17)))
    assert (431, -32600) == passed((b"mcp-param-a", b"x" * 1025))
    long = "x" * 2000
    assert params_agree({"region": long}, mcp_param_region=long)
