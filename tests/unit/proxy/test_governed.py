"""What of a request is decided, digested and forwarded: the same (mcp.md 3.1, 4)."""

from typing import Any

import orjson
import pytest

from services.proxy import features, messages
from services.proxy.answers import Rejection
from services.proxy.governed import Question, question
from services.proxy.messages import Kind, Message


def asked(method: str, params: dict[str, Any], *, modern: bool = True) -> Question:
    made = question(Message(Kind.REQUEST, 1, method, params, has_params=True), modern=modern)
    assert not isinstance(made, Rejection)
    return made


def sent(made: Question) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(messages.encode(made.params()))
    return found


def derived(made: Question) -> dict[str, Any]:
    found = features.derive(made.arguments, len(made.canonical), beside=made.seen_beside())
    tree: dict[str, Any] = orjson.loads(found.encoded)
    return tree


def test_a_plain_call_is_its_arguments() -> None:
    made = asked("tools/call", {"name": "t", "arguments": {"b": 1, "a": 2}, "_meta": {"x": 1}})

    assert b'{"a":2,"b":1}' == made.canonical == made.encoded
    assert {"name": "t", "arguments": {"a": 2, "b": 1}} == sent(made)
    assert {} == asked("tools/call", {"name": "t", "_meta": {"com.behavry/x": 1}}).seen_beside()


def test_what_an_agent_says_of_its_call_is_seen_by_policies_and_makes_it_no_other_call() -> None:
    meta = {"example.org/note": {"path": "/etc/passwd"}, "progressToken": 1, "traceparent": "t"}
    params = {"name": "t", "arguments": {"a": {"b": {"path": "/srv/a"}}}}
    made, bare = asked("tools/call", {**params, "_meta": meta}), asked("tools/call", params)

    assert {"example.org/note": {"path": "/etc/passwd"}} == made.meta
    assert (made.canonical, made.encoded) == (bare.canonical, bare.encoded)
    assert ["/srv/a", "/etc/passwd"] == [one["value"] for one in derived(made)["paths"]]
    assert ["a", "_meta"] == [one["name"] for one in derived(made)["keys"]]
    # However deep the arguments' own target is, it is what the call is about.
    found = features.derive(made.arguments, 0, beside=made.seen_beside())
    assert ("/srv/a", "path") == (found.resource, found.resource_kind)
    hidden = asked("tools/call", {**params, "arguments": {"_meta": 1}, "_meta": meta})
    assert ["_meta", "_meta_"] == [one["name"] for one in derived(hidden)["keys"]]


def test_unknown_members_go_up_are_digested_and_seen_by_policies() -> None:
    made = asked("tools/call", {"name": "t", "arguments": {"a": 1}, "own": {"path": "/etc/passwd"}})

    assert {"name": "t", "arguments": {"a": 1}, "own": {"path": "/etc/passwd"}} == sent(made)
    assert b'[{"a":1},{"own":{"path":"/etc/passwd"}}]' == made.canonical
    assert b'{"a":1}' == made.encoded
    assert ["/etc/passwd"] == [one["value"] for one in derived(made)["paths"]]
    assert ["a", "_beside"] == [one["name"] for one in derived(made)["keys"]]


def test_no_arguments_are_taken_for_what_stands_beside_others() -> None:
    beside = asked("tools/call", {"name": "t", "arguments": {"a": 1}, "own": 2})
    alone = asked(
        "tools/call", {"name": "t", "arguments": {"arguments": {"a": 1}, "beside": {"own": 2}}}
    )
    named = asked("tools/call", {"name": "t", "arguments": {"a": 1, "_beside": {"own": 2}}})

    assert len({beside.canonical, alone.canonical, named.canonical}) == 3
    twice = asked("tools/call", {"name": "t", "arguments": {"_beside": {"to": "a@b.c"}}, "own": 2})
    assert {"_beside", "_beside_"} == {*twice.arguments, *twice.seen_beside()}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("resources/read", {"uri": "file:///a", "own": 1}),
        ("prompts/get", {"name": "p", "arguments": {"x": "y"}}),
    ],
)
def test_of_other_methods_all_of_params_is_decided(method: str, params: dict[str, Any]) -> None:
    made = asked(method, {**params, "_meta": {"x": 1}})

    assert params == sent(made) == orjson.loads(made.canonical)


def test_integers_of_any_size_go_up_as_they_came() -> None:
    huge = 2**70
    made = asked("tools/call", {"name": "t", "arguments": {"a": huge}, "own": huge})

    assert messages.encode(made.params()).count(str(huge).encode()) == 2


@pytest.mark.parametrize(
    ("params", "modern"),
    [
        ({"name": "t", "task": {}}, True),
        ({"name": "t", "task": {}}, False),
        ({"name": "t", "inputResponses": {}}, False),
        ({"name": "t", "requestState": "x"}, False),
        ({"name": "", "arguments": {}}, True),
        ({"name": "t", "arguments": None}, True),
    ],
)
def test_what_nobody_could_decide_is_refused(params: dict[str, Any], modern: bool) -> None:
    made = question(Message(Kind.REQUEST, 1, "tools/call", params, has_params=True), modern=modern)

    assert isinstance(made, Rejection)
    assert messages.INVALID_PARAMS == made.code
