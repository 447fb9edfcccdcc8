"""The database of people as whoever has the host reaches it: past control, which cannot, and with a
record that commits with the change.

Decides how a person is found and what is recorded of whoever acts here; what is changed is
super_admins.py's and host_resets.py's.
"""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import asyncpg

from services.cli.output import CommandFailed, Exit
from services.common.clock import SystemClock, micros
from services.common.ids import PlaneId, TenantId, uuid7
from services.common.outbox.digests import Digester
from services.common.outbox.record import Record
from services.common.outbox.stamp import Origin
from services.common.outbox.table import TableOutbox
from services.common.postgres.connection import Connection
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log

TIMEOUT_S: Final = 10
_OWNER: Final = "SET LOCAL ROLE behavry_control_owner"
_FIND: Final = """
SELECT tenant_id, id, is_super_admin FROM control.users
WHERE username = $1 AND status = 'active'"""
_TENANT: Final = "SELECT set_config('behavry.tenant_id', $1, true)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where the books are, and how what goes into them is stamped."""

    dsn: str
    plane_id: PlaneId
    digest_keys: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An active person, in an open transaction of their tenant."""

    connection: Connection
    tenant: TenantId
    id: str
    is_super_admin: bool
    outbox: TableOutbox

    async def record(self, type: str, command: str, change: Mapping[str, Any]) -> None:
        now_ns = SystemClock().now_ns()
        record = Record(
            type=type,
            tenant=self.tenant,
            chain="admin",
            at_us=micros(now_ns),
            fields={
                "actor": {"kind": "host", "name": getpass.getuser()},
                "route": f"behavry admin {command}",
                "request_id": uuid7(now_ns),
                "client_ip": "",
                "resource": "user",
                "resource_id": self.id,
                "changes": [dict(change)],
                "reason": None,
                "step_up": None,
            },
        )
        await self.outbox.put(self.connection, record)


@asynccontextmanager
async def found(host: Host, username: str) -> AsyncIterator[Found]:
    """Raises CommandFailed where there is no such person, or no database."""
    try:
        connection = await asyncpg.connect(host.dsn, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        raise CommandFailed("the database does not answer", status=Exit.UNREACHABLE) from None
    try:
        async with connection.transaction():
            await connection.execute(_OWNER)
            row = await connection.fetchrow(_FIND, username.strip().lower())
            if row is None:
                raise CommandFailed("there is no such active person")
            await connection.execute(_TENANT, str(row["tenant_id"]))
            yield Found(
                connection=connection,
                tenant=TenantId(str(row["tenant_id"])),
                id=str(row["id"]),
                is_super_admin=row["is_super_admin"],
                outbox=_outbox(host),
            )
    finally:
        await connection.close(timeout=TIMEOUT_S)


def _outbox(host: Host) -> TableOutbox:
    """Control ships what lies in it."""
    return TableOutbox(
        schema="control",
        origin=Origin(kind="control", plane=host.plane_id, version=version("behavry")),
        clock=SystemClock(),
        counters=Counters(),
        log=get_log("cli"),
        digester=Digester.load(host.digest_keys),
    )
