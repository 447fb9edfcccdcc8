"""Whether the database holds exactly the migrations that this program knows."""

import asyncio
from collections.abc import Iterator
from typing import Final

import asyncpg

from services.cli import database
from services.cli.doctor.checks import Check, Installation, fail, ok, unknown, warn
from services.common.postgres import migrations as files
from services.common.postgres.roles import SCHEMAS

TIMEOUT_S: Final = 5


def migrations(installation: Installation) -> Iterator[Check]:
    """Per schema: missing ones fail, unknown ones warn (an older program on a newer database)."""
    dsn = _dsn(installation)
    if dsn is None:
        why = "its address is not known here; name it with BEHAVRY_DB_URL"
        yield unknown("database", why)
        return
    try:
        applied = asyncio.run(_applied(dsn))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as failure:
        if installation.running is None:
            yield unknown("database", "nothing runs")
            return
        why = f"it cannot be used: {type(failure).__name__}"
        yield fail("database", why, f"see {installation.state.log_of('postgres')}")
        return
    yield ok("database", "it answers")
    for service, versions in applied.items():
        yield _compared(service, versions)


def _compared(service: str, versions: dict[int, str]) -> Check:
    named = f"migrations.{service}"
    known = {one.version: one.sha256 for one in files.find(f"services.{service}")}
    missing = sorted(known.keys() - versions.keys())
    changed = sorted(v for v in known.keys() & versions.keys() if known[v] != versions[v])
    if changed:
        why = f"{changed} are not the files that ran"
        return fail(named, why, "install the release that this database belongs to")
    if missing:
        return fail(named, f"{missing} have not run", "restart: behavry down, behavry up")
    if ahead := sorted(versions.keys() - known.keys()):
        return warn(named, f"the database is ahead by {ahead}", "update this program")
    return ok(named, f"{len(versions)} have run")


def _dsn(installation: Installation) -> str | None:
    state = installation.state
    return database.address(
        state.root,
        run_dir=installation.run_dir,
        passfiles=state.passfiles,
        named=installation.environment.get("BEHAVRY_DB_URL"),
    )


async def _applied(dsn: str) -> dict[str, dict[int, str]]:
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
    found: dict[str, dict[int, str]] = {}
    try:
        for service, roles in SCHEMAS.items():
            rows = await connection.fetch(
                f"SELECT version, sha256 FROM {roles.schema}.behavry_migrations"  # noqa: S608  # ours
            )
            found[service] = {row["version"]: row["sha256"] for row in rows}
    finally:
        await connection.close(timeout=TIMEOUT_S)
    return found
