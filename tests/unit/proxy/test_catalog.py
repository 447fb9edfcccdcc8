"""What pins a definition, and which tools no agent may ever see."""

from typing import Any

import pytest

from services.proxy import catalog

TOOL: dict[str, Any] = {
    "name": "read", "title": "Read", "description": "Reads.",
    "inputSchema": {"type": "object", "properties": {"b": {}, "a": {}}},
    "outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True},
    "_meta": {"x": 1}, "icons": [], "execution": {"taskSupport": "optional"},
}  # fmt: skip


def pin(**changes: Any) -> str:
    made = catalog.define({**TOOL, **changes})
    assert made is not None
    return made.schema_hash


@pytest.mark.parametrize(
    "member", ["title", "description", "inputSchema", "outputSchema", "annotations"]
)
def test_each_pinned_member_changes_the_pin(member: str) -> None:
    other = {"type": "string"} if member.endswith("Schema") or member == "annotations" else "other"

    assert pin() != pin(**{member: other})
    assert pin() != pin(**{member: None})


@pytest.mark.parametrize("member", ["_meta", "icons"])
def test_the_rest_does_not(member: str) -> None:
    assert pin() == pin(**{member: {"other": 2}})


def test_the_order_of_keys_does_not() -> None:
    schema = {"properties": {"a": {}, "b": {}}, "type": "object"}

    assert pin() == pin(inputSchema=schema)


@pytest.mark.parametrize(
    "raw",
    [
        None, [], {}, {"name": 1}, {"name": ""}, {"name": "a b"}, {"name": "a" * 129},
        {"name": "\u00e9"},
        {**TOOL, "execution": {"taskSupport": "required"}},
        {**TOOL, "inputSchema": {"properties": {"a": {"type": "object", "x-mcp-header": "A"}}}},
    ],
    ids=lambda raw: str(raw)[-60:],
)  # fmt: skip
def test_odd_tools_leave_the_list(raw: Any) -> None:
    assert catalog.define(raw) is None


def test_a_tool_that_needs_tasks_is_there_where_tasks_are() -> None:
    raw = {**TOOL, "execution": {"taskSupport": "required"}}

    assert catalog.define(raw, tasks=True) is not None


def test_a_huge_definition_is_pinned_but_not_sent() -> None:
    made = catalog.define({**TOOL, "description": "x" * 70_000})

    assert made is not None
    assert b"" == made.definition
    assert made.schema_hash.startswith("sha256:")
