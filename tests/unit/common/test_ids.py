"""Identities: time-ordered, and spelled in one way."""

from uuid import UUID

import pytest

from services.common.ids import NIL_TENANT, is_uuid, uuid7

NOW_NS = 1_767_225_600_123_000_000
ONE = "019b76da-a87b-7df7-b052-6ffc26a26080"


def test_an_id_is_a_uuid_of_version_7_and_holds_its_millisecond() -> None:
    made = UUID(uuid7(NOW_NS))

    assert (7, "specified in RFC 4122") == (made.int >> 76 & 0xF, made.variant)
    assert NOW_NS // 1_000_000 == made.int >> 80


def test_ids_of_later_milliseconds_sort_later() -> None:
    made = [uuid7(NOW_NS + step * 1_000_000) for step in range(100)]

    assert sorted(made) == made


def test_ids_of_one_moment_differ() -> None:
    assert 1000 == len({uuid7(NOW_NS) for _ in range(1000)})


@pytest.mark.parametrize("text", [NIL_TENANT, ONE])
def test_a_canonical_uuid_is_one(text: str) -> None:
    assert is_uuid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        ONE.upper(),
        ONE.replace("-", ""),
        "{" + ONE + "}",
        "urn:uuid:" + ONE,
        ONE + "\n",
        " " + ONE,
    ],
)
def test_any_other_spelling_is_none(text: str) -> None:
    assert not is_uuid(text)
