"""Who may log in to the database: one owner per schema, which cannot log in, and the roles that
services use.

Decides names, passwords and where each password lies (a 0600 `pgpass` file per role). What a role
may do to which table is said beside the table, in its service's migrations; only control and
entitlements get a default (read and write rows). Passwords reach the server as SCRAM verifiers: it
never sees one.
"""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg

from services.common.postgres.connection import SingleConnection
from services.common.postgres.embedded import write_secret

_SCRAM_ITERATIONS = 4096
_LOCK = 0x626872766C73  # one maker of roles at a time
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRoles:
    """One service's schema: who owns it, who logs in, and whether the logins get its rows by
    default.
    """

    schema: str
    owner: str
    logins: tuple[str, ...]
    rows_by_default: bool


SCHEMAS: dict[str, SchemaRoles] = {
    "control": SchemaRoles(
        schema="control",
        owner="behavry_control_owner",
        logins=("behavry_control",),
        rows_by_default=True,
    ),
    "entitlements": SchemaRoles(
        schema="entitlements",
        owner="behavry_entitlements_owner",
        logins=("behavry_entitlements",),
        rows_by_default=True,
    ),
    # The chain's tables name every grant: nobody changes or deletes what is recorded.
    "audit": SchemaRoles(
        schema="audit",
        owner="behavry_audit_owner",
        logins=("behavry_audit_writer", "behavry_audit_reader"),
        rows_by_default=False,
    ),
}


def passfile_of(directory: Path, role: str) -> Path:
    """Where the password of this role lies."""
    return directory / f"{role}.pgpass"


def role_dsn(admin_dsn: str, role: str, passfile: Path) -> str:
    """The address of the same database for another role: no password, the file that has it."""
    parts = urlsplit(admin_dsn)
    hostinfo = parts.netloc.rpartition("@")[2]
    query = dict(parse_qsl(parts.query)) | {"passfile": str(passfile)}
    netloc = f"{quote(role)}@{hostinfo}"
    return urlunsplit(("postgresql", netloc, parts.path, urlencode(query, safe="/"), ""))


async def ensure_roles(
    connection: SingleConnection,
    *,
    service: str,
    admin_dsn: str,
    passfiles: Path,
) -> dict[str, str]:
    """Make a service's schema and roles where they are missing; answer each login role's DSN.

    `connection` must be allowed to create roles. A role that cannot log in with its file (a
    restored database, a lost file) gets that file's password again; nothing else is changed on a
    second run.
    """
    roles = SCHEMAS[service]
    dsns = {}
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK, timeout=60)
    try:
        await _ensure_role(connection, roles.owner, login=False)
        await connection.execute(f"GRANT {roles.owner} TO CURRENT_USER")
        for role in roles.logins:
            passfile = passfile_of(passfiles, role)
            dsns[role] = role_dsn(admin_dsn, role, passfile)
            await _ensure_login(connection, role, passfile, dsn=dsns[role])
        await _ensure_schema(connection, roles)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    return dsns


async def _ensure_role(connection: SingleConnection, role: str, *, login: bool) -> None:
    if not _NAME.fullmatch(role):
        raise ValueError(f"not a role name: {role!r}")
    exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
    if not exists:
        kind = "LOGIN" if login else "NOLOGIN"
        await connection.execute(
            f"CREATE ROLE {role} {kind} NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOBYPASSRLS"
        )


async def _ensure_login(
    connection: SingleConnection, role: str, passfile: Path, *, dsn: str
) -> None:
    await _ensure_role(connection, role, login=True)
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {role}")
    if not (made := make_password(passfile, role)) and await _can_log_in(dsn):
        return
    password = made or read_password(passfile)
    # ALTER ROLE takes no parameters; a verifier's alphabet holds no quote.
    await connection.execute(f"ALTER ROLE {role} PASSWORD '{scram_verifier(password)}'")


def make_password(passfile: Path, role: str) -> str | None:
    """Write a new password into a file that did not exist; None when it did."""
    password = secrets.token_urlsafe(32)
    try:
        write_secret(passfile, f"*:*:*:{role}:{password}\n")
    except FileExistsError:
        return None
    return password


def read_password(passfile: Path) -> str:
    """The password of a file with one line `*:*:*:role:password`."""
    return passfile.read_text().rstrip("\n").rsplit(":", 1)[1]


async def _can_log_in(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=10)
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        return False
    await connection.close()
    return True


def scram_verifier(password: str) -> str:
    """RFC 5803's form, as PostgreSQL stores it. ASCII only, so SASLprep is the identity."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _SCRAM_ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{text[0]}${text[1]}:{text[2]}"


async def _ensure_schema(connection: SingleConnection, roles: SchemaRoles) -> None:
    exists = await connection.fetchval(
        "SELECT 1 FROM pg_namespace WHERE nspname = $1", roles.schema
    )
    if exists:
        return
    async with connection.transaction():
        await connection.execute(f"CREATE SCHEMA {roles.schema} AUTHORIZATION {roles.owner}")
        await connection.execute(f"SET LOCAL ROLE {roles.owner}")
        for role in roles.logins:
            await connection.execute(f"GRANT USAGE ON SCHEMA {roles.schema} TO {role}")
            if roles.rows_by_default:
                for kind in ("SELECT, INSERT, UPDATE, DELETE ON TABLES", "USAGE ON SEQUENCES"):
                    await connection.execute(
                        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {roles.schema} GRANT {kind} TO {role}"
                    )
