"""The link: golden vectors, made by hand from the formula, and what each field decides."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from services.audit.chain import (
    FIRST_PREVIOUS,
    Head,
    NotAChain,
    beginning,
    commitment,
    event_hash,
    is_chain,
    link,
)
from tests.unit.audit.vectors import VECTORS

TENANT = "0198c0de-0000-7000-8000-000000000001"
AGENT = "agent:0198c0de-0000-7000-8000-00000000000a"


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_a_golden_vector_hashes_as_written_down(vector: dict[str, Any]) -> None:
    fields = {key: value for key, value in vector.items() if key != "event_hash"}

    assert vector["event_hash"] == event_hash(**fields).hex()


def test_the_formula_byte_by_byte() -> None:
    body = b'{"v":1}'
    spelled = hashlib.sha256(
        b"\x02behavry/chain/1"
        + bytes.fromhex(TENANT.replace("-", ""))
        + hashlib.sha256(AGENT.encode()).digest()
        + (3).to_bytes(4, "big")
        + (7).to_bytes(8, "big")
        + (1_767_225_600_000_000).to_bytes(8, "big", signed=True)
        + bytes(range(32))
        + hashlib.sha256(body).digest()
    ).digest()

    assert spelled == event_hash(
        tenant=TENANT,
        chain=AGENT,
        incarnation=3,
        seq=7,
        committed_at_us=1_767_225_600_000_000,
        previous_hash=bytes(range(32)),
        body=body,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "0198c0de-0000-7000-8000-000000000002"},
        {"chain": "tenant"},
        {"incarnation": 2},
        {"seq": 2},
        {"committed_at_us": 2},
        {"previous_hash": bytes(31) + b"\x01"},
        {"body": b"{} "},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_hash(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "tenant": TENANT,
        "chain": AGENT,
        "incarnation": 1,
        "seq": 1,
        "committed_at_us": 1,
        "previous_hash": FIRST_PREVIOUS,
        "body": b"{}",
    }

    assert event_hash(**fields) != event_hash(**{**fields, **change})


def test_a_chain_begins_at_one_on_a_zero_hash() -> None:
    first = link(beginning(AGENT), tenant=TENANT, body=b"{}", now_us=5)

    assert (1, 1, 5, bytes(32)) == (
        first.incarnation, first.seq, first.committed_at_us, first.previous_hash,
    )  # fmt: skip


def test_the_next_record_links_to_the_head() -> None:
    first = link(beginning(AGENT), tenant=TENANT, body=b"{}", now_us=5)
    second = link(first.head, tenant=TENANT, body=b"{}", now_us=6)

    assert (2, first.event_hash) == (second.seq, second.previous_hash)


@pytest.mark.parametrize(("now_us", "expected"), [(101, 101), (100, 101), (3, 101), (500, 500)])
def test_time_goes_on_even_when_the_clock_goes_back(now_us: int, expected: int) -> None:
    head = Head(AGENT, 1, 9, bytes(32), 100)

    assert expected == link(head, tenant=TENANT, body=b"{}", now_us=now_us).committed_at_us


@pytest.mark.parametrize(
    "name", ["tenant", "admin", "system", AGENT, AGENT.replace("agent", "device")]
)
def test_names_of_chains(name: str) -> None:
    assert is_chain(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "agent",
        "agent:",
        "agent:x",
        AGENT.upper(),
        f"{AGENT}\n",
        f" {AGENT}",
        "tenant:1",
        "other",
    ],
)
def test_anything_else_is_no_chain(name: str) -> None:
    assert not is_chain(name)
    with pytest.raises(NotAChain):
        beginning(name)


def test_a_commitment_depends_on_salt_and_bytes() -> None:
    salt = bytes(32)

    assert hashlib.sha256(b"\x03" + salt + b"x").digest() == commitment(salt, b"x")
    assert commitment(salt, b"x") != commitment(salt, b"y")
    assert commitment(salt, b"x") != commitment(b"\x01" + salt[1:], b"x")
