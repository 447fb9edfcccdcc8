"""API keys, `bhv_sk_<env>_<id>_<secret><crc32>` (control.md 2.1): their making and their spelling.

The checksum lets a mistyped key be refused without asking the database; it proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

PREFIX: Final = "bhv_sk_"
DEFAULT_LIFE_S: Final = 90 * 86_400
MAX_LIFE_S: Final = 365 * 86_400
#: How long a replaced key goes on beside its successor, at most.
MAX_OVERLAP_S: Final = 86_400
#: What a key may be confined to: a resource, or with `:read` the looking at it.
RESOURCES: Final = (
    "agents", "api-keys", "audit", "context-gate", "enrollment-tokens", "escalations", "invites",
    "jobs", "kill-switch", "license", "plan-features", "policies", "roles", "servers", "settings",
    "traces", "users",
)  # fmt: skip
SCOPES: Final = frozenset(RESOURCES) | {f"{name}:read" for name in RESOURCES}
_RESOURCE: Final = re.compile(r"/api/v1/([a-z-]+)")
_FORM: Final = re.compile(
    r"(bhv_sk_[a-z0-9-]{1,32})_([0-9a-f]{16})_([0-9a-f]{64})([0-9a-f]{8})", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key in its parts. `prefix` is what lists may show."""

    prefix: str
    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        body = f"{self.prefix}_{self.id}_{self.secret}"
        return f"{body}{zlib.crc32(body.encode()):08x}"

    @property
    def secret_sha256(self) -> bytes:
        return hashlib.sha256(self.secret.encode()).digest()

    def is_stored_as(self, secret_sha256: bytes) -> bool:
        return hmac.compare_digest(self.secret_sha256, secret_sha256)


def new_key(environment: str) -> ApiKey:
    return ApiKey(
        prefix=f"{PREFIX}{environment}", id=secrets.token_hex(8), secret=secrets.token_hex(32)
    )


def parse(text: str) -> ApiKey | None:
    """The key that `text` spells; None when it is none or its checksum is wrong."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    key = ApiKey(prefix=match[1], id=match[2], secret=match[3])
    return key if hmac.compare_digest(key.text, text) else None


def scope_of(path: str) -> str:
    """The resource that a route belongs to."""
    match = _RESOURCE.match(path)
    return match[1] if match else ""


def within(scopes: Collection[str], resource: str, *, writes: bool) -> bool:
    """Whether a key of these scopes is good for it. Everybody may ask who they are."""
    if not scopes or resource in scopes or (resource == "me" and not writes):
        return True
    return not writes and f"{resource}:read" in scopes


def covers(scopes: Collection[str], wanted: Collection[str]) -> bool:
    """Whether whoever has `scopes` may make a key of the `wanted` ones."""
    if not scopes:
        return True
    return bool(wanted) and all(
        one in scopes or one.removesuffix(":read") in scopes for one in wanted
    )
