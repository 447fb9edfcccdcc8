"""Repeated requests: what makes two of them the same, and what of an answer may be kept.

A claim is made before the work and completed with its answer. A request that failed gives its claim
back; one that was cut short keeps it without an answer, because nobody knows whether it was done.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import timedelta
from typing import Any, Final

from services.control import api_keys

HEADER: Final = "idempotency-key"
KEPT: Final = timedelta(hours=24)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
#: Told once, and to nobody again.
_ONE_TIME: Final = ("client_secret", "token", "secret", "uri", "link", "recovery_codes")


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def fingerprint(path: str, query: bytes, body: bytes) -> bytes:
    """Of everything but the credential and the key."""
    parts = (path.encode(), query, body)
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in parts)).digest()


def kept_answer(body: bytes) -> bytes:
    """The answer without what is told once."""
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return b""
    if isinstance(answer, dict):
        answer = {name: None if _is_one_time(name, it) else it for name, it in answer.items()}
    return json.dumps(answer).encode()


def _is_one_time(name: str, value: object) -> bool:
    """Policies have a `key` too: a name, which is no secret."""
    is_api_key = isinstance(value, str) and value.startswith(api_keys.PREFIX)
    return name in _ONE_TIME or (name == "key" and is_api_key)
