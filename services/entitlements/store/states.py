"""Reads that a look and a change have in common: tenants whole, and the installation's tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.entitlements.overrides import Effect, Override
from services.entitlements.rows import Row, Token

_STATES: Final = "SELECT * FROM entitlements.states($1::uuid[], $2)"
_TOKENS: Final = """
SELECT token, activated_at_s FROM entitlements.installation_licenses
WHERE NOT removed ORDER BY token_sha256
"""
_LISTS: Final = "SELECT token FROM entitlements.revocation_lists ORDER BY serial DESC LIMIT 20"


async def read_tokens(connection: Connection) -> tuple[Token, ...]:
    rows = await connection.fetch(_TOKENS)
    return tuple(Token(text=row["token"], activated_at_s=row["activated_at_s"]) for row in rows)


async def read_lists(connection: Connection) -> list[str]:
    return [row["token"] for row in await connection.fetch(_LISTS)]


async def read_states(connection: Connection, tenants: Sequence[TenantId], at_s: int) -> list[Row]:
    return [_row(record) for record in await connection.fetch(_STATES, list(tenants), at_s)]


def _row(record: Any) -> Row:
    expires = record["plan_expires_at"]
    tokens = json.loads(record["licenses"] or "[]")
    return Row(
        tenant=TenantId(str(record["id"])),
        deleted=record["deleted"],
        revision=record["revision"],
        plan=record["plan"],
        plan_expires_at_s=int(expires.timestamp()) if expires else None,
        plan_set_at_s=record["plan_set_at_s"],
        settled_at_s=record["settled_at_s"],
        entitled=frozenset(record["entitled"]),
        overrides=tuple(override(values) for values in json.loads(record["overrides"] or "[]")),
        tokens=tuple(Token(text=text, activated_at_s=at_s) for text, at_s in tokens),
    )


def override(values: Sequence[Any]) -> Override:
    seq, feature, effect, starts_at_s, ends_at_s = values
    return Override(
        seq=seq,
        feature=feature,
        effect=Effect(effect),
        starts_at_s=starts_at_s,
        ends_at_s=ends_at_s,
    )
