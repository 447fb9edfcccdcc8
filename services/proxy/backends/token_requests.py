"""What is asked of a token endpoint and what its answers mean (RFC 6749 4.4, RFC 7523, RFC 8693).

Pure: secrets come in as arguments. Whom the subject of an exchange names is decided here: the
agent, in a short token of our own. The agent's own token is nobody's business but ours.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from services.proxy.snapshot import Credential

#: How long what is signed here is good.
ASSERTION_S: Final = 300
SUBJECT_S: Final = 60
#: For an endpoint that does not say how long its token lives (RFC 6749 5.1: it should).
UNSAID_LIFE_S: Final = 300
MAX_LIFE_S: Final = 86_400
_JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
_ACCESS_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"
_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,16384}")
#: Errors that an operator may read in the log; what else an endpoint says stays with it.
_ERRORS: Final = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client",
     "unsupported_grant_type", "invalid_scope", "invalid_target"}
)  # fmt: skip


class KeyUnusable(Exception):
    """No private key that can sign; says nothing of what it is."""


class TokenRefused(Exception):
    """`why` is one of a few words of ours, for the log."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class TokenRequest:
    form: bytes = field(repr=False)
    #: `Authorization`, or empty.
    authorization: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    value: str = field(repr=False)
    life_s: int


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a call is made for."""

    tenant: str
    agent: str
    name: str


def client_credentials(credential: Credential, client_secret: str) -> TokenRequest:
    form = {"grant_type": "client_credentials"}
    if credential.audience:
        form["audience"] = credential.audience  # beside RFC 6749; some issuers want it
    return _request(credential, client_secret, form)


def jwt_bearer(
    credential: Credential, client_secret: str, key: str, *, now_s: int, jti: str
) -> TokenRequest:
    """Raises KeyUnusable."""
    claims = {
        **credential.claims,
        "iss": credential.issuer,
        "sub": credential.subject or credential.issuer,
        "aud": credential.audience or credential.token_url,
        "iat": now_s,
        "exp": now_s + ASSERTION_S,
        "jti": jti,
    }
    assertion = _signed(credential, key, claims)
    return _request(credential, client_secret, {"grant_type": _JWT_BEARER, "assertion": assertion})


def token_exchange(
    credential: Credential,
    client_secret: str,
    key: str,
    subject: Subject,
    *,
    now_s: int,
    jti: str,
) -> TokenRequest:
    """Raises KeyUnusable."""
    claims = {
        "iss": credential.issuer,
        "sub": subject.agent,
        "aud": credential.token_url,
        "iat": now_s,
        "exp": now_s + SUBJECT_S,
        "jti": jti,
        "tenant": subject.tenant,
        "name": subject.name,
    }
    form = {
        "grant_type": _EXCHANGE,
        "subject_token": _signed(credential, key, claims),
        "subject_token_type": _JWT_TYPE,
        "requested_token_type": _ACCESS_TYPE,
    }
    if credential.audience:
        form["audience"] = credential.audience
    return _request(credential, client_secret, form)


class _Answer(msgspec.Struct):
    access_token: str
    token_type: str
    expires_in: int | float | str | None = None


class _Error(msgspec.Struct):
    error: str


def read(status: int, body: bytes) -> Token:
    """Raises TokenRefused."""
    if status != 200:
        raise TokenRefused(_error(body) or f"status_{status}")
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TokenRefused("no_token") from None
    if answer.token_type.lower() != "bearer":
        raise TokenRefused("token_type")
    if not _TOKEN.fullmatch(answer.access_token):
        raise TokenRefused("no_token")
    return Token(answer.access_token, _life_s(answer.expires_in))


def _life_s(said: float | str | None) -> int:
    if said is None:
        return UNSAID_LIFE_S
    try:
        life_s = float(said)
    except ValueError:
        raise TokenRefused("expires_in") from None
    if not life_s > 0:  # nor NaN
        raise TokenRefused("expires_in")
    return int(min(life_s, MAX_LIFE_S))


def _error(body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=_Error).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return said if said in _ERRORS else ""


def _request(credential: Credential, client_secret: str, form: Mapping[str, str]) -> TokenRequest:
    """With the client's own proof: in a header unless the endpoint wants it in the form."""
    sent = dict(form)
    if credential.scope:
        sent["scope"] = credential.scope
    if credential.resource:
        sent["resource"] = credential.resource
    authorization = ""
    if credential.client_id and client_secret and credential.client_auth == "basic":
        pair = f"{quote_plus(credential.client_id)}:{quote_plus(client_secret)}"  # RFC 6749 2.3.1
        authorization = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
    elif credential.client_id:
        sent["client_id"] = credential.client_id
        if client_secret:
            sent["client_secret"] = client_secret
    return TokenRequest(urlencode(sent).encode("ascii"), authorization)


def _signed(credential: Credential, key: str, claims: Mapping[str, Any]) -> str:
    signer, algorithm = _signer(key)
    header = {"alg": algorithm, "typ": "JWT"}
    if credential.key_id:
        header["kid"] = credential.key_id
    try:
        return jwt.encode(header, dict(claims), signer, algorithms=[algorithm])
    except (JoseError, ValueError):
        raise KeyUnusable from None


def _signer(text: str) -> tuple[RSAKey | ECKey, str]:
    """A PEM private key, or a JWK: RSA or one of NIST's curves, which endpoints know. What signs
    with it follows from its kind.
    """
    try:
        if text.lstrip().startswith("{"):
            return _of_jwk(json.loads(text))
        found = load_pem_private_key(text.encode(), password=None)
        if isinstance(found, RSAPrivateKey):
            return RSAKey.import_key(text), "RS256"
        if isinstance(found, EllipticCurvePrivateKey):
            return _ec(ECKey.import_key(text))
    except (ValueError, TypeError, KeyError, JoseError):
        pass
    raise KeyUnusable


def _of_jwk(jwk: Any) -> tuple[RSAKey | ECKey, str]:
    if "d" not in jwk:
        raise KeyUnusable
    match jwk["kty"]:
        case "RSA":
            return RSAKey.import_key(jwk), "RS256"
        case "EC":
            return _ec(ECKey.import_key(jwk))
        case _:
            raise KeyUnusable


def _ec(key: ECKey) -> tuple[ECKey, str]:
    algorithm = _ALGORITHMS.get(key.curve_name)
    if algorithm is None:
        raise KeyUnusable
    return key, algorithm
