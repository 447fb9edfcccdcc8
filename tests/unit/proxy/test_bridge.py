"""What is made, stripped and renamed between the eras (mcp.md 2.3)."""

from typing import Any

import orjson
import pytest

from services.proxy import bridge
from services.proxy.bridge import Facts, Untranslatable
from services.proxy.eras import (
    CAPABILITIES_META,
    CLIENT_META,
    LEVEL_META,
    NEWEST_MODERN,
    SERVER_META,
    VERSION_META,
)
from services.proxy.messages import encode

MODERN = Facts(era="modern", version=NEWEST_MODERN)
LEGACY = Facts(era="legacy", version="2025-11-25")


def sent(params: dict[str, Any], facts: Facts, **options: Any) -> dict[str, Any]:
    made: dict[str, Any] = orjson.loads(encode(bridge.outgoing(params, facts, **options)))
    return made


def test_a_modern_server_gets_the_envelope_with_the_capabilities_that_it_is_granted() -> None:
    client = {"name": "agent", "version": "9"}
    meta = {VERSION_META: "x", CLIENT_META: client, CAPABILITIES_META: {"sampling": {}}, "own": 1,
            "com.behavry/decision": 1, "traceparent": "t", "progressToken": 5,
            LEVEL_META: "warning", "io.modelcontextprotocol/related-task": {}}  # fmt: skip

    own = bridge.own_meta({"_meta": meta})
    untold = sent({"name": "t", "_meta": meta, "other": [1]}, MODERN, meta=own)
    told = sent({"name": "t", "_meta": meta}, MODERN, told={"elicitation": {}}, meta=own)

    envelope = {"own": 1, VERSION_META: NEWEST_MODERN, CLIENT_META: client, LEVEL_META: "warning"}
    assert {
        "name": "t", "other": [1], "_meta": {**envelope, CAPABILITIES_META: {}},
    } == untold  # fmt: skip
    assert {"name": "t", "_meta": {**envelope, CAPABILITIES_META: {"elicitation": {}}}} == told


@pytest.mark.parametrize("level", ["loud", 1, None, {}])
def test_a_level_that_is_none_stays_here(level: Any) -> None:
    assert LEVEL_META not in sent({"_meta": {LEVEL_META: level}}, MODERN)["_meta"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"name": "a", "version": "1", "title": "A"},) * 2,
        ({"name": "a", "version": "1", "note": "n" * 9}, {"name": "a", "version": "1"}),
        ({"name": "a" * 129, "version": "1"}, bridge.OURS),
        ({"name": "a", "version": {"x": 1}}, bridge.OURS),
        ({"name": "a"}, bridge.OURS),
        ("agent", bridge.OURS),
    ],
)
def test_of_itself_an_agent_says_its_name(said: Any, told: Any) -> None:
    assert told == sent({"_meta": {CLIENT_META: said}}, MODERN)["_meta"][CLIENT_META]


def test_what_was_not_decided_of_the_agents_own_meta_stays_here() -> None:
    meta = {"own": 1, LEVEL_META: "debug"}

    made = sent({"_meta": meta}, MODERN, decided={"name": "t"})

    assert {VERSION_META, CLIENT_META, CAPABILITIES_META, LEVEL_META} == set(made["_meta"])


def test_a_legacy_server_gets_none_of_it() -> None:
    meta = {VERSION_META: NEWEST_MODERN, CAPABILITIES_META: {}}

    assert {"name": "t"} == sent({"name": "t", "_meta": meta}, LEGACY)
    assert {"name": "t", "_meta": {"own": 1}} == sent(
        {"name": "t", "_meta": {**meta, "own": 1}}, LEGACY, meta={"own": 1}
    )


def test_what_was_decided_goes_up_and_nothing_else_of_the_request() -> None:
    made = sent(
        {"name": "t", "arguments": {"b": 1}, "inputResponses": {}}, LEGACY, decided={"name": "u"}
    )

    assert {"name": "u"} == made


def test_integers_of_any_size_stand_beside_what_is_written_already() -> None:
    huge = 2**70

    made = bridge.outgoing({"other": huge}, MODERN, told={}, meta={"own": huge})

    assert encode(made).count(str(huge).encode()) == 2


