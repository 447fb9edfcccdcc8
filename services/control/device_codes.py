"""Codes of a sign-in at a device without a browser (RFC 8628): how they look, how long they are
good, how often a device may ask.

A user code is short, because people type it: it is worth nothing but to somebody signed in, and
few are tried. Of both, the hash alone is kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

LIFE: Final = timedelta(minutes=10)
INTERVAL_S: Final = 5
#: What each answer that came too early adds (RFC 8628 3.5).
SLOWER_S: Final = 5
#: Consonants alone: no words, and none that look alike (RFC 8628 6.1). 20^8 codes.
ALPHABET: Final = "BCDFGHJKLMNPQRSTVWXZ"
LENGTH: Final = 8
GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
CLIENT: Final = "behavry-cli"
#: Who approves has to have proven who they are right before.
STEP_UP: Final = "step_up"
_TYPED: Final = re.compile(rf"[{ALPHABET}]{{{LENGTH}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """`device` stays where it was asked for; `user` goes through a person."""

    device: str = field(repr=False)
    user: str = field(repr=False)

    @classmethod
    def new(cls) -> Codes:
        user = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        return cls(device=secrets.token_urlsafe(32), user=shown(user))


def shown(user_code: str) -> str:
    return f"{user_code[:4]}-{user_code[4:]}"


def typed(text: str) -> str | None:
    """The code that somebody meant, however they wrote it; None where it can be none."""
    letters = re.sub(r"[^A-Z]", "", text[:40].upper())
    return shown(letters) if _TYPED.fullmatch(letters) else None


def kept(code: str) -> bytes:
    """What is stored of either code."""
    return hashlib.sha256(b"behavry/device/1\0" + code.encode()).digest()


def too_early(polled_at: datetime | None, interval_s: int, now: datetime) -> bool:
    return polled_at is not None and now < polled_at + timedelta(seconds=interval_s)
