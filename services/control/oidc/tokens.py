"""Whether an ID token or a logout token is what it says it is (OpenID Connect Core 3.1.3.7,
Back-Channel Logout 2.6).

Asymmetric algorithms alone, whatever a token or a key set says: a public key is no shared secret.
Where keys come from is providers.py's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from services.control.oidc.flow import NotSignedIn

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
SKEW_S: Final = 60
MAX_TOKEN: Final = 32 * 1024
MIN_RSA_BITS: Final = 2048
LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
#: How long ago a logout may have been told of.
LOGOUT_LIFE_S: Final = 120
_MAX_NAME: Final = 255

Key = RSAKey | ECKey | OKPKey
_FITS: Final[Mapping[str, tuple[str, str]]] = {
    "RS256": ("RSA", ""),
    "PS256": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}


class _Asymmetric(jws.JWSRegistry):
    """The library warns of the name EdDSA since RFC 9864, because it leaves the curve open; only
    keys of Ed25519 are taken here.
    """

    algorithms = {name: copy.copy(jws.JWSRegistry.algorithms[name]) for name in ALGORITHMS}  # noqa: RUF012  # theirs


for _one in _Asymmetric.algorithms.values():
    _one.security_warning = None
_REGISTRY: Final = _Asymmetric(algorithms=list(ALGORITHMS))


class UnknownKey(NotSignedIn):
    """None of the keys is the one that the token names; a newer set may have it."""

    def __init__(self) -> None:
        super().__init__("oidc_key_unknown")


@dataclass(frozen=True, slots=True)
class PublicKey:
    kid: str | None
    #: The one algorithm that the key set allows it for, if it says so.
    alg: str | None
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    issuer: str
    client_id: str
    nonce: str = field(repr=False)
    now_s: int
    #: No token of before this sign-in.
    begun_s: int
    #: The proof itself must be of after the beginning.
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    subject: str
    #: Verified, in small letters; None where the provider does not say so.
    email: str | None
    issued_s: int
    auth_time_s: int | None
    #: The provider's session.
    sid: str | None
    claims: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logout:
    id: str
    issued_s: int
    subject: str | None
    sid: str | None


def usable(jwk: Mapping[str, Any]) -> PublicKey | None:
    """A public key of a key set that may check signatures here; None for any other."""
    kty, curve = jwk.get("kty"), jwk.get("crv")
    alg = jwk.get("alg")
    if jwk.get("use", "sig") != "sig" or (alg is not None and alg not in ALGORITHMS):
        return None
    ops = jwk.get("key_ops")  # RFC 7517 4.3
    if ops is not None and not (isinstance(ops, list) and "verify" in ops):
        return None
    public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
    try:
        key: Key
        if kty == "RSA":
            key = RSAKey.import_key(public)
            if key.public_key.key_size < MIN_RSA_BITS:
                return None
        elif (kty, curve) == ("EC", "P-256"):
            key = ECKey.import_key(public)
        elif (kty, curve) == ("OKP", "Ed25519"):
            key = OKPKey.import_key(public)
        else:
            return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    kid = jwk.get("kid")
    return PublicKey(kid=kid if isinstance(kid, str) else None, alg=alg, key=key)


def person(token: str, keys: tuple[PublicKey, ...], expected: Expected) -> Person:
    """1. signature  2. issuer  3. audience  4. times  5. nonce  6. the proof's time  7. subject.
    Raises NotSignedIn, UnknownKey.
    """
    claims = _signed(token, keys, types=("jwt",))  # 1
    if claims.get("iss") != expected.issuer:  # 2
        raise NotSignedIn("oidc_issuer_wrong")
    _check_audience(claims, expected.client_id)  # 3
    issued_s = _check_times(  # 4
        claims, now_s=expected.now_s, not_before_s=expected.begun_s, needs_end=True
    )
    if claims.get("nonce") != expected.nonce:  # 5
        raise NotSignedIn("oidc_nonce_wrong")
    proven_s = _seconds(claims, "auth_time")
    if proven_s is not None and proven_s > expected.now_s + SKEW_S:
        raise NotSignedIn("oidc_time_wrong")
    if expected.again and proven_s is None:  # 6
        # We asked with max_age, so it is required (3.1.2.1). When the token was made says nothing
        # of when somebody proved who they are.
        raise NotSignedIn("oidc_proof_time_missing")
    if expected.again and proven_s is not None and proven_s < expected.begun_s - SKEW_S:
        raise NotSignedIn("oidc_proof_too_old")
    verified = claims.get("email_verified") is True
    address = _name(claims, "email") if verified else None
    subject = _name(claims, "sub")  # 7
    if subject is None:
        raise NotSignedIn("oidc_subject_missing")
    return Person(
        subject=subject,
        email=address.strip().lower() if address and "@" in address else None,
        issued_s=issued_s,
        auth_time_s=proven_s,
        sid=_name(claims, "sid"),
        claims=claims,
    )


def logout(token: str, keys: tuple[PublicKey, ...], expected: Expected) -> Logout:
    """1. signature  2. issuer, audience, times  3. that it is of a logout and of nothing else
    4. whose. Raises NotSignedIn, UnknownKey.
    """
    claims = _signed(token, keys, types=("logout+jwt", "jwt"))  # 1
    if claims.get("iss") != expected.issuer:  # 2
        raise NotSignedIn("oidc_issuer_wrong")
    _check_audience(claims, expected.client_id)
    earliest = expected.now_s - LOGOUT_LIFE_S
    issued_s = _check_times(claims, now_s=expected.now_s, not_before_s=earliest, needs_end=False)
    events = claims.get("events")  # 3
    if not isinstance(events, dict) or not isinstance(events.get(LOGOUT_EVENT), dict):
        raise NotSignedIn("oidc_no_logout")
    if "nonce" in claims:
        raise NotSignedIn("oidc_no_logout")
    named, subject, sid = (_name(claims, name) for name in ("jti", "sub", "sid"))
    if named is None or (subject is None and sid is None):  # 4
        raise NotSignedIn("oidc_subject_missing")
    return Logout(id=named, issued_s=issued_s, subject=subject, sid=sid)


def issuer_stated(token: str) -> str:
    """By which keys are looked for; nothing of it is believed yet. Raises NotSignedIn."""
    if len(token) > MAX_TOKEN:
        raise NotSignedIn("oidc_token_malformed")
    try:
        payload = jws.extract_compact(token.encode()).payload
        claims = _claims(payload)
    except (JoseError, ValueError, TypeError):
        raise NotSignedIn("oidc_token_malformed") from None
    return _name(claims, "iss", longest=2048) or ""


def _signed(
    token: str, keys: tuple[PublicKey, ...], *, types: tuple[str, ...]
) -> Mapping[str, Any]:
    """1. form  2. algorithm and type  3. the key  4. the signature."""
    if len(token) > MAX_TOKEN or token.count(".") != 2:  # 1
        raise NotSignedIn("oidc_token_malformed")
    try:
        header: Mapping[str, Any] = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, TypeError):
        raise NotSignedIn("oidc_token_malformed") from None
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(alg, str) or alg not in _FITS:  # 2
        raise NotSignedIn("oidc_algorithm_refused")
    if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in types:
        raise NotSignedIn("oidc_token_type_wrong")
    fitting = [one for one in keys if _fits(one, alg) and (kid is None or one.kid == kid)]  # 3
    if not fitting:
        raise UnknownKey
    if len(fitting) > 1:
        raise NotSignedIn("oidc_key_ambiguous")
    try:
        return jwt.decode(token, fitting[0].key, registry=_REGISTRY).claims  # 4
    except (JoseError, ValueError, TypeError):
        raise NotSignedIn("oidc_signature_wrong") from None


def _fits(one: PublicKey, alg: str) -> bool:
    kty, curve = _FITS[alg]
    own_curve = "" if isinstance(one.key, RSAKey) else one.key.curve_name
    return (one.key.key_type, own_curve) == (kty, curve) and one.alg in {None, alg}


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    """A token for several is ours only if it was asked for by us."""
    told = claims.get("aud")
    audiences = [told] if isinstance(told, str) else told
    party = claims.get("azp")
    if not isinstance(audiences, list) or client_id not in audiences:
        raise NotSignedIn("oidc_audience_wrong")
    if party != client_id and (party is not None or len(audiences) > 1):
        raise NotSignedIn("oidc_audience_wrong")


def _check_times(
    claims: Mapping[str, Any], *, now_s: int, not_before_s: int, needs_end: bool
) -> int:
    """When it was issued."""
    issued, ends, starts = (_seconds(claims, name) for name in ("iat", "exp", "nbf"))
    if issued is None or not not_before_s - SKEW_S <= issued <= now_s + SKEW_S:
        raise NotSignedIn("oidc_time_wrong")
    if (ends is None and needs_end) or (ends is not None and ends <= now_s - SKEW_S):
        raise NotSignedIn("oidc_time_wrong")
    if starts is not None and starts > now_s + SKEW_S:
        raise NotSignedIn("oidc_time_wrong")
    return issued


def _seconds(claims: Mapping[str, Any], name: str) -> int | None:
    """None where there is none. Raises NotSignedIn for what is no time."""
    told = claims.get(name)
    if told is None:
        return None
    if isinstance(told, bool) or not isinstance(told, int | float) or not abs(told) < 2**53:
        raise NotSignedIn("oidc_time_wrong")
    return int(told)


def _name(claims: Mapping[str, Any], name: str, *, longest: int = _MAX_NAME) -> str | None:
    told = claims.get(name)
    fine = isinstance(told, str) and 0 < len(told) <= longest and told.isprintable()
    return told if fine else None


def _claims(payload: bytes) -> Mapping[str, Any]:
    told = json.loads(payload)
    return told if isinstance(told, dict) else {}