@pytest.mark.parametrize(
    ("facts", "to_modern", "method", "given", "wanted"),
    [
        (MODERN, True, "tools/call", {"content": []}, {"content": [], "resultType": "complete"}),
        (LEGACY, True, "tools/call", {"content": []}, {"content": [], "resultType": "complete"}),
        (
            LEGACY, True, "tools/list", {"tools": []},
            {"tools": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"},
        ),
        (
            MODERN, True, "tools/list", {"tools": [], "ttlMs": 10**9, "cacheScope": "public"},
            {"tools": [], "resultType": "complete", "ttlMs": 30_000, "cacheScope": "private"},
        ),
        (
            MODERN, True, "resources/read", {"ttlMs": -1},
            {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"},
        ),
        (
            MODERN, False, "tools/list",
            {"tools": [], "resultType": "complete", "ttlMs": 1, "cacheScope": "public"},
            {"tools": []},
        ),
        (LEGACY, False, "tools/call", {"isError": True}, {"isError": True}),
        (LEGACY, False, "tools/call", {"resultType": "mine"}, {"resultType": "mine"}),
    ],
)  # fmt: skip
def test_results_take_the_agents_form(
    facts: Facts, to_modern: bool, method: str, given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert wanted == bridge.result(given, method, facts, to_modern=to_modern)


def test_a_server_cannot_forge_our_meta() -> None:
    found = bridge.result(
        {"_meta": {"com.behavry/decision": 1, "x": 2}}, "tools/call", LEGACY, to_modern=False
    )

    assert {"_meta": {"x": 2}} == found


@pytest.mark.parametrize("kind", ["input_required", "task", "mine", 1, None, []])
def test_results_of_other_types_are_none(kind: Any) -> None:
    with pytest.raises(Untranslatable) as refused:
        bridge.result({"resultType": kind}, "tools/call", MODERN, to_modern=True)

    assert "upstream_protocol" == refused.value.reason


@pytest.mark.parametrize(
    ("found", "facts", "kind"),
    [
        ({}, MODERN, "complete"),
        ({"resultType": "input_required"}, MODERN, "input_required"),
        ({"resultType": "task"}, MODERN, "task"),
        ({"resultType": "task"}, LEGACY, "complete"),
        ({"resultType": 5}, LEGACY, "complete"),
    ],
)
def test_only_a_modern_server_has_results_of_several_types(
    found: dict[str, Any], facts: Facts, kind: str
) -> None:
    assert kind == bridge.kind(found, facts)


@pytest.mark.parametrize(
    ("code", "method", "facts", "to_modern", "wanted"),
    [
        (-32002, "resources/read", LEGACY, True, -32602),
        (-32002, "resources/read", LEGACY, False, -32002),
        (-32602, "resources/read", MODERN, False, -32002),
        (-32602, "tools/call", MODERN, False, -32602),
        (-32602, "resources/read", MODERN, True, -32602),
        (-32603, "resources/read", LEGACY, True, -32603),
    ],
)
def test_not_found_has_another_number_in_each_era(
    code: int, method: str, facts: Facts, to_modern: bool, wanted: int
) -> None:
    assert wanted == bridge.error_code(code, method, facts, to_modern=to_modern)


def test_only_what_is_relayed_is_offered() -> None:
    facts = Facts(
        era="legacy", version="2025-11-25",
        capabilities={"tools": {"listChanged": True}, "resources": {"subscribe": True},
                      "logging": {}, "completions": {}, "tasks": {}, "experimental": {}},
        server_info={"name": "s", "version": "1"}, instructions="Be kind.",
    )  # fmt: skip

    introduced = bridge.initialized(facts, "2025-06-18")
    discovered = bridge.discovered(facts)

    offered: dict[str, Any] = {
        "tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {},
        "completions": {},
    }  # fmt: skip
    ours: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    assert offered == introduced["capabilities"]
    assert {**offered, **ours} == discovered["capabilities"]
    assert (
        {"name": "s", "version": "1"}
        == introduced["serverInfo"]
        == discovered["_meta"][SERVER_META]
    )
    assert ("Be kind.", "2025-06-18") == (introduced["instructions"], introduced["protocolVersion"])
    assert "private" == discovered["cacheScope"]
