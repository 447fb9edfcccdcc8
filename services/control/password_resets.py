"""Another password for whoever has lost theirs: what a link's token looks like, and how long it is
good. Who may make one and what ends with its use, api/passwords.py says.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import timedelta
from typing import Final

#: Of a link that an admin made, and of one that somebody asked for by mail.
LIFE_GIVEN: Final = timedelta(hours=24)
LIFE_ASKED: Final = timedelta(hours=1)
PREFIX: Final = "bhv_rst_"
_FORM: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def stored(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def is_token(text: str) -> bool:
    return _FORM.fullmatch(text) is not None
