"""Brings a service's schema to the state its code expects: numbered SQL files beside the service,
each in one transaction.

Files are `services/<service>/migrations/NNNN_name.sql`, run in the order of their numbers as the
schema's owner, who cannot log in. One migrator per service works at a time; a second one waits and
then finds nothing to do. A file that ran never changes again. A database ahead of the code is fine:
code runs before and after each migration.
"""

import hashlib
import importlib.resources
import re
from dataclasses import dataclass

import asyncpg

from services.common.postgres.connection import SingleConnection
from services.common.postgres.roles import SCHEMAS

LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 5_000
WAIT_FOR_OTHER_S = 60.0
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_TABLE = """
CREATE TABLE IF NOT EXISTS {schema}.behavry_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
_APPLIED = "SELECT version, sha256 FROM {schema}.behavry_migrations ORDER BY version"
_RECORD = "INSERT INTO {schema}.behavry_migrations (version, name, sha256) VALUES ($1, $2, $3)"


class MigrationError(Exception):
    """The files and the database disagree, or a file failed; the message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def find(package: str) -> list[Migration]:
    """The migrations of a package, in order; none when it has no such directory (or does not
    exist).
    """
    try:
        directory = importlib.resources.files(package) / "migrations"
    except ModuleNotFoundError:
        return []
    if not directory.is_dir():
        return []
    found = []
    for entry in directory.iterdir():
        if not entry.name.endswith(".sql"):
            continue
        match = _FILE.fullmatch(entry.name)
        if match is None:
            raise MigrationError(f"{package}: {entry.name} is not named NNNN_name.sql")
        found.append(Migration(version=int(match[1]), name=entry.name, sql=entry.read_text()))
    found.sort(key=lambda migration: migration.version)
    for expected, migration in enumerate(found, start=1):
        if migration.version != expected:
            raise MigrationError(f"{package}: {migration.name} should have number {expected:04d}")
    return found


async def migrate(connection: SingleConnection, *, service: str, package: str) -> list[str]:
    """Run what has not run yet and answer the names. The roles must exist (`roles.ensure_roles`).

    1. one migrator at a time 2. what ran is unchanged 3. each file in its own transaction, as the
    owner.
    """
    roles = SCHEMAS[service]
    migrations = find(package)
    lock = int.from_bytes(hashlib.sha256(f"migrate:{service}".encode()).digest()[:8], signed=True)
    await connection.execute("SELECT pg_advisory_lock($1)", lock, timeout=WAIT_FOR_OTHER_S)  # 1
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {roles.owner}")
            await connection.execute(_TABLE.format(schema=roles.schema))
            # Default privileges may have given this table away.
            for role in roles.logins:
                await connection.execute(
                    f"REVOKE ALL ON {roles.schema}.behavry_migrations FROM {role}"
                )
            rows = await connection.fetch(_APPLIED.format(schema=roles.schema))
        applied = {row["version"]: row["sha256"] for row in rows}
        for migration in migrations:  # 2
            if applied.get(migration.version, migration.sha256) != migration.sha256:
                raise MigrationError(f"{package}: {migration.name} changed after it had run")
        todo = [migration for migration in migrations if migration.version not in applied]
        for migration in todo:  # 3
            await _run(connection, migration, schema=roles.schema, owner=roles.owner)
        return [migration.name for migration in todo]
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", lock)


async def _run(
    connection: SingleConnection, migration: Migration, *, schema: str, owner: str
) -> None:
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {owner}")
            await connection.execute(f"SET LOCAL search_path TO {schema}")
            await connection.execute(f"SET LOCAL lock_timeout TO {LOCK_TIMEOUT_MS}")
            await connection.execute(f"SET LOCAL statement_timeout TO {STATEMENT_TIMEOUT_MS}")
            await connection.execute(migration.sql)
            await connection.execute(
                _RECORD.format(schema=schema), migration.version, migration.name, migration.sha256
            )
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{migration.name}: {error}") from error
