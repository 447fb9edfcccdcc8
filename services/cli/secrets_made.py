"""Makes every secret of a standalone installation, once: a second start finds the files and leaves
them.

Each file appears complete or not at all (0600, synced). Services are handed paths; a value is in no
argument, environment or log. Decides formats that the services' readers expect; rotation is theirs.
"""

import json
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import ECKey

from services.cli.state import State, write_text
from services.common.postgres.embedded import write_secret

#: Whose signatures a plane believes: policy bundles, what people decided.
TRUST_ROLES = ("bundle", "decision")
PEERS = ("proxy", "authorizer", "audit", "control", "entitlements", "operator")
_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_all(state: State, *, plane_id: str) -> None:
    """Everything that the services read at their start."""
    for peer in (*PEERS, "opa"):
        _once(state.peers / f"{peer}.token", _token)
    for name in ("digest.keys", "seal.keys", "page.keys"):
        _once(state.keys / name, lambda: secrets.token_hex(32))
    _once(state.keys / "jwt.pem", lambda: _pem(rsa.generate_private_key(65537, 2048)))
    for name in ("bundle.pem", "link.pem", "decision.pem"):
        _once(state.keys / name, lambda: _pem(ec.generate_private_key(ec.SECP256R1())))
    _once(state.plane_keys, lambda: _plane_keys(state.keys / "link.pem", plane_id))
    _once(state.trust, lambda: _trust_root(state.keys))
    _complete_trust(state)
    _once(state.admin_password, lambda: secrets.token_urlsafe(18))
    _once(state.admin_api_key, _api_key)


def _once(path: Path, make: Callable[[], str]) -> None:
    if path.exists():
        return
    write_secret(path, make() + "\n")


def _token() -> str:
    return secrets.token_urlsafe(32)


def _pem(key: _PrivateKey) -> str:
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
        .strip()
    )


def _public_jwk(private: Path, *, kid: str | None = None) -> dict[str, object]:
    key = ECKey.import_key(private.read_bytes())
    kid = kid or key.thumbprint()
    return {**key.as_dict(private=False), "kid": kid, "use": "sig", "alg": "ES256"}


def _trust_root(keys: Path) -> str:
    """Version 1: per role, threshold 1 and one key, named by its RFC 7638 thumbprint."""
    roles = {role: _role(keys / f"{role}.pem") for role in TRUST_ROLES}
    return json.dumps({"version": 1, "roles": roles}, sort_keys=True)


def _role(key: Path) -> dict[str, object]:
    return {"threshold": 1, "keys": [_public_jwk(key)]}


def _complete_trust(state: State) -> None:
    """An installation of an earlier release gets the roles that it lacks; what it has stays."""
    document = json.loads(state.trust.read_bytes())
    missing = [role for role in TRUST_ROLES if role not in document["roles"]]
    if missing:
        document["roles"] |= {role: _role(state.keys / f"{role}.pem") for role in missing}
        write_text(state.trust, json.dumps(document, sort_keys=True) + "\n")


def bundle_keys(trust: Path) -> dict[str, str]:
    """The trust root's bundle keys as PEM by key id, which is how OPA wants them."""
    document = json.loads(trust.read_bytes())
    keys = document["roles"]["bundle"]["keys"]
    return {key["kid"]: ECKey.import_key(key).as_pem(private=False).decode() for key in keys}


def _plane_keys(link_key: Path, plane_id: str) -> str:
    """What control knows its planes by: the public half of each one's link key."""
    return json.dumps({plane_id: _public_jwk(link_key, kid=plane_id)}, sort_keys=True)


def _api_key() -> str:
    """`bhv_sk_<env>_<id>_<secret><crc32>` (control.md 2.1)."""
    body = f"bhv_sk_local_{secrets.token_hex(8)}_{secrets.token_hex(32)}"
    return f"{body}{zlib.crc32(body.encode()):08x}"
