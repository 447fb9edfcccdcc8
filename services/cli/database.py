"""Makes a PostgreSQL ready for the services: the database, each service's schema and roles, its
migrations.

The server is the embedded one or the one of `--db-url`; its address must be allowed to create
roles.
"""

from pathlib import Path

import asyncpg

from services.cli.output import CommandFailed
from services.common.postgres import embedded, migrations, roles


async def create_database(cluster: embedded.Cluster) -> None:
    """The embedded server's one database, closed to roles that nobody named."""
    connection = await asyncpg.connect(cluster.dsn(database="postgres"), timeout=10)
    try:
        found = await connection.fetchval(
            "SELECT 1 FROM pg_database WHERE datname = $1", embedded.DATABASE
        )
        if not found:
            await connection.execute(f"CREATE DATABASE {embedded.DATABASE}")
            await connection.execute(
                f"REVOKE CONNECT, TEMPORARY ON DATABASE {embedded.DATABASE} FROM PUBLIC"
            )
    finally:
        await connection.close()


def address(root: Path, *, run_dir: Path, passfiles: Path, named: str | None) -> str | None:
    """Of the database as whoever made it: the one that was named, else the embedded one; None where
    that cannot be known.
    """
    if named:
        return named
    passfile = passfiles / f"{embedded.SUPERUSER}.pgpass"
    if not passfile.exists():
        return None
    try:
        return embedded.locate(root, socket_dir=run_dir, passfile=passfile).dsn()
    except embedded.EmbeddedUnavailable:
        return None


async def prepare(admin_dsn: str, *, passfiles: Path) -> dict[str, str]:
    """Roles and migrations of every service; answers the login roles' addresses."""
    try:
        connection = await asyncpg.connect(admin_dsn, timeout=10)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as failure:
        raise CommandFailed(f"the database cannot be used: {failure}") from failure
    dsns: dict[str, str] = {}
    try:
        for service in roles.SCHEMAS:
            dsns |= await roles.ensure_roles(
                connection, service=service, admin_dsn=admin_dsn, passfiles=passfiles
            )
            await migrations.migrate(connection, service=service, package=f"services.{service}")
    except (asyncpg.PostgresError, migrations.MigrationError) as failure:
        raise CommandFailed(f"the database cannot be prepared: {failure}") from failure
    finally:
        await connection.close()
    return dsns
