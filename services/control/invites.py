"""Invites: what a token looks like, how long it is good, and what state an invite is in."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

LIFE: Final = timedelta(days=7)
PREFIX: Final = "bhv_inv_"
#: Enough to tell an address from a slip of the hand; whether mail arrives there, mail says.
EMAIL: Final = r"^[^\s@\x00-\x1f\x7f]{1,64}@[^\s@\x00-\x1f\x7f]{1,250}$"
_FORM: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def stored(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def is_token(text: str) -> bool:
    return _FORM.fullmatch(text) is not None


def address(typed: str) -> str:
    """An address as it is kept and compared."""
    return typed.strip().lower()


def state(row: Mapping[str, Any], now: datetime) -> str:
    if row["accepted_at"] is not None:
        return "accepted"
    if row["revoked_at"] is not None:
        return "revoked"
    return "expired" if now >= row["expires_at"] else "invited"
