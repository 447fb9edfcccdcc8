"""Roles and migrations against a real server: who owns, who may log in, what runs once."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from services.common.postgres import migrations, roles
from services.common.postgres.embedded import write_secret
from services.common.postgres.migrations import Migration, MigrationError
from tests.fakes.postgres import Database, Server

CREATE = Migration(version=1, name="0001_things.sql", sql="CREATE TABLE things (v int)")
FILL = Migration(version=2, name="0002_fill.sql", sql="INSERT INTO things VALUES (1)")


def _package(monkeypatch: pytest.MonkeyPatch, *files: Migration) -> None:
    monkeypatch.setattr(migrations, "find", lambda _: list(files))


async def _migrate(database: Database) -> list[str]:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        await roles.ensure_roles(
            connection,
            service="audit",
            admin_dsn=database.admin_dsn,
            passfiles=database.passfiles,
        )
        return await migrations.migrate(connection, service="audit", package="none")
    finally:
        await connection.close()


async def _as(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_two_migrators_at_once_run_each_file_once(
    entitlements_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(monkeypatch, CREATE, FILL)
    ran = await asyncio.gather(*(_migrate(entitlements_database) for _ in range(4)))
    rows = await _as(entitlements_database.admin_dsn, "SELECT count(*) FROM audit.things")

    assert [[], [], [], ["0001_things.sql", "0002_fill.sql"]] == sorted(ran)
    assert 1 == rows


async def test_a_file_that_fails_leaves_no_half_and_those_before_it_stay(
    entitlements_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Migration(
        version=2, name="0002_fill.sql", sql="INSERT INTO things VALUES (1); SELECT 1 / 0"
    )
    _package(monkeypatch, CREATE, broken)
    with pytest.raises(MigrationError, match="0002_fill"):
        await _migrate(entitlements_database)
    rows = await _as(entitlements_database.admin_dsn, "SELECT count(*) FROM audit.things")
    _package(monkeypatch, CREATE, FILL)
    then = await _migrate(entitlements_database)

    assert 0 == rows
    assert ["0002_fill.sql"] == then


async def test_a_file_that_changed_after_it_ran_is_refused(
    entitlements_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(monkeypatch, CREATE)
    await _migrate(entitlements_database)
    _package(monkeypatch, Migration(version=1, name=CREATE.name, sql="CREATE TABLE other ()"))

    with pytest.raises(MigrationError, match="changed after"):
        await _migrate(entitlements_database)


async def test_a_database_ahead_of_the_code_is_fine(
    entitlements_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(monkeypatch, CREATE, FILL)
    await _migrate(entitlements_database)
    _package(monkeypatch, CREATE)

    assert [] == await _migrate(entitlements_database)


async def test_a_migration_that_waits_for_a_lock_gives_up(
    entitlements_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(monkeypatch, CREATE)
    await _migrate(entitlements_database)
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 50)
    _package(
        monkeypatch,
        CREATE,
        Migration(version=2, name="0002_add.sql", sql="ALTER TABLE things ADD w int"),
    )
    other = await asyncpg.connect(entitlements_database.admin_dsn)
    async with other.transaction():
        await other.execute("SELECT * FROM audit.things")
        with pytest.raises(MigrationError, match="lock timeout"):
            await _migrate(entitlements_database)
    await other.close()


async def test_the_owner_cannot_log_in_and_no_role_is_more_than_it_needs(
    database: Database,
) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    found = await connection.fetch(
        "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname LIKE 'behavry%'"
        " AND rolname <> 'behavry_admin'"
        " AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolinherit)"
    )
    await connection.close()
    expected = {
        name: name != schema.owner
        for schema in roles.SCHEMAS.values()
        for name in (schema.owner, *schema.logins)
    }

    assert expected == {row["rolname"]: row["rolcanlogin"] for row in found}


async def test_a_service_reads_its_own_schema_and_no_other(database: Database) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    for schema in roles.SCHEMAS.values():
        await connection.execute(f"SET ROLE {schema.owner}")
        await connection.execute(f"CREATE TABLE {schema.schema}.probe (v int)")
        await connection.execute("RESET ROLE")
    await connection.close()
    seen: dict[str, list[str]] = {}
    for owner in roles.SCHEMAS.values():
        for role in owner.logins:
            seen[role] = []
            for name in roles.SCHEMAS:
                try:
                    await _as(database.dsn(role), f"SELECT count(*) FROM {name}.probe")
                except asyncpg.InsufficientPrivilegeError:
                    continue
                seen[role].append(name)

    # Audit's tables are granted one by one, in its migrations.
    assert {
        "behavry_control": ["control"],
        "behavry_entitlements": ["entitlements"],
        "behavry_audit_writer": [],
        "behavry_audit_reader": [],
    } == seen


async def test_a_role_cannot_become_its_owner(database: Database) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await _as(database.dsn("behavry_audit_writer"), "SET ROLE behavry_audit_owner")


async def test_no_service_may_touch_the_list_of_migrations(database: Database) -> None:
    for role, schema in (("behavry_control", "control"), ("behavry_audit_writer", "audit")):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await _as(database.dsn(role), f"DELETE FROM {schema}.behavry_migrations")


async def test_a_lost_password_file_is_made_again_and_a_kept_one_is_left_alone(
    audit_database: Database, tmp_path: Path
) -> None:
    connection = await asyncpg.connect(audit_database.admin_dsn)

    async def ensure() -> str:
        dsns = await roles.ensure_roles(
            connection,
            service="audit",
            admin_dsn=audit_database.admin_dsn,
            passfiles=audit_database.passfiles,
        )
        return dsns["behavry_audit_reader"]

    file = roles.passfile_of(audit_database.passfiles, "behavry_audit_reader")
    before = file.read_text()
    await ensure()
    kept = file.read_text()
    file.unlink()
    answered = await _as(await ensure(), "SELECT 1")
    await connection.close()

    assert before == kept
    assert kept != file.read_text()
    assert 1 == answered


async def test_an_address_that_may_only_create_roles_is_enough(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `--db-url` promises: somebody else's server, and no superuser."""
    _package(monkeypatch, CREATE, FILL)
    admin = await asyncpg.connect(postgres.cluster.dsn(database="postgres"))
    verifier = roles.scram_verifier("landlords")
    await admin.execute(f"CREATE ROLE tenant_of_ours LOGIN CREATEROLE PASSWORD '{verifier}'")
    await admin.execute("CREATE DATABASE theirs OWNER tenant_of_ours")
    for role in [name for one in roles.SCHEMAS.values() for name in (one.owner, *one.logins)]:
        # The session's server knows our roles already; on theirs, this address makes them itself.
        if await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await admin.execute(f"GRANT {role} TO tenant_of_ours WITH ADMIN OPTION")
    passfile = roles.passfile_of(tmp_path, "tenant_of_ours")
    write_secret(passfile, "*:*:*:tenant_of_ours:landlords\n")
    dsn = roles.role_dsn(postgres.cluster.dsn(database="theirs"), "tenant_of_ours", passfile)
    theirs = Database(admin_dsn=dsn, passfiles=postgres.passfiles)
    try:
        ran = await _migrate(theirs)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await _as(theirs.dsn("behavry_audit_reader"), "SELECT count(*) FROM audit.things")
    finally:
        await admin.execute("DROP DATABASE theirs WITH (FORCE)")
        await admin.close()

    assert ["0001_things.sql", "0002_fill.sql"] == ran
