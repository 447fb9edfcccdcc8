"""Which changes make a decision another one, and so end approvals that wait."""

from typing import Any

import pytest

from services.control.desired_state import policy_revision
from tests.fakes.control import rows

BEFORE = dict(rows().servers["files"])
NOW: dict[str, Any] = {
    **BEFORE,
    "grants": {},
    "first_byte_s": 120,
    "share": "agent",
    "headers": {},
    "ca": "",
}


def revision(**changes: Any) -> str:
    return policy_revision(rows(servers={"files": {**NOW, **changes}}))


def test_an_entry_of_before_the_newer_fields_keeps_its_revision() -> None:
    assert policy_revision(rows(servers={"files": BEFORE})) == revision()


@pytest.mark.parametrize(
    "change",
    [
        {"urls": ["http://127.0.0.1:9/other"]},
        {"headers": {"X-Region": "eu"}},
        {"ca": "secret://ca"},
        {"credential": {"kind": "mtls", "certificate": "secret://a", "key": "secret://b"}},
        {"trust": "trusted"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_where_a_call_goes_and_as_whom_is_part_of_the_decision(change: dict[str, Any]) -> None:
    assert revision() != revision(**change)


@pytest.mark.parametrize(
    "change",
    [{"grants": {"sampling": True}}, {"first_byte_s": 600}, {"share": "server"}],
    ids=lambda change: next(iter(change)),
)
def test_what_comes_back_and_when_is_not(change: dict[str, Any]) -> None:
    assert revision() == revision(**change)
