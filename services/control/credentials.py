"""Agents' secrets and enrolment tokens: random, shown once, kept as SHA-256 (core.md 2)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

MAX_SECRETS: Final = 2
#: How long an older secret goes on beside a new one, at most.
OVERLAP: Final = timedelta(days=7)
ENROLLMENT_PREFIX: Final = "bhv_enr_"
#: A session without renewal ends after this; so many may live per agent.
SESSION_IDLE: Final = timedelta(hours=8)
MAX_SESSIONS: Final = 100
#: Checkers of tokens allow their clocks 30 s; an ended session is named for longer than that.
LEEWAY: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    id: str
    secret_sha256: bytes = field(repr=False)
    expires_at: datetime | None


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def new_enrollment_token() -> str:
    return ENROLLMENT_PREFIX + secrets.token_urlsafe(32)


def stored(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def matching(candidates: Iterable[StoredSecret], secret: str, now: datetime) -> StoredSecret | None:
    """The live one that `secret` is. Compares with each in constant time, and with one that nobody
    has where there is none, so that an unknown client takes as long as a wrong secret.
    """
    digest = stored(secret)
    found = None
    hmac.compare_digest(digest, b"\0" * len(digest))
    for candidate in candidates:
        fits = hmac.compare_digest(digest, candidate.secret_sha256)
        if fits and (candidate.expires_at is None or now < candidate.expires_at):
            found = candidate
    return found


def seconds(life_s: int) -> timedelta:
    return timedelta(seconds=life_s)
