"""Sealed values open for their holder, purpose and time, and for nobody else."""

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.seals import Purpose, SealKeysError, Seals, Unsealed
from tests.fakes.clock import ManualClock

KEY, OTHER = b"k" * 32, b"o" * 32
HOLDER = ("tenant", "agent", "server", "class")


def test_a_value_opens_for_its_holder_and_never_says_what_is_inside() -> None:
    seals = Seals([KEY], ManualClock())
    value = seals.seal("session", HOLDER, b"content")

    assert b"content" == seals.open("session", HOLDER, value)
    assert "content" not in value
    assert value != seals.seal("session", HOLDER, b"content")


@pytest.mark.parametrize("part", range(4))
def test_another_holder_opens_nothing(part: int) -> None:
    seals = Seals([KEY], ManualClock())
    value = seals.seal("session", HOLDER, b"content")
    other = tuple("else" if i == part else name for i, name in enumerate(HOLDER))

    with pytest.raises(Unsealed):
        seals.open("session", other, value)


def test_parts_do_not_run_together() -> None:
    seals = Seals([KEY], ManualClock())
    value = seals.seal("session", ("ab", "c"), b"content")

    with pytest.raises(Unsealed):
        seals.open("session", ("a", "bc"), value)


def test_another_purpose_opens_nothing() -> None:
    seals = Seals([KEY], ManualClock())
    value = seals.seal("cursor", HOLDER, b"content")

    with pytest.raises(Unsealed):
        seals.open("session", HOLDER, value)


def test_a_new_key_on_top_seals_and_the_old_one_still_opens() -> None:
    clock = ManualClock()
    value = Seals([KEY], clock).seal("session", HOLDER, b"content")

    assert b"content" == Seals([OTHER, KEY], clock).open("session", HOLDER, value)
    with pytest.raises(Unsealed):
        Seals([OTHER], clock).open("session", HOLDER, value)


def test_old_days_do_not_open() -> None:
    clock = ManualClock()
    seals = Seals([KEY], clock)
    value = seals.seal("session", HOLDER, b"content")
    clock.advance(86_400)
    assert b"content" == seals.open("session", HOLDER, value)
    clock.advance(3 * 86_400)

    with pytest.raises(Unsealed):
        seals.open("session", HOLDER, value)


@pytest.mark.parametrize("purpose", ["cursor", "event"])
def test_what_has_no_time_of_its_own_is_good_for_an_hour(purpose: Purpose) -> None:
    clock = ManualClock()
    seals = Seals([KEY], clock)
    value = seals.seal(purpose, HOLDER, b"content")
    clock.advance(3600)

    assert b"content" == seals.open(purpose, HOLDER, value)
    clock.advance(1)
    with pytest.raises(Unsealed):
        seals.open(purpose, HOLDER, value)


@given(st.integers(0, 60), st.integers(1, 255))
def test_no_flipped_bit_opens(at: int, flip: int) -> None:
    seals = Seals([KEY], ManualClock())
    head, day, encoded = seals.seal("session", HOLDER, b"x" * 40).split(".")
    raw = bytearray(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    raw[at] ^= flip
    bent = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")

    with pytest.raises(Unsealed):
        seals.open("session", HOLDER, f"{head}.{day}.{bent}")


@given(st.text(max_size=100))
def test_nonsense_opens_nothing(text: str) -> None:
    with pytest.raises(Unsealed):
        Seals([KEY], ManualClock()).open("session", HOLDER, text)


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "seal.keys"
    file.write_text(f"{os.urandom(32).hex()}\n\n{KEY.hex()}\n")
    clock = ManualClock()
    value = Seals([KEY], clock).seal("cursor", HOLDER, b"c")

    assert b"c" == Seals.load(file, clock).open("cursor", HOLDER, value)


@pytest.mark.parametrize("content", ["", "xyz", "ab" * 31, "\n"])
def test_a_bad_file_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    file = tmp_path / "seal.keys"
    file.write_text(content)

    with pytest.raises(SealKeysError) as refused:
        Seals.load(file, ManualClock())

    assert not content.strip() or content.strip() not in str(refused.value)
