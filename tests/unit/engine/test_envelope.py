"""core-envelope: what is not exactly `behavry.input/1` is refused, and the text says no payload."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.authorizer import envelope
from services.authorizer.envelope import EnvelopeInvalid
from services.common.rego import inputs
from services.common.rego.sample import sample_input
from tests.fakes.envelopes import example
from tests.promises import promise

SCHEMA = Path(envelope.__file__).parent / "policy" / "input.schema.json"


def full() -> dict[str, Any]:
    """An example in which nothing is null and no list is empty, so that every key can go."""
    uuid = example()["tenant"]["id"]
    return example(
        {
            "catalog": [
                {"server": "s", "tool": "t", "action": "read", "tokens": 3, "schema_pinned": True}
            ],
            "features.urls": [
                {"scheme": "https", "host": "a.example", "port": 443, "private": False}
            ],
            "findings.items": [
                {
                    "key": "k",
                    "category": "c",
                    "tags": ["t"],
                    "severity": "high",
                    "confidence": 0.5,
                    "action": "tag",
                    "suppressed_by": None,
                    "pointer": "/a",
                    "view": "raw",
                    "test": False,
                }
            ],
            "agent.restriction": {"profile": "read_only"},
            "requester": {"id": "u", "channel": "chat", "verified": False},
            "workflow": {
                "id": uuid,
                "session": uuid,
                "role": "r",
                "depth": 1,
                "max_depth": 2,
                "allowed_actions": ["read"],
                "parent_event": uuid,
            },
            "delegation": {
                "depth": 1,
                "chain": [{"from": uuid, "to": uuid, "token": "t", "exp": 1}],
                "tools": ["t"],
                "resources": ["r"],
                "actions": ["read"],
                "bytes_left": 1,
            },
        }
    )


def keys(node: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key of every object."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield (*at, name)
            if name != "arguments":
                yield from keys(value, (*at, name))
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from keys(value, (*at, number))


def parent(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


def refused(document: Any) -> EnvelopeInvalid:
    with pytest.raises(EnvelopeInvalid) as caught:
        envelope.decode(json.dumps(document).encode())
    return caught.value


def test_the_example_and_the_full_one_are_accepted_and_come_back_as_they_were() -> None:
    for document in (example(), full(), sample_input()):
        decoded = envelope.decode(json.dumps(document).encode())

        assert document == json.loads(envelope.encode(decoded))


@promise("envelope:closed")
def test_without_any_one_key_it_is_refused() -> None:
    every = list(keys(full()))
    assert len(every) > 110
    for path in every:
        document = full()
        del parent(document, path)[path[-1]]
        refused(document)


def test_with_another_key_in_any_object_it_is_refused() -> None:
    for path in keys(full()):
        document = full()
        parent(document, path)["surplus"] = 1
        refused(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "behavry.input/2"),
        ("tenant.id", "DEADBEEF-0000-7000-8000-000000000001"),
        ("tenant.id", ""),
        ("tenant.slug", "x" * 41),
        ("request.action", "chmod"),
        ("request.kind", "calls"),
        ("request.tool", "x" * 129),
        ("request.tool", None),
        ("request.arguments", []),
        ("request.arguments", "text"),
        ("request.arguments", {"a": "x" * 65_536}),
        ("request.arguments_omitted", 1),
        ("features.arg_bytes", -1),
        ("features.arg_bytes", 1.5),
        ("features.keys", [{"name": "a", "type": "date"}]),
        ("features.commands", ["x"] * 65),
        ("findings.scan", "partial"),
        ("findings.content_risk", -0.1),
        ("context.now", "yesterday"),
        ("context.now", "2026-03-02T10:15:00+01:00"),
        ("context.hour", 24),
        ("context.weekday", 0),
        ("context.transport", "pipe"),
        ("agent.permissions", ["x"] * 201),
        ("agent.permissions", ["x" * 81]),
        ("agent.roles", "reader"),
        ("risk.score", 101),
        ("risk.tier", "none"),
    ],
)
def test_a_value_outside_its_limits_is_refused(path: str, value: Any) -> None:
    refused(example({path: value}))


def test_at_its_limits_it_is_accepted() -> None:
    edges = {
        "tenant.slug": "x" * 40,
        "request.tool": "ü" * 128,
        "request.arguments": {"a": "x" * (65_536 - 8)},
        "features.commands": ["x"] * 64,
        "context.hour": 23,
        "agent.permissions": ["x" * 80] * 200,
        "risk.score": 100,
    }
    envelope.decode(json.dumps(example(edges), separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"schema":"x"}', b"[" * 99_999]
)
def test_bytes_that_are_no_envelope_are_refused(raw: bytes) -> None:
    with pytest.raises(EnvelopeInvalid):
        envelope.decode(raw)


def test_a_refusal_names_the_place_and_never_the_payload() -> None:
    secret = "hunter2-is-the-password"
    for path in ("request.tool", "request.action", "agent.class"):
        failure = refused(example({path: [secret]}))

        assert secret not in str(failure)
        assert path.split(".")[1] in failure.where
    surplus = example()
    surplus["request"][secret] = secret

    assert secret not in str(refused(surplus))


def test_arguments_stay_the_bytes_that_came() -> None:
    raw = json.dumps(example()).encode()
    odd = b'{"b": 1.0,  "a":1e2, "b2": "\\u00e9"}'
    given = raw.replace(json.dumps(example()["request"]["arguments"]).encode(), odd)

    assert odd in envelope.encode(envelope.decode(given))


def test_what_is_recorded_has_every_key_and_no_arguments() -> None:
    decoded = envelope.decode(json.dumps(example()).encode())
    recorded = json.loads(envelope.envelope_without_arguments(decoded))

    expected = copy.deepcopy(example())
    expected["request"]["arguments"] = None
    assert expected == recorded
    envelope.decode(json.dumps(recorded).encode())


def test_the_committed_schema_is_this_table() -> None:
    assert envelope.schema_document() == json.loads(SCHEMA.read_text())


def test_every_field_is_either_produced_or_known_not_to_be() -> None:
    """A policy may name each leaf of the schema, or is told that nothing fills it."""
    for path in keys(example()):
        names = tuple(step for step in path if isinstance(step, str))
        if len(names) < len(path):
            continue  # inside a list: policies name the list
        problem = inputs.problem_with(names)

        assert problem is None or "no such field" not in problem
    for unproduced in inputs.UNPRODUCED:
        assert "nothing fills this" in (inputs.problem_with(unproduced) or "")
