"""One-time codes (RFC 6238) and recovery codes: how they look, when one fits, what is kept of them.

A code's step is counted up and never used again, in either direction of the window; the row that
holds it decides between two at once (store/factors.py). Secrets of codes must be read to be
checked, so they lie sealed under a key that the database does not have.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import pyotp
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ISSUER: Final = "Behavry"
STEP_S: Final = 30
#: Steps to either side that are taken, for clocks that differ.
WINDOW: Final = 1
CHALLENGE_LIFE: Final = timedelta(minutes=5)
MAX_ATTEMPTS: Final = 5
RECOVERY_CODES: Final = 10
MAX_FACTORS: Final = 10
_NONCE_BYTES: Final = 12


def new_secret() -> str:
    return pyotp.random_base32(32)


def uri(secret: str, username: str) -> str:
    """What an authenticator scans."""
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=ISSUER)


def fitting_step(secret: str, code: str, now: datetime, *, after: int) -> int | None:
    """The step that this code is of; None when it fits none in the window behind `after`."""
    totp, present = pyotp.TOTP(secret), int(now.timestamp()) // STEP_S
    found = None
    for step in range(present - WINDOW, present + WINDOW + 1):
        if hmac.compare_digest(totp.generate_otp(step), code) and step > after:
            found = step
    return found


def new_recovery_codes() -> list[str]:
    """80 bits each, in groups that can be copied by hand."""
    return ["-".join(_groups(secrets.token_hex(10))) for _ in range(RECOVERY_CODES)]


def stored_code(code: str) -> bytes:
    """What is kept of a recovery code, however it was typed."""
    bare = code.replace("-", "").replace(" ", "").lower()
    return hashlib.sha256(bare.encode()).digest()


def _groups(text: str) -> list[str]:
    return [text[at : at + 5] for at in range(0, len(text), 5)]


@dataclass(frozen=True, slots=True)
class Sealing:
    """Seals for one purpose: its key is derived from another one that control holds."""

    key: bytes = field(repr=False)

    @classmethod
    def under(cls, key: bytes) -> Sealing:
        return cls(hmac.digest(key, b"behavry/totp/1", "sha256"))

    def seal(self, secret: str, *, owner: str) -> bytes:
        """Bound to its owner: another person's row cannot take it over."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, secret.encode(), owner.encode())

    def opened(self, sealed: bytes, *, owner: str) -> str | None:
        """None when it was sealed under another key or for somebody else."""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return AESGCM(self.key).decrypt(nonce, body, owner.encode()).decode()
        except (InvalidTag, ValueError):
            return None
