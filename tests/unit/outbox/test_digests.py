"""Digests and part commitments: same input, same key, nothing else."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

import pytest

from services.common.ids import TenantId
from services.common.outbox.digests import Digester, DigestKeysError
from services.common.outbox.parts import Part, commitment, make_part, proves

TENANT = TenantId("0190aaaa-0000-7000-8000-000000000001")
OTHER = TenantId("0190aaaa-0000-7000-8000-000000000002")
OLD, NEW = b"o" * 32, b"n" * 32


def test_a_digest_has_its_form_and_repeats() -> None:
    digest = Digester([NEW]).make(TENANT, "arguments", b"{}")

    assert re.fullmatch(r"h1:[0-9a-f]{8}:[0-9a-f]{64}", digest)
    assert digest == Digester([NEW]).make(TENANT, "arguments", b"{}")
    assert Digester([NEW]).matches(TENANT, "arguments", b"{}", digest)


def test_tenants_purposes_contents_and_keys_are_apart() -> None:
    digester = Digester([NEW])
    digest = digester.make(TENANT, "arguments", b"{}")

    assert not digester.matches(OTHER, "arguments", b"{}", digest)
    assert not digester.matches(TENANT, "result", b"{}", digest)
    assert not digester.matches(TENANT, "arguments", b"{ }", digest)
    assert not Digester([OLD]).matches(TENANT, "arguments", b"{}", digest)
    assert not digester.matches(TENANT, "arguments", b"{}", digest.replace("h1", "h2"))
    assert not digester.matches(TENANT, "arguments", b"{}", "é")


def test_the_first_key_makes_and_all_check() -> None:
    old = Digester([OLD]).make(TENANT, "arguments", b"{}")
    rotated = Digester([NEW, OLD])

    assert rotated.matches(TENANT, "arguments", b"{}", old)
    assert Digester([NEW]).make(TENANT, "arguments", b"{}") == rotated.make(
        TENANT, "arguments", b"{}"
    )


def test_the_key_is_derived_as_rfc_5869_says() -> None:
    prk = hmac.digest(bytes.fromhex(TENANT.replace("-", "")), NEW, "sha256")
    key = hmac.digest(prk, b"behavry/digest/1/arguments\x01", "sha256")

    digest = Digester([NEW]).make(TENANT, "arguments", b"{}")

    assert hmac.digest(key, b"{}", "sha256").hex() == digest.rsplit(":", 1)[1]


def test_keys_are_read_one_per_line(tmp_path: Path) -> None:
    keys = tmp_path / "digest.keys"
    keys.write_text(f"{NEW.hex()}\n\n{OLD.hex()}\n")

    assert Digester([NEW, OLD]).make(TENANT, "x", b"") == Digester.load(keys).make(TENANT, "x", b"")


@pytest.mark.parametrize("content", ["", "\n", "zz" * 32, "ab" * 31, "ab" * 33])
def test_a_bad_key_file_stops_the_start_and_shows_no_key(tmp_path: Path, content: str) -> None:
    keys = tmp_path / "digest.keys"
    keys.write_text(content)

    with pytest.raises(DigestKeysError) as refused:
        Digester.load(keys)

    assert str(keys) in str(refused.value)
    assert not content.strip() or content not in str(refused.value)


def test_a_part_is_proven_by_its_salt_alone() -> None:
    part = make_part("input", b"{}", mode="input")

    assert hashlib.sha256(b"\x03" + part.salt + b"{}").hexdigest() == part.commit
    assert commitment(part.salt, b"{}").hex() == part.commit
    assert proves(part.salt, b"{}", part.commit)
    assert not proves(part.salt, b"{ }", part.commit)
    assert not proves(b"\0" * 32, b"{}", part.commit)
    assert not proves(b"", part.salt + b"{}", part.commit)


def test_two_parts_of_the_same_bytes_do_not_look_alike() -> None:
    first, second = (make_part("result", b"same", mode="full") for _ in range(2))

    assert first.commit != second.commit
    assert Part(kind="result", mode="full", salt=first.salt, stored=b"same") == first
