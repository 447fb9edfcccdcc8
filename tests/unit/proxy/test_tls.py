"""TLS contexts: made once of what the entry names, and anew when that has changed."""

import ssl
from pathlib import Path

import pytest

from services.proxy.backends.secrets import Secrets
from services.proxy.backends.tls import Contexts
from services.proxy.backends.upstream import UpstreamFailed
from tests.fakes.certificates import Authority
from tests.fakes.clock import ManualClock

AUTHORITY = Authority()
CLIENT = AUTHORITY.client("gate")
ALL = {"ca": "secret://ca", "certificate": "secret://crt", "key": "secret://key"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in (("ca", AUTHORITY.pem), ("crt", CLIENT.certificate), ("key", CLIENT.key)):
        (tmp_path / name).write_text(text)
    return tmp_path


async def test_every_context_verifies_and_is_of_1_2_at_least(directory: Path) -> None:
    contexts = Contexts(Secrets(directory), ManualClock())
    for names in ({}, {"ca": "secret://ca"}, ALL):
        made = await contexts.of(**names)
        assert (ssl.CERT_REQUIRED, True, ssl.TLSVersion.TLSv1_2) == (
            made.verify_mode, made.check_hostname, made.minimum_version,
        )  # fmt: skip


async def test_an_authority_that_is_named_is_trusted_alone(directory: Path) -> None:
    contexts = Contexts(Secrets(directory), ManualClock())
    named = await contexts.of(ca="secret://ca")

    assert 1 == named.cert_store_stats()["x509_ca"]
    assert named is not await contexts.of()


async def test_a_context_is_made_once_and_again_when_a_file_has_changed(directory: Path) -> None:
    clock = ManualClock()
    contexts = Contexts(Secrets(directory), clock)
    first = await contexts.of(**ALL)
    clock.advance(6)
    same = await contexts.of(**ALL)
    renewed = AUTHORITY.client("gate")
    (directory / "crt").write_text(renewed.certificate)
    (directory / "key").write_text(renewed.key)
    before_a_look = await contexts.of(**ALL)
    clock.advance(6)
    after = await contexts.of(**ALL)

    assert first is same
    assert first is before_a_look
    assert first is not after


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ca", ""),
        ("ca", "hunter2"),
        ("crt", "hunter2"),
        ("key", "hunter2"),
        ("key", AUTHORITY.client("other").key),
        ("key", CLIENT.encrypted_key),
        ("key", None),
    ],
)
async def test_what_is_no_authority_or_certificate_is_not_used(
    directory: Path, name: str, text: str | None
) -> None:
    if text is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(text)

    with pytest.raises(UpstreamFailed) as failed:
        await Contexts(Secrets(directory), ManualClock()).of(**ALL)

    assert ("secret_unresolved", False) == (failed.value.reason, failed.value.ran)
    assert "hunter2" not in str(failed.value)
