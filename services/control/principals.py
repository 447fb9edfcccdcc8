"""Who a request comes from, once that is proven. A tenant comes from here and never from a body."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from services.common.ids import TenantId
from services.control.roles import Role

Kind = Literal["user", "api_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    kind: Kind
    id: str
    name: str
    role: Role
    tenant: TenantId
    tenant_slug: str
    #: A person's session, by the hash of its token; None for machines.
    session_sha256: bytes | None = field(default=None, repr=False)
    session_id: str | None = None
    #: When this person last proved who they are in it, and which second factors they have.
    proven_at: datetime | None = None
    #: Only a browser's session has one.
    csrf_token: str | None = field(default=None, repr=False)
    factors: tuple[str, ...] = ()
    #: What proved who it is, last.
    method: str = ""
    #: Runs the installation; never true of a machine.
    super_admin: bool = False
    #: The own tenant of a super-admin who acts in another one.
    home: TenantId | None = None
    #: What a key is good for beside its role; empty: whatever the role may.
    scopes: tuple[str, ...] = ()

    @property
    def is_human(self) -> bool:
        return self.session_sha256 is not None

    @property
    def label(self) -> str:
        """Who made a row: `user:<id>` or `api_key:<id>`."""
        return f"{self.kind}:{self.id}"

    def actor(self) -> dict[str, Any]:
        """As records name it (audit.md 1.2)."""
        return {"kind": self.kind, "id": self.id, "name": self.name}


def person(label: str) -> str | None:
    """The id of the person who made a row, by its label; None for a machine."""
    kind, _, named = label.partition(":")
    return named if kind == "user" else None
