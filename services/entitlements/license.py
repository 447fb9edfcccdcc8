"""What a licence is and when it is to be believed (entitlements.md 3).

Decides the form and the checks up to the installation's fingerprint; whether it counts now is
choosing.py's, what it gives effective.py's. A token is a secret: no error here quotes it.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from joserfc import errors as jose
from joserfc import jws
from msgspec import Meta, Struct

from services.entitlements.catalog import FEATURE_CATALOG, PLANS
from services.entitlements.license_keys import Keys, ed25519_key
from services.entitlements.standing import DAY_S

ALGORITHM: Final = "EdDSA"
AUDIENCE: Final = "behavry"
LICENSE_TYPE: Final = "behavry-license+jwt"
REVOCATIONS_TYPE: Final = "behavry-license-revocations+jwt"
MAX_BYTES: Final = 16 * 1024
_PART: Final = re.compile(r"[A-Za-z0-9_-]*")
_KNOWN: Final = frozenset(feature.key for feature in FEATURE_CATALOG)
_GRACE_DAYS: Final = {plan.key: plan.grace_days for plan in PLANS}

Text = Annotated[str, Meta(min_length=1, max_length=256)]
#: Whole seconds up to the year 9999.
Seconds = Annotated[int, Meta(ge=0, lt=253_402_300_800)]
Count = Annotated[int, Meta(ge=0, lt=2**32)]


class LicenseRefused(Exception):
    """`code` is one of entitlements.md 3.2: `SIGNATURE_INVALID`."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: unlimited."""

    agents: int | None = None
    tenants: int | None = None
    data_planes: int | None = None

    def exceeded(self, usage: Mapping[str, int]) -> tuple[str, ...]:
        """The names of limits that usage is above of."""
        bounds = {
            "agents": self.agents,
            "tenants": self.tenants,
            "data_planes": self.data_planes,
        }
        return tuple(
            name
            for name, bound in bounds.items()
            if bound is not None and usage.get(name, 0) > bound
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """A verified one, without its token. Times in Unix seconds."""

    jti: str
    customer: str
    key_id: str
    issued_at_s: int
    not_before_s: int
    expires_at_s: int
    grace_s: int
    scope: Literal["installation", "tenant"]
    tenant: str | None
    plan: str
    #: What it says of single features, beyond its plan.
    features: frozenset[tuple[str, bool]]
    limits: Limits
    #: Deployment models that new planes may have; empty: all.
    models: tuple[str, ...]
    fingerprint: str | None
    token_sha256: str
    #: Keys that this build does not know; they are ignored.
    unknown_features: tuple[str, ...] = ()

    @property
    def grace_ends_at_s(self) -> int:
        return self.expires_at_s + self.grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """A list with a higher serial takes the place of one with a lower."""

    serial: int = 0
    revoked: frozenset[str] = frozenset()
    token_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """For whom a licence must be: the tenant (None: the installation), and the fingerprint of this
    installation (None: whatever it says, for those who only look).
    """

    tenant: str | None
    fingerprint: str | None


class _Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: str
    typ: str
    kid: Text


class _Limits(Struct, frozen=True, kw_only=True):
    agents: Count | None = None
    tenants: Count | None = None
    data_planes: Count | None = None


class Claims(Struct, frozen=True, kw_only=True):
    """As they are signed."""

    iss: Text
    aud: Text
    sub: Text
    jti: Text
    iat: Seconds
    nbf: Seconds
    exp: Seconds
    scope: Literal["installation", "tenant"]
    plan: Literal["trial", "professional", "enterprise"]
    tenant: Text | None = None
    features: dict[str, bool] = {}
    limits: _Limits = _Limits()
    grace_days: Annotated[int, Meta(ge=0, le=30)] | None = None
    models: list[Text] = []
    fingerprint: Text | None = None


class RevocationClaims(Struct, frozen=True, kw_only=True):
    iss: Text
    aud: Text
    iat: Seconds
    serial: Annotated[int, Meta(ge=1, lt=2**62)]
    revoked: list[Text]


C = TypeVar("C", Claims, RevocationClaims)


class _OneAlgorithm(jws.JWSRegistry):
    """EdDSA with Ed25519 keys and nothing else. The library warns of that name since RFC 9864,
    because it leaves the curve open; license_keys.py takes no key of another curve.
    """

    algorithms = {ALGORITHM: copy.copy(jws.JWSRegistry.algorithms[ALGORITHM])}  # noqa: RUF012  # theirs


_OneAlgorithm.algorithms[ALGORITHM].security_warning = None
_REGISTRY: Final = _OneAlgorithm(algorithms=[ALGORITHM])


def sha256(token: str) -> str:
    """By which a token is named where it must not be shown."""
    return hashlib.sha256(token.encode()).hexdigest()


def fingerprint(installation_id: str) -> str:
    return hashlib.sha256(installation_id.encode()).hexdigest()


def kind(token: str) -> str:
    """The `typ` that a token states. Raises LicenseRefused (MALFORMED)."""
    return _header(_parts(token)[0]).typ


def verify(token: str, *, keys: Keys, expected: Expected) -> License:
    """1. form  2. key  3. signature  4. audience  5. subject  6. fingerprint; the rest of the
    order (revocation, times, limits) needs to know more than the token. Raises LicenseRefused.
    """
    parts = _parts(token)  # 1
    header = _header(parts[0])
    claims = _claims(parts[1], Claims, right_type=header.typ == LICENSE_TYPE)
    if claims.nbf >= claims.exp or (claims.scope == "tenant") != (claims.tenant is not None):
        raise LicenseRefused("MALFORMED", "the claims contradict each other")
    _check_signature(token, header, keys)  # 2, 3
    if claims.aud != AUDIENCE:  # 4
        raise LicenseRefused("PRODUCT_MISMATCH", "the licence is for another product")
    if claims.tenant != expected.tenant:  # 5
        raise LicenseRefused("SUBJECT_MISMATCH", "the licence is for somebody else")
    _check_fingerprint(claims, expected)  # 6
    return _license(claims, header.kid, sha256(token))


def verify_revocations(token: str, *, keys: Keys) -> Revocations:
    """Steps 1 to 4 of `verify`, for a list of revoked licences."""
    parts = _parts(token)
    header = _header(parts[0])
    claims = _claims(parts[1], RevocationClaims, right_type=header.typ == REVOCATIONS_TYPE)
    _check_signature(token, header, keys)
    if claims.aud != AUDIENCE:
        raise LicenseRefused("PRODUCT_MISMATCH", "the list is for another product")
    return Revocations(
        serial=claims.serial, revoked=frozenset(claims.revoked), token_sha256=sha256(token)
    )


def read_unverified(token: str) -> License:
    """What a token says of itself; nothing of it is proven. Raises LicenseRefused (MALFORMED)."""
    parts = _parts(token)
    header = _header(parts[0])
    claims = _claims(parts[1], Claims, right_type=header.typ == LICENSE_TYPE)
    return _license(claims, header.kid, sha256(token))


def _parts(token: str) -> list[str]:
    parts = token.split(".")
    if (
        len(token) > MAX_BYTES
        or len(parts) != 3
        or not all(_PART.fullmatch(part) for part in parts)
    ):
        raise LicenseRefused("MALFORMED", "this is no compact JWS of at most 16 KiB")
    return parts


def _header(part: str) -> _Header:
    try:
        return msgspec.json.decode(_decoded(part), type=_Header)
    except (ValueError, RecursionError):
        raise LicenseRefused("MALFORMED", "the header is not a licence's") from None


def _claims(part: str, kind: type[C], *, right_type: bool) -> C:
    if not right_type:
        raise LicenseRefused("MALFORMED", "the token is of another type")
    try:
        return msgspec.json.decode(_decoded(part), type=kind)
    except (ValueError, RecursionError):
        raise LicenseRefused("MALFORMED", "a claim is missing or of the wrong shape") from None


def _decoded(part: str) -> bytes:
    """Of one spelling only: a token must not have twins."""
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise ValueError("not canonical")
    return decoded


def _check_signature(token: str, header: _Header, keys: Keys) -> None:
    key = keys.get(header.kid)
    if key is None:
        raise LicenseRefused("UNKNOWN_KEY", "no key of that name is known here")
    if header.alg != ALGORITHM:
        raise LicenseRefused("SIGNATURE_INVALID", "the algorithm is not the one of licences")
    try:
        _decoded(token.rsplit(".", 1)[1])
        jws.deserialize_compact(token, key, registry=_REGISTRY)
    except (jose.JoseError, ValueError):
        raise LicenseRefused("SIGNATURE_INVALID", "the signature does not fit") from None


def _check_fingerprint(claims: Claims, expected: Expected) -> None:
    if claims.fingerprint is None or expected.fingerprint is None:
        return
    if claims.fingerprint.lower() != expected.fingerprint:
        raise LicenseRefused("FINGERPRINT_MISMATCH", "the licence is bound to another installation")


def _license(claims: Claims, key_id: str, token_sha256: str) -> License:
    grace_days = _GRACE_DAYS[claims.plan] if claims.grace_days is None else claims.grace_days
    return License(
        jti=claims.jti,
        customer=claims.sub,
        key_id=key_id,
        issued_at_s=claims.iat,
        not_before_s=claims.nbf,
        expires_at_s=claims.exp,
        grace_s=grace_days * DAY_S,
        scope=claims.scope,
        tenant=claims.tenant,
        plan=claims.plan,
        features=frozenset((key, on) for key, on in claims.features.items() if key in _KNOWN),
        limits=Limits(
            agents=claims.limits.agents,
            tenants=claims.limits.tenants,
            data_planes=claims.limits.data_planes,
        ),
        models=tuple(sorted(set(claims.models))),
        fingerprint=claims.fingerprint,
        token_sha256=token_sha256,
        unknown_features=tuple(sorted(key for key in claims.features if key not in _KNOWN)),
    )


# --- the other side: who holds a private key ------------------------------------------------------


def sign(claims: Claims | RevocationClaims, *, key_id: str, private_pem: bytes) -> str:
    """A token. Raises LicenseRefused (MALFORMED) when the key is none of Ed25519."""
    typ = LICENSE_TYPE if isinstance(claims, Claims) else REVOCATIONS_TYPE
    key = ed25519_key(private_pem)
    if key is None or not key.is_private:
        raise LicenseRefused("UNKNOWN_KEY", "this is no private Ed25519 key")
    header = {"alg": ALGORITHM, "typ": typ, "kid": key_id}
    token = jws.serialize_compact(header, msgspec.json.encode(claims), key, registry=_REGISTRY)
    if len(token) > MAX_BYTES:
        raise LicenseRefused("MALFORMED", "the licence would be longer than 16 KiB")
    return token
