"""The key that signs agents' tokens, and the key set by which others check them.

RS256 only, RSA >= 2048 (core.md 2). A key is named by its RFC 7638 thumbprint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from joserfc.jwk import RSAKey

MIN_BITS: Final = 2048
MAX_AGE_S: Final = 300


class WeakKey(ValueError):
    """Not an RSA key of at least 2048 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    private: RSAKey = field(repr=False)
    kid: str

    @classmethod
    def from_file(cls, path: Path) -> SigningKey:
        """A PEM file with the private key; it is read once, at start."""
        key = RSAKey.import_key(path.read_bytes())
        private = key.private_key
        if private is None or private.key_size < MIN_BITS:
            raise WeakKey(f"{path} must hold a private RSA key of at least {MIN_BITS} bits")
        return cls(private=key, kid=key.thumbprint())

    def public_jwk(self) -> dict[str, Any]:
        public = self.private.as_dict(private=False)
        return {**public, "kid": self.kid, "use": "sig", "alg": "RS256"}


@dataclass(frozen=True, slots=True)
class KeySet:
    """The document of `/.well-known/jwks.json` and its entity tag."""

    document: bytes
    etag: str

    @classmethod
    def of(cls, *keys: SigningKey) -> KeySet:
        jwks = {"keys": [key.public_jwk() for key in keys]}
        document = json.dumps(jwks, sort_keys=True, separators=(",", ":")).encode()
        return cls(document, f'"{hashlib.sha256(document).hexdigest()[:32]}"')
