"""Policies and their versions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.rego.check import PolicyReport

_COLUMNS: Final = "id, key, state, latest_version, active_version, revision, created_at"
_INSERT: Final = f"""
INSERT INTO control.policies (id, tenant_id, key, state, latest_version, revision, created_at)
VALUES ($1, $2, $3, 'draft', 1, 1, $4)
ON CONFLICT (tenant_id, key) DO NOTHING
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_GET: Final = f"SELECT {_COLUMNS} FROM control.policies WHERE id = $1"  # noqa: S608  # a constant list of columns
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.policies WHERE key > $1 ORDER BY key LIMIT $2"""  # noqa: S608  # a constant list of columns
_COUNT: Final = "SELECT count(*) FROM control.policies WHERE state <> 'retired'"
_SET: Final = f"""
UPDATE control.policies
SET state = $2, active_version = $3, latest_version = $4, revision = revision + 1
WHERE id = $1
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_ADD_VERSION: Final = """
INSERT INTO control.policy_versions
    (tenant_id, policy_id, version, source, tests, reads, guards, created_by, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"""
_VERSION: Final = """
SELECT version, source, tests, reads, guards, created_by, created_at
FROM control.policy_versions WHERE policy_id = $1 AND version = $2"""
_WITH_SOURCE: Final = f"""
SELECT {", ".join(f"p.{name}" for name in _COLUMNS.split(", "))}, v.source, v.tests
FROM control.policies p
JOIN control.policy_versions v ON v.policy_id = p.id AND v.version = p.latest_version
WHERE p.id = $1"""  # noqa: S608  # a constant list of columns
_VERSIONS: Final = """
SELECT version, created_by, created_at
FROM control.policy_versions WHERE policy_id = $1 ORDER BY version DESC"""
_COPY: Final = """
INSERT INTO control.policy_versions
    (tenant_id, policy_id, version, source, tests, reads, guards, created_by, created_at)
SELECT tenant_id, policy_id, $3, source, tests, reads, guards, $4, $5
FROM control.policy_versions WHERE policy_id = $1 AND version = $2"""


async def insert(
    connection: Connection, tenant: TenantId, *, id: str, key: str, now: datetime
) -> dict[str, Any] | None:
    """None when the key is taken."""
    row = await connection.fetchrow(_INSERT, id, tenant, key, now)
    return dict(row) if row else None


async def get(connection: Connection, id: str, *, lock: bool = False) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET, id)
    return dict(row) if row else None


async def with_source(connection: Connection, id: str) -> dict[str, Any] | None:
    """With the latest version's `source` and `tests`."""
    row = await connection.fetchrow(_WITH_SOURCE, id)
    return {**dict(row), "tests": json.loads(row["tests"])} if row else None


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_PAGE, after, limit)]


async def count(connection: Connection) -> int:
    """Policies that are not retired."""
    return int(await connection.fetchval(_COUNT))


async def set_state(
    connection: Connection, id: str, *, state: str, active: int | None, latest: int
) -> dict[str, Any]:
    row = await connection.fetchrow(_SET, id, state, active, latest)
    return dict(row or {})


async def add_version(
    connection: Connection,
    tenant: TenantId,
    *,
    policy: str,
    version: int,
    source: str,
    tests: Iterable[Any],
    report: PolicyReport,
    by: str,
    now: datetime,
) -> None:
    reads = json.dumps(sorted(report.references))
    guards = None if report.guards is None else json.dumps(report.guards)
    cases = json.dumps(list(tests))
    await connection.execute(
        _ADD_VERSION, tenant, policy, version, source, cases, reads, guards, by, now
    )


async def copy_version(
    connection: Connection, *, policy: str, old: int, new: int, by: str, now: datetime
) -> bool:
    """The old text under a new number; False when there is no such version."""
    done = await connection.execute(_COPY, policy, old, new, by, now)
    return bool(done.endswith(" 1"))


async def version(connection: Connection, policy: str, number: int) -> dict[str, Any]:
    row = await connection.fetchrow(_VERSION, policy, number)
    if row is None:
        raise LookupError(number)
    return {**dict(row), "tests": json.loads(row["tests"])}


async def versions(connection: Connection, policy: str) -> list[dict[str, Any]]:
    """The latest first. None at all: there is no such policy."""
    return [dict(row) for row in await connection.fetch(_VERSIONS, policy)]
