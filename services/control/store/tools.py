"""The tools of servers: as planes saw them, and what an admin said they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId, is_uuid
from services.common.postgres.connection import Connection

_PAGE: Final = """
SELECT t.name, t.state, t.action, t.category, t.allow_tags, t.pinned_hash, t.seen_hash,
       t.first_seen_at, t.last_seen_at, t.revision, d.definition
FROM control.servers s
LEFT JOIN control.tools t ON t.server_id = s.id AND t.name > $2
LEFT JOIN control.tool_definitions d
       ON d.server_id = t.server_id AND d.tool = t.name AND d.schema_hash = t.seen_hash
WHERE {server} = $1 ORDER BY t.name LIMIT $3"""
_PAGE_BY_SLUG: Final = _PAGE.format(server="s.slug")
_PAGE_BY_ID: Final = _PAGE.format(server="s.id")
_OF_SERVER: Final = """
SELECT name, state, action, category, allow_tags, pinned_hash, seen_hash, revision
FROM control.tools WHERE server_id = $1 AND name = ANY($2::text[]) FOR UPDATE"""
_COUNT: Final = "SELECT count(*) FROM control.tools WHERE server_id = $1"
#: Definitions as agents read them now. Hidden ones weigh what they would.
_WEIGHTS: Final = """
SELECT s.slug AS server,
       count(*) FILTER (WHERE t.state = 'approved') AS approved,
       count(*) FILTER (WHERE t.state = 'hidden') AS hidden,
       count(*) FILTER (WHERE t.state = 'unclassified') AS unclassified,
       count(*) FILTER (WHERE t.state = 'changed') AS changed,
       coalesce(sum(ceil(octet_length(d.definition) / $1::numeric)), 0)::bigint
           AS estimated_tokens,
       coalesce(sum(ceil(octet_length(d.definition) / $1::numeric))
                FILTER (WHERE t.state = 'approved'), 0)::bigint AS shown_estimated_tokens
FROM control.servers s
LEFT JOIN control.tools t ON t.tenant_id = s.tenant_id AND t.server_id = s.id
LEFT JOIN control.tool_definitions d
       ON d.tenant_id = t.tenant_id AND d.server_id = t.server_id AND d.tool = t.name
          AND d.schema_hash = t.seen_hash
GROUP BY s.slug ORDER BY s.slug"""
_PUT: Final = """
INSERT INTO control.tools
    (tenant_id, server_id, name, state, action, category, allow_tags, pinned_hash, seen_hash,
     revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, '', 1)
ON CONFLICT (tenant_id, server_id, name) DO UPDATE
SET state = excluded.state, action = excluded.action, category = excluded.category,
    allow_tags = excluded.allow_tags, pinned_hash = excluded.pinned_hash,
    revision = tools.revision + 1
RETURNING name, state, action, category, allow_tags, pinned_hash, seen_hash, first_seen_at,
          last_seen_at, revision"""
_SEE: Final = """
INSERT INTO control.tools
    (tenant_id, server_id, name, state, action, category, allow_tags, pinned_hash, seen_hash,
     first_seen_at, last_seen_at, revision)
VALUES ($1, $2, $3, 'unclassified', 'unclassified', '', '{}', '', $4, $5, $5, 1)
ON CONFLICT (tenant_id, server_id, name) DO UPDATE
SET seen_hash = excluded.seen_hash, last_seen_at = excluded.last_seen_at,
    first_seen_at = coalesce(tools.first_seen_at, excluded.first_seen_at),
    state = $6, revision = tools.revision + (tools.state <> $6)::int"""
_KEEP_DEFINITION: Final = """
INSERT INTO control.tool_definitions
    (tenant_id, server_id, tool, schema_hash, definition, seen_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant_id, server_id, tool, schema_hash) DO UPDATE SET seen_at = excluded.seen_at"""
_TRIM_DEFINITIONS: Final = """
DELETE FROM control.tool_definitions d
WHERE d.server_id = $1 AND d.tool = $2 AND d.schema_hash NOT IN (
    SELECT schema_hash FROM control.tool_definitions
    WHERE server_id = $1 AND tool = $2 ORDER BY seen_at DESC, schema_hash LIMIT 10
) AND d.schema_hash NOT IN (
    SELECT pinned_hash FROM control.tools WHERE server_id = $1 AND name = $2
)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    tool: str
    state: str
    action: str
    category: str
    allow_tags: Sequence[str]
    pinned_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A tool as a plane saw it; `state` is what it is in from now on."""

    tool: str
    schema_hash: str
    definition: bytes = field(repr=False)
    state: str


async def page(
    connection: Connection, server: str, *, after: str, limit: int
) -> list[dict[str, Any]] | None:
    """Of a server by slug or id; None: there is no such server."""
    sql = _PAGE_BY_ID if is_uuid(server) else _PAGE_BY_SLUG
    rows = await connection.fetch(sql, server, after, limit)
    return [dict(row) for row in rows if row["name"] is not None] if rows else None


async def by_name(
    connection: Connection, server_id: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Those that exist, locked."""
    rows = await connection.fetch(_OF_SERVER, server_id, list(names))
    return {row["name"]: dict(row) for row in rows}


async def count(connection: Connection, server_id: str) -> int:
    return int(await connection.fetchval(_COUNT, server_id))


async def weights(connection: Connection, *, bytes_per_token: int) -> list[dict[str, Any]]:
    """Of every server: how many tools are in each state, and what their definitions weigh."""
    return [dict(row) for row in await connection.fetch(_WEIGHTS, bytes_per_token)]


async def classify(
    connection: Connection, tenant: TenantId, server_id: str, what: Classification
) -> dict[str, Any]:
    row = await connection.fetchrow(
        _PUT, tenant, server_id, what.tool, what.state, what.action, what.category,
        list(what.allow_tags), what.pinned_hash,
    )  # fmt: skip
    return dict(row or {})


async def see(
    connection: Connection, tenant: TenantId, server_id: str, sighting: Sighting, now: datetime
) -> None:
    """Keeps the sighting and the newest definitions, the approved one among them."""
    tool, schema_hash = sighting.tool, sighting.schema_hash
    await connection.execute(_SEE, tenant, server_id, tool, schema_hash, now, sighting.state)
    await connection.execute(
        _KEEP_DEFINITION, tenant, server_id, tool, schema_hash, sighting.definition, now
    )
    await connection.execute(_TRIM_DEFINITIONS, server_id, tool)
