"""Licences and lists of revoked ones, signed by keys that tests may have: the one of development,
whose public half is built in, and one that stands for the issuer's own.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.entitlements import license as licenses
from services.entitlements.license_keys import Keys, keys_of, packaged

DAY_S: Final = 86_400


def private_key(name: str) -> Ed25519PrivateKey:
    """The same for the same name, everywhere; only tests trust what these keys sign."""
    seed = hashlib.sha256(f"behavry licences of tests: {name}".encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(seed)


def private_pem(name: str) -> bytes:
    return private_key(name).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(name: str) -> bytes:
    return (
        private_key(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def issuers_keys(*, development: bool = False) -> Keys:
    """The keys that are built in, and the issuer's of the tests: `issuer`."""
    return keys_of(packaged() | {"issuer": public_pem("issuer")}, development=development)


def claims(*, now_s: int, **other: Any) -> dict[str, Any]:
    """Of a Professional licence for the installation, in force for 90 days."""
    scope = "tenant" if other.get("tenant") else "installation"
    return {
        "iss": "Licences of tests",
        "aud": "behavry",
        "sub": "A customer",
        "jti": "licence-1",
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + 90 * DAY_S,
        "scope": scope,
        "plan": "professional",
        **other,
    }


def license_token(*, now_s: int, key: str = "dev", **other: Any) -> str:
    """A signed one; `other` takes the place of claims, or adds some."""
    said = msgspec.convert(claims(now_s=now_s, **other), licenses.Claims)
    return licenses.sign(said, key_id=key, private_pem=private_pem(key))


def revocations_token(*, now_s: int, serial: int, revoked: list[str], key: str = "dev") -> str:
    said = licenses.RevocationClaims(
        iss="Licences of tests", aud="behavry", iat=now_s, serial=serial, revoked=revoked
    )
    return licenses.sign(said, key_id=key, private_pem=private_pem(key))
