"""The verifier on values: what it says of numbers, parts, and copies without columns. What it says
of manipulated databases is shown in tests/attacks/audit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from services.audit.chain import Head, beginning, commitment, link
from services.audit.record import columns
from services.audit.verify import Finding, Row, StoredPart, Verdict, Verifier

TENANT = "0198c0de-0000-7000-8000-000000000001"
AGENT = "agent:0198c0de-0000-7000-8000-00000000000a"
SOURCE, BOOT = "5a5a5a5a-0000-4000-8000-000000000000", "0198c0de-0000-7000-8000-0000000000b0"


def _id(n: int) -> str:
    return f"0198c0de-0000-7000-8000-{n:012x}"


class Chains:
    """Linked rows, as a store would hold them."""

    def __init__(self) -> None:
        self.heads: dict[str, Head] = {}
        self.rows: list[Row] = []
        self.parts: dict[str, list[StoredPart]] = {}

    def append(self, n: int, chain: str = AGENT, **fields: Any) -> Row:
        """The record with that number of the one source; n 0: from another source."""
        body = {
            "id": _id(len(self.rows) + 1),
            "tenant": TENANT,
            "chain": chain,
            "type": "call.intent",
            "src": {"kind": "proxy", "id": SOURCE, "boot": BOOT, "n": n} if n else {},
            **fields,
        }
        encoded = json.dumps(body, sort_keys=True).encode()
        linked = link(
            self.heads.get(chain) or beginning(chain), tenant=TENANT, body=encoded, now_us=1
        )
        self.heads[chain] = linked.head
        row = Row(
            chain=chain,
            incarnation=1,
            seq=linked.seq,
            committed_at_us=linked.committed_at_us,
            event_id=body["id"],
            body=encoded,
            previous_hash=linked.previous_hash,
            event_hash=linked.event_hash,
            derived=columns(body),
        )
        self.rows.append(row)
        return row

    def verdict(self, rows: Sequence[Row] | None = None) -> Verdict:
        verifier = Verifier(TENANT, self.heads)
        for row in sorted(self.rows if rows is None else rows, key=lambda row: row[:3]):
            verifier.add(row, self.parts.get(row.event_id, ()))
        return verifier.verdict()


def test_nothing_is_ok() -> None:
    assert Verdict("ok", (), 0, 0, "", "links") == Verifier(TENANT, {}).verdict()


def test_untouched_chains_are_ok_with_or_without_columns() -> None:
    chains = Chains()
    for n in range(1, 100):
        chains.append(n, chain=AGENT if n % 3 else "admin")

    assert "ok" == chains.verdict().verdict
    assert "ok" == chains.verdict([row._replace(derived=None) for row in chains.rows]).verdict


def test_numbers_may_come_in_any_order() -> None:
    chains = Chains()
    for n in (3, 1, 2, 5, 4):
        chains.append(n)

    assert "ok" == chains.verdict().verdict


def test_missing_numbers_are_told_as_the_first_of_each_range() -> None:
    chains = Chains()
    for n in (1, 2, 6, 7, 9_000):
        chains.append(n)

    name = f"source:{SOURCE}/{BOOT}"
    assert (Finding(name, 3, "source_gap"), Finding(name, 8, "source_gap")) == (
        chains.verdict().findings
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([{"first": 3, "last": 5}], []),
        ([{"first": 1, "last": 9}], []),
        ([{"first": 3, "last": 4}], [5]),
        ([{"first": 4, "last": 4}], [3, 5]),
        ([{"n": 3}, {"n": 4}, {"n": 5}], []),
        ([{"first": 4, "last": 5}, {"first": 3, "last": 3}], []),
        ([{"first": "3", "last": 5}], [3]),
    ],
)
def test_numbers_that_audit_told_of_are_no_finding(
    told: list[dict[str, Any]], expected: list[int]
) -> None:
    chains = Chains()
    for n in (1, 2, 6):
        chains.append(n)
    for range_ in told:
        chains.append(
            0,
            chain="tenant",
            type="source.gap",
            src={"kind": "audit"},
            source={"id": SOURCE, "boot": BOOT, **range_},
        )

    assert expected == [found.seq for found in chains.verdict().findings]


def test_only_audit_itself_can_excuse_a_number() -> None:
    chains = Chains()
    chains.append(1)
    chains.append(3, type="source.gap", source={"id": SOURCE, "boot": BOOT, "first": 2, "last": 2})

    assert ["source_gap"] == [found.code for found in chains.verdict().findings]


def test_an_absurd_number_costs_neither_time_nor_memory() -> None:
    chains = Chains()
    chains.append(1)
    chains.append(2**53 - 1)

    assert [2] == [found.seq for found in chains.verdict().findings]


def test_a_chain_that_was_opened_and_is_gone_with_its_head_is_missing() -> None:
    chains = Chains()
    chains.append(0, chain="tenant", type="chain.opened", src={"kind": "audit"}, resource=AGENT)

    assert (Finding(AGENT, 1, "chain_missing"),) == chains.verdict().findings


def test_a_part_is_the_one_that_was_committed_to() -> None:
    salt = bytes(range(32))
    chains = Chains()
    row = chains.append(1, arguments={"commit": commitment(salt, b"{}").hex()})
    chains.parts[row.event_id] = [StoredPart(row.event_id, "arguments", salt, b"{}")]
    assert "ok" == chains.verdict().verdict

    for wrong in (
        StoredPart(row.event_id, "arguments", salt, b"{ }"),
        StoredPart(row.event_id, "arguments", bytes(32), b"{}"),
        StoredPart(row.event_id, "result", salt, b"{}"),
    ):
        chains.parts[row.event_id] = [wrong]
        assert (Finding(AGENT, 1, "part_mismatch"),) == chains.verdict().findings


def test_a_purged_part_is_no_finding() -> None:
    chains = Chains()
    chains.append(1, arguments={"commit": "00" * 32})

    assert "ok" == chains.verdict().verdict


def test_no_more_than_a_hundred_findings_the_lowest_ones() -> None:
    chains = Chains()
    for n in range(1, 301):
        chains.append(n)
    rows = [row._replace(body=b"{}") for row in chains.rows]

    verdict = chains.verdict(rows)
    assert list(range(1, 101)) == [found.seq for found in verdict.findings]


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"null", b"{", b'{"src":7,"type":[]}'])
def test_a_body_that_is_no_body_is_a_finding_and_no_crash(body: bytes) -> None:
    chains = Chains()
    row = chains.append(1)

    assert (Finding(AGENT, 1, "body_mismatch"),) == chains.verdict(
        [row._replace(body=body)]
    ).findings
