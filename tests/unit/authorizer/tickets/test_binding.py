"""Which facts of a call an approval is bound to (core.md 9)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from services.authorizer.tickets.binding import Bound, binding, subject
from services.common.outbox.digests import Digester
from tests.fakes.tickets import AGENT, OTHER_AGENT, OTHER_TENANT, TENANT
from tests.promises import promise

DIGESTER = Digester([b"k" * 32])
CALL = Bound(
    tenant=TENANT,
    agent=AGENT,
    requester=("alice", "chat", True),
    delegation=None,
    workflow=None,
    server="git",
    tool="git_commit",
    method="tools/call",
    resource="/repo",
    arguments_digest="h1:aa:00",
    schema_hash="sha256:aa",
    policy_revision="r1",
    codes=("policy", "scan_limit"),
)
READ = dataclasses.replace(CALL, method="resources/read", tool="")

#: Each bound field with another value.
FLIPS: list[tuple[str, Any]] = [
    ("tenant", OTHER_TENANT),
    ("agent", OTHER_AGENT),
    ("requester", None),
    ("requester", ("bob", "chat", True)),
    ("requester", ("alice", "mail", True)),
    ("requester", ("alice", "chat", False)),
    ("delegation", "d1"),
    ("workflow", "w1"),
    ("server", "github"),
    ("tool", "git_push"),
    ("method", "prompts/get"),
    ("arguments_digest", "h1:aa:01"),
    ("schema_hash", "sha256:bb"),
    ("schema_hash", None),
    ("policy_revision", "r2"),
    ("codes", ("policy",)),
    ("codes", ("policy", "scan_limit", "default_deny")),
]
#: These make it another question about the same call.
NOT_OF_THE_SUBJECT = {"schema_hash", "policy_revision", "codes"}


@promise("escalations:bound")
@pytest.mark.parametrize(("field", "value"), FLIPS, ids=str)
def test_each_bound_field_makes_another_binding(field: str, value: Any) -> None:
    other = dataclasses.replace(CALL, **{field: value})

    assert binding(CALL, DIGESTER) != binding(other, DIGESTER)
    assert (field in NOT_OF_THE_SUBJECT) == (subject(CALL, DIGESTER) == subject(other, DIGESTER))


def test_each_field_is_flipped_here() -> None:
    flipped = {field for field, _ in FLIPS}

    assert {"resource"} == {field.name for field in dataclasses.fields(Bound)} - flipped


def test_the_same_call_has_the_same_binding() -> None:
    twin = dataclasses.replace(CALL)
    turned = dataclasses.replace(CALL, codes=("scan_limit", "policy", "scan_limit"))

    assert {binding(CALL, DIGESTER)} == {binding(one, DIGESTER) for one in (twin, turned)}
    assert subject(CALL, DIGESTER) == subject(twin, DIGESTER)
    assert binding(CALL, DIGESTER) != subject(CALL, DIGESTER)


def test_a_resource_counts_where_no_tool_is_named() -> None:
    other_tool = dataclasses.replace(CALL, resource="/elsewhere")
    other_read = dataclasses.replace(READ, resource="/elsewhere")

    assert binding(CALL, DIGESTER) == binding(other_tool, DIGESTER)  # it comes from the arguments
    assert binding(READ, DIGESTER) != binding(other_read, DIGESTER)
    assert subject(READ, DIGESTER) != subject(other_read, DIGESTER)


def test_another_plane_makes_other_bindings() -> None:
    other = Digester([b"o" * 32])

    assert binding(CALL, DIGESTER) != binding(CALL, other)
    assert binding(CALL, DIGESTER).startswith("b1:")
    assert 64 == len(binding(CALL, DIGESTER).rpartition(":")[2])


def test_values_do_not_run_into_each_other() -> None:
    one = dataclasses.replace(CALL, server="a", tool="b,c")
    two = dataclasses.replace(CALL, server="a,b", tool="c")

    assert binding(one, DIGESTER) != binding(two, DIGESTER)
