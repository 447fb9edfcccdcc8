"""What is taken from whom, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from services.audit.admission import TYPES, Rejected, check_body, check_part, may_write
from services.audit.chain import commitment
from services.audit.record import Columns, columns
from services.common.ids import NIL_TENANT

TENANT = "0198c0de-0000-7000-8000-000000000001"
ID = "0198c0de-0000-7000-8000-0000000000ff"
SOURCE, BOOT = "5a5a5a5a-0000-4000-8000-000000000000", "0198c0de-0000-7000-8000-0000000000b0"
GOOD: dict[str, Any] = {
    "v": "behavry.record/1",
    "id": ID,
    "tenant": TENANT,
    "chain": "tenant",
    "type": "call.intent",
    "src": {"kind": "proxy", "id": SOURCE, "boot": BOOT, "n": 7},
}


def _check(body: dict[str, Any], **changes: Any) -> None:
    entry: dict[str, Any] = {
        "peer": "proxy", "source": SOURCE, "boot": BOOT, "n": 7, "tenant": TENANT,
        "chain_name": "tenant", "id": ID,
    }  # fmt: skip
    check_body(body, **{**entry, **changes})


def test_a_record_that_is_what_its_entry_says_is_taken() -> None:
    _check(GOOD)


@pytest.mark.parametrize(
    ("body", "entry", "reason"),
    [
        ({"v": "behavry.record/2"}, {}, "version_unknown"),
        ({"id": ID[:-1] + "0"}, {}, "entry_mismatch"),
        ({"tenant": NIL_TENANT}, {}, "entry_mismatch"),
        ({"chain": "admin"}, {}, "entry_mismatch"),
        ({}, {"chain_name": "admin"}, "entry_mismatch"),
        ({"chain": "mine"}, {"chain_name": "mine"}, "chain_unknown"),
        ({"tenant": NIL_TENANT}, {"tenant": NIL_TENANT}, "chain_unknown"),
        ({"id": "x"}, {"id": "x"}, "id_malformed"),
        ({"id": SOURCE}, {"id": SOURCE}, "id_malformed"),
        ({}, {"n": 8}, "source_mismatch"),
        ({}, {"boot": SOURCE}, "source_mismatch"),
        ({"src": {}}, {}, "source_mismatch"),
        ({"src": "proxy"}, {}, "source_mismatch"),
        ({"src": {**GOOD["src"], "n": True}}, {"n": 1}, "source_mismatch"),
        ({"type": "admin.agent.create"}, {}, "type_not_allowed"),
        ({"type": "chain.opened"}, {}, "type_not_allowed"),
        ({"type": 7}, {}, "type_not_allowed"),
        ({}, {"peer": "entitlements"}, "type_not_allowed"),
    ],
)
def test_one_that_is_not_is_rejected_with_a_word(
    body: dict[str, Any], entry: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Rejected) as rejected:
        _check({**GOOD, **body}, **entry)

    assert reason == rejected.value.reason


def test_no_type_belongs_to_two_peers() -> None:
    owners = {kind: peer for peer, kinds in TYPES.items() for kind in kinds}

    assert sum(len(kinds) for kinds in TYPES.values()) == len(owners)


@pytest.mark.parametrize("peer", ["proxy", "authorizer", "control", "audit"])
def test_each_source_tells_about_itself(peer: str) -> None:
    assert may_write(peer, "heartbeat")
    assert may_write(peer, "source.opened")
    assert not may_write("entitlements", "heartbeat")


def test_a_part_must_be_committed_to() -> None:
    salt = bytes(32)
    body = {"arguments": {"commit": commitment(salt, b"{}").hex()}}
    good: dict[str, Any] = {"kind": "arguments", "salt": salt, "stored": b"{}", "mode": "full"}
    check_part(body, **good)

    for wrong in (
        {"kind": "result"}, {"kind": "other"}, {"salt": b"\1" + salt[1:]}, {"salt": b""},
        {"stored": b"{ }"}, {"mode": "plain"},
    ):  # fmt: skip
        with pytest.raises(Rejected):
            check_part(body, **{**good, **wrong})


def test_columns_follow_the_body() -> None:
    derived = columns(
        {
            "type": "call.outcome",
            "decision": ID,
            "server": "time",
            "tool": "now",
            "actor": {"kind": "agent", "id": "a", "name": "n", "session": "s"},
        }
    )

    assert Columns("call.outcome", ID, "a", "n", "s", "time", "now", "", "", "") == derived


def test_columns_hold_no_nul_no_separator_and_nothing_but_text() -> None:
    derived = columns(
        {"type": "t\0", "tool": "a\x1fb", "server": 7, "decision": "no", "actor": ["x"]}
    )

    assert Columns("t�", "", "", "", "", "", "a�b", "", "", "") == derived


def test_a_persons_id_is_no_agents() -> None:
    assert "" == columns({"type": "t", "actor": {"kind": "user", "id": "u"}}).agent
