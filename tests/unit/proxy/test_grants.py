"""What a tool server is told of an agent: declared, and granted (mcp.md 3.4)."""

from typing import Any

import pytest

from services.proxy.asking import grants
from services.proxy.snapshot import Grants

NONE = Grants(elicitation_form=False)
DEFAULT = Grants()
ALL = Grants(
    elicitation_hosts=("example.com",), sampling=True, roots=True, extensions=("org.example/x",)
)
BOTH_MODES: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}}
EVERYTHING: dict[str, Any] = {
    **BOTH_MODES,
    "sampling": {"tools": {}, "context": {}, "own": {}},
    "roots": {"listChanged": True},
    "extensions": {"org.example/x": {"a": 1}, "org.example/y": {}},
    "tasks": {"requests": {}},
    "experimental": {"a": {}},
}


@pytest.mark.parametrize(
    ("declared", "granted", "told"),
    [
        (EVERYTHING, NONE, {}),
        (EVERYTHING, DEFAULT, {"elicitation": {"form": {}}}),
        (
            EVERYTHING, ALL,
            {**BOTH_MODES, "sampling": {"tools": {}, "context": {}}, "roots": {"listChanged": True},
             "extensions": {"org.example/x": {"a": 1}}},
        ),
        ({}, ALL, {}),
        (None, ALL, {}),
        ([], ALL, {}),
        ({"elicitation": {}}, DEFAULT, {"elicitation": {}}),
        ({"elicitation": {}}, NONE, {}),
        ({"elicitation": {"url": {}}}, DEFAULT, {}),
        ({"elicitation": {"url": {}}}, ALL, {"elicitation": {"url": {}}}),
        ({"elicitation": {"own": {}}}, ALL, {}),
        ({"elicitation": True, "sampling": 1, "roots": [], "extensions": 0}, ALL, {}),
        ({"sampling": {}, "roots": {"listChanged": 1}}, ALL, {"sampling": {}, "roots": {}}),
        ({"extensions": {"org.example/x": None}}, ALL, {}),
    ],
)  # fmt: skip
def test_a_server_is_told_what_is_declared_and_granted(
    declared: Any, granted: Grants, told: dict[str, Any]
) -> None:
    assert told == grants.granted(declared, granted)


@pytest.mark.parametrize(
    ("method", "params", "told", "may"),
    [
        (grants.ELICIT, {}, {"elicitation": {}}, True),
        (grants.ELICIT, {"mode": "form"}, {"elicitation": {"form": {}}}, True),
        (grants.ELICIT, {"mode": "url"}, {"elicitation": {}}, False),
        (grants.ELICIT, {"mode": "url"}, BOTH_MODES, True),
        (grants.ELICIT, {}, {"elicitation": {"url": {}}}, False),
        (grants.ELICIT, {"mode": []}, BOTH_MODES, False),
        (grants.ELICIT, {"mode": "own"}, BOTH_MODES, False),
        (grants.ELICIT, {}, {}, False),
        (grants.SAMPLE, {}, {"sampling": {}}, True),
        (grants.SAMPLE, {}, {}, False),
        (grants.SAMPLE, {"tools": []}, {"sampling": {}}, False),
        (grants.SAMPLE, {"toolChoice": {}}, {"sampling": {}}, False),
        (grants.SAMPLE, {"tools": []}, {"sampling": {"tools": {}}}, True),
        (grants.SAMPLE, {"includeContext": "none"}, {"sampling": {}}, True),
        (grants.SAMPLE, {"includeContext": "allServers"}, {"sampling": {"tools": {}}}, False),
        (grants.SAMPLE, {"includeContext": []}, {"sampling": {}}, False),
        (grants.SAMPLE, {"includeContext": "thisServer"}, {"sampling": {"context": {}}}, True),
        (grants.ROOTS, {}, {"roots": {}}, True),
        (grants.ROOTS, {}, {"sampling": {}}, False),
        ("tools/call", {}, EVERYTHING, False),
        ("ping", {}, EVERYTHING, False),
    ],
)
def test_only_what_it_was_told_of_may_be_asked(
    method: str, params: dict[str, Any], told: dict[str, Any], may: bool
) -> None:
    assert may == grants.may(method, params, told)


def test_a_session_remembers_little_and_nothing_that_its_version_does_not_know() -> None:
    declared = {**EVERYTHING, "elicitation": {"form": {"x": "y" * 9000}, "url": {}}}

    newest = grants.kept(declared, "2025-11-25")

    roots = {"roots": {"listChanged": True}}
    sampling: dict[str, Any] = {"sampling": {"tools": {}, "context": {}}}
    assert {**BOTH_MODES, **sampling, **roots} == newest
    assert {"elicitation": {"form": {}}, **sampling, **roots} == grants.kept(declared, "2025-06-18")
    assert {} == grants.kept({"elicitation": {"url": {}}}, "2025-06-18")
