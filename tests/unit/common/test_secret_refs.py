"""References to secrets: which are read, and that a failure tells nothing."""

import os
from pathlib import Path

import pytest

from services.common.secret_refs import MAX_BYTES, SecretFiles, SecretUnresolved


def test_a_reference_is_the_files_content_without_its_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "smtp-password").write_text("pass phrase\r\n")

    assert "pass phrase" == SecretFiles(tmp_path).resolve("secret://smtp-password")


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file, secrets = tmp_path / "key", SecretFiles(tmp_path)
    file.write_text("one")
    first = secrets.resolve("secret://key")
    file.write_text("two")
    os.utime(file, ns=(1, 1))

    assert ["one", "two"] == [first, secrets.resolve("secret://key")]


@pytest.mark.parametrize(
    "reference",
    ["key", "secret://", "secret://../key", "secret://a/b", "secret://missing", "secret://.key",
     "http://key", "secret://sub", "secret://long", "secret://binary", "secret://key\n"],
)  # fmt: skip
def test_what_is_no_reference_or_no_secret_resolves_to_nothing(
    tmp_path: Path, reference: str
) -> None:
    inside = tmp_path / "secrets"
    (inside / "sub").mkdir(parents=True)
    for place in (tmp_path, inside):
        (place / "key").write_text("planted")
    (inside / ".key").write_text("planted")
    (inside / "long").write_text("x" * (MAX_BYTES + 1))
    (inside / "binary").write_bytes(b"\xff\xfe")

    with pytest.raises(SecretUnresolved) as refused:
        SecretFiles(inside).resolve(reference)

    assert "a secret reference does not resolve" == str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
