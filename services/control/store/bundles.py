"""The bundles that were built, by plane and serial. A serial comes from the transaction that stores
its bundle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from services.common.ids import PlaneId
from services.common.postgres.connection import Connection
from services.control.bundles import BuiltBundle

KEPT: Final = 20

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('bundle:' || $1, 0))"
_NEWEST: Final = """
SELECT serial, content_digest, etag, archive, created_at, not_after
FROM control.bundles WHERE plane_id = $1 ORDER BY serial DESC LIMIT 1
"""
_INSERT: Final = """
INSERT INTO control.bundles
    (plane_id, serial, content_digest, etag, archive, created_at, not_after)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
#: Every process of control hears of a new bundle on it, once it is committed.
CHANNEL: Final = "behavry_bundles"
_NOTIFY: Final = "SELECT pg_notify($1, $2)"
_FORGET: Final = "DELETE FROM control.bundles WHERE plane_id = $1 AND serial <= $2"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBundle:
    serial: int
    content_digest: str
    etag: str
    archive: bytes = field(repr=False)
    created_s: int
    not_after_s: int


async def lock(connection: Connection, plane: PlaneId) -> None:
    """One builder per plane, until the transaction ends."""
    await connection.execute(_LOCK, plane)


async def newest(connection: Connection, plane: PlaneId) -> StoredBundle | None:
    row = await connection.fetchrow(_NEWEST, plane)
    if row is None:
        return None
    return StoredBundle(
        serial=row["serial"],
        content_digest=row["content_digest"],
        etag=row["etag"],
        archive=row["archive"],
        created_s=int(row["created_at"].timestamp()),
        not_after_s=int(row["not_after"].timestamp()),
    )


async def insert(connection: Connection, plane: PlaneId, bundle: BuiltBundle) -> None:
    """Also tells all processes, and forgets all but the newest few."""
    created = datetime.fromtimestamp(bundle.created_s, UTC)
    not_after = datetime.fromtimestamp(bundle.not_after_s, UTC)
    await connection.execute(
        _INSERT,
        plane,
        bundle.serial,
        bundle.content_digest,
        bundle.etag,
        bundle.archive,
        created,
        not_after,
    )
    await connection.execute(_NOTIFY, CHANNEL, str(bundle.serial))
    await connection.execute(_FORGET, plane, bundle.serial - KEPT)
