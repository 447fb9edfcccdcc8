"""Licences that nobody issued, or not for here: none is accepted, by the service or from its
database (E3); and no raw key is ever told (E19).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.common.errors import BehavryError
from services.entitlements import license as licenses
from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import (
    claims,
    license_token,
    private_key,
    public_pem,
    revocations_token,
)
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import (
    NOW_S,
    Desk,
    allowed,
    issued,
    serving,
)

HEADER = {"alg": "EdDSA", "typ": licenses.LICENSE_TYPE, "kid": "issuer"}


def part(document: dict[str, Any] | bytes) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def crafted(
    sign: Callable[[bytes], bytes], header: dict[str, Any] | None = None, **said: Any
) -> str:
    """A token whose signature comes from anywhere."""
    wanted = claims(now_s=NOW_S, plan="enterprise", **said)
    signed = f"{part(HEADER | (header or {}))}.{part(wanted)}"
    return f"{signed}.{part(sign(signed.encode()))}"


def hmac_with(key: bytes) -> Callable[[bytes], bytes]:
    return lambda message: hmac.digest(key, message, "sha256")


def es256(message: bytes) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public() -> bytes:
    return (
        private_key("issuer")
        .public_key()
        .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )


def by_issuer(message: bytes) -> bytes:
    return private_key("issuer").sign(message)


def by_somebody(message: bytes) -> bytes:
    return private_key("somebody").sign(message)


def swapped() -> str:
    """An honest signature over another payload."""
    head, _, signature = issued().split(".")
    return f"{head}.{part(claims(now_s=NOW_S, plan='enterprise'))}.{signature}"


def twin() -> str:
    """The same signature, spelt with other unused bits."""
    token = issued(plan="enterprise")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


JWK = {"kty": "OKP", "crv": "Ed25519", "x": part(raw_public())}

FORGED: dict[str, tuple[str, str]] = {
    "none": ("SIGNATURE_INVALID", crafted(lambda _: b"", {"alg": "none"})),
    "None": ("SIGNATURE_INVALID", crafted(lambda _: b"", {"alg": "None"})),
    "no signature": ("SIGNATURE_INVALID", crafted(lambda _: b"")),
    "hs256 with the public pem": (
        "SIGNATURE_INVALID",
        crafted(hmac_with(public_pem("issuer")), {"alg": "HS256"}),
    ),
    "hs256 with the public bytes": (
        "SIGNATURE_INVALID",
        crafted(hmac_with(raw_public()), {"alg": "HS256"}),
    ),
    "hs256 said to be eddsa": ("SIGNATURE_INVALID", crafted(hmac_with(raw_public()))),
    "es256": ("SIGNATURE_INVALID", crafted(es256, {"alg": "ES256"})),
    "es256 said to be eddsa": ("SIGNATURE_INVALID", crafted(es256)),
    "the later name of the algorithm": (
        "SIGNATURE_INVALID",
        crafted(by_issuer, {"alg": "Ed25519"}),
    ),
    "somebody's key": ("SIGNATURE_INVALID", crafted(by_somebody)),
    "re-keyed": ("UNKNOWN_KEY", license_token(now_s=NOW_S, key="somebody")),
    "a key of development": ("UNKNOWN_KEY", license_token(now_s=NOW_S, plan="enterprise")),
    "its own key in the header": ("MALFORMED", crafted(by_somebody, {"jwk": JWK})),
    "a key from elsewhere": ("MALFORMED", crafted(by_somebody, {"jku": "https://keys.invalid/"})),
    "critical extensions": ("MALFORMED", crafted(by_issuer, {"crit": ["b64"], "b64": False})),
    "another type": ("MALFORMED", crafted(by_issuer, {"typ": "JWT"})),
    "a path as key id": ("UNKNOWN_KEY", crafted(by_somebody, {"kid": "../../keys/issuer"})),
    "swapped payload": ("SIGNATURE_INVALID", swapped()),
    "altered signature": ("SIGNATURE_INVALID", altered(issued(plan="enterprise"), at=-9)),
    "a twin": ("SIGNATURE_INVALID", twin()),
    "truncated": ("SIGNATURE_INVALID", issued(plan="enterprise")[:-8]),
    "without its signature": ("MALFORMED", issued(plan="enterprise").rsplit(".", 1)[0]),
    "padded": ("MALFORMED", issued(plan="enterprise") + "=="),
    "two in one": ("MALFORMED", f"{issued()}.{issued()}"),
    "another product": ("PRODUCT_MISMATCH", issued(aud="another", plan="enterprise")),
    "another tenant": ("SUBJECT_MISMATCH", issued(tenant="another", plan="enterprise")),
    "another installation": ("FINGERPRINT_MISMATCH", issued(fingerprint="0" * 64)),
    "far too long": ("MALFORMED", issued()[:-1] + "A" * 20_000),
    "deeply nested": (
        "MALFORMED",
        f"{part(HEADER)}.{part(b'[' * 9_000 + b']' * 2_000)}.{part(bytes(64))}",
    ),
    "not ascii": ("MALFORMED", issued().replace(".", "\uff0e")),
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def desk(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> AsyncIterator[Desk]:
    """In production."""
    async with serving(tmp_path, entitlements_database, clock) as running:
        yield running


async def as_admin(database: Database, statement: str, *values: object) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def test_no_forged_licence_is_activated_and_the_honest_one_is(desk: Desk) -> None:
    tenant = await desk.tenant()
    before = await desk.get(tenant)
    refused = {}
    for name, (_, token) in FORGED.items():
        try:
            await desk.activate(token)
            refused[name] = "ACCEPTED"
        except BehavryError as error:
            shown = token[-40:] in error.message
            refused[name] = "SHOWN" if shown else error.reason.removeprefix("LICENSE_")

    assert {name: code for name, (code, _) in FORGED.items()} == refused
    assert before == await desk.get(tenant)
    await desk.activate(issued(plan="enterprise"))
    assert "enterprise" == (await desk.get(tenant)).installation_license.plan


async def test_a_replayed_older_licence_is_refused(desk: Desk) -> None:
    await desk.activate(issued(jti="new"))
    with pytest.raises(BehavryError) as refused:
        await desk.activate(issued(jti="old", plan="enterprise", iat=NOW_S - 1))

    assert "LICENSE_OLDER" == refused.value.reason


async def test_rows_put_or_edited_in_the_database_give_nothing(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    put = """
    INSERT INTO entitlements.installation_licenses (token_sha256, token, activated_at_s)
    VALUES ($1, $2, 0)
    """
    own = """
    INSERT INTO entitlements.licenses (tenant_id, token_sha256, token, activated_at_s)
    VALUES ($1, $2, $3, 0)
    """
    edit = "UPDATE entitlements.installation_licenses SET token = $1 WHERE token_sha256 = $2"
    async with serving(tmp_path, entitlements_database, clock) as desk:
        tenant, other = await desk.tenant(), await desk.tenant()
        honest = issued(jti="honest", plan="trial")
        await desk.activate(honest)
    for name, (_, token) in FORGED.items():
        if token.isascii():
            await as_admin(entitlements_database, put, name, token)
            await as_admin(entitlements_database, own, tenant, name, token)
    theirs = issued(tenant=other, jti="theirs", plan="enterprise")
    await as_admin(entitlements_database, own, tenant, "theirs", theirs)
    await as_admin(
        entitlements_database, edit, swapped(), hashlib.sha256(honest.encode()).hexdigest()
    )
    lifted = """
    UPDATE entitlements.tenants SET plan = 'enterprise', plan_expires_at = NULL
    WHERE tenant_id = $1
    """
    await as_admin(entitlements_database, lifted, tenant)
    async with serving(tmp_path, entitlements_database, clock) as desk:
        told = await desk.get(tenant)

    assert (3, "trial", False, False) == (
        allowed(told),
        told.plan,
        told.HasField("license"),
        told.HasField("installation_license"),
    )


async def test_a_forged_or_older_list_revokes_and_restores_nothing(desk: Desk) -> None:
    tenant = await desk.tenant()
    await desk.activate(issued(jti="ours", plan="enterprise"))
    listed = {"now_s": NOW_S, "key": "issuer"}
    await desk.activate(revocations_token(serial=5, revoked=["ours"], **listed))  # type: ignore[arg-type]  # a mixed dict
    forged = [
        revocations_token(now_s=NOW_S, serial=9, revoked=[], key="somebody"),
        revocations_token(now_s=NOW_S, serial=9, revoked=[], key="dev"),
        altered(revocations_token(now_s=NOW_S, serial=9, revoked=[], key="issuer"), at=-9),
        revocations_token(now_s=NOW_S, serial=5, revoked=[], key="issuer"),
        revocations_token(now_s=NOW_S, serial=4, revoked=[], key="issuer"),
    ]
    for token in forged:
        with pytest.raises(BehavryError):
            await desk.activate(token)

    assert ("REVOKED", 0) == ((told := await desk.get(tenant)).status, allowed(told))


async def test_a_raw_key_is_in_no_log_no_error_and_no_answer(
    tmp_path: Path,
    entitlements_database: Database,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Planted in the environment, in a file, in the database, in every call that takes one."""
    caplog.set_level(logging.DEBUG)
    good, bad = issued(jti="good", plan="enterprise"), altered(issued(jti="bad"), at=-9)
    own = issued(jti="own", iat=NOW_S + 1)
    file = tmp_path / "license"
    file.write_text(altered(issued(jti="file"), at=-9))
    listed = revocations_token(now_s=NOW_S, serial=1, revoked=["x"], key="issuer")
    said: list[str] = []
    env = {"BEHAVRY_LICENSE": bad, "BEHAVRY_LICENSE_FILE": str(file)}
    async with serving(tmp_path, entitlements_database, clock, env=env) as desk:
        tenant = await desk.tenant()
        for token in (good, bad, own, listed, good):
            try:
                said.append(str(await desk.activate(token, tenant)))
            except BehavryError as refused:
                said.append(f"{refused!r} {refused.metadata}")
        said.append(str(await desk.get(tenant)))
        request = wire.GetLicenseRequest(tenant_id=tenant)
        said.append(str(await desk.call(desk.reader.GetLicense, request)))
        async with desk.watch() as heard:
            await heard.until(lambda w: w.synced)
            said.append(str(heard.held))
    printed = capfd.readouterr()
    said += [caplog.text, printed.out, printed.err]

    for token in (good, bad, own, listed, file.read_text()):
        for piece in token.split(".")[1:]:
            assert not any(piece in text or piece[:40] in text for text in said)
    assert "license_rejected" in "".join(said)
