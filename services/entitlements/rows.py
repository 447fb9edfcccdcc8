"""What is stored of the installation and of a tenant, as values; nothing in them is believed yet.

How they are read and written is store's, what comes of them beliefs.py's and judgements.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.ids import TenantId
from services.entitlements.overrides import Override


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    epoch: str
    revision: int
    base_revision: int
    clock_mark_s: int
    ceiling: str
    #: On which server it was seen last, and on which it runs.
    server: str
    runs_on: str
    installation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A raw licence, and when it was activated."""

    text: str
    activated_at_s: int

    def __repr__(self) -> str:
        return f"Token(activated_at_s={self.activated_at_s})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is stored of a tenant; nothing of its tokens is believed yet."""

    tenant: TenantId
    deleted: bool
    revision: int
    plan: str
    plan_expires_at_s: int | None
    plan_set_at_s: int
    settled_at_s: int
    entitled: frozenset[str]
    overrides: tuple[Override, ...]
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """A tenant whose changes by time have come, or that has gained features."""

    tenant: TenantId
    #: The revision that was read of it.
    known: int
    due_s: int
    entitled: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Who caused a row, and when it became part of which revision."""

    actor: str
    reason: str
    request_id: str
    now_s: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PastOverride:
    id: str
    row: Override
    actor: str
    reason: str
    request_id: str
    created_at_s: int
