"""Which tenant a request is about: its sender's own, or the one that a super-admin names in the
path (`/api/v1/tenants/{id}/...`).

Decides what such a path stands for, and what its reason must be. Who may use one is the guard's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from services.common.ids import TenantId

REASON_HEADER: Final = "x-behavry-reason"
_REASON_CHARACTERS: Final = range(8, 501)
_PATH: Final = re.compile(
    r"/api/v1/tenants/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([a-z][a-z-]*)(.*)", re.DOTALL
)
#: Told of tenants themselves, by routes of their own.
_OWN: Final = frozenset({"features", "plan"})
#: Somebody's own affairs, or nobody's: there is nothing of them in a tenant.
_NEVER: Final = frozenset({"auth", "me", "tenants", "enroll", "policy"})


@dataclass(frozen=True, slots=True)
class Inside:
    """A path of a resource, as seen from inside the named tenant."""

    tenant: TenantId
    path: str


def inside(path: str) -> Inside | None:
    """What a super-admin's path names; None when it is a path like any other."""
    match = _PATH.fullmatch(path)
    if match is None or match[2] in _OWN | _NEVER:
        return None
    return Inside(TenantId(match[1]), f"/api/v1/{match[2]}{match[3]}")


def reason_of(header: str) -> str | None:
    """The reason that was given; None when it is too short, too long or unreadable."""
    text = header.strip()
    return text if len(text) in _REASON_CHARACTERS and text.isprintable() else None
