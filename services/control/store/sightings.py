"""Takes in what planes saw of servers' tools.

1. the server  2. what is known of each tool  3. the new state of each  4. the rows and, where an
approved tool changed, its record. A sighting of what is known already writes nothing new for
planes, so only a changed tool is told on.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.clock import Clock
from services.common.ids import ServerSlug, TenantId
from services.common.outbox.table import TableOutbox
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool, tenant_tx
from services.common.telemetry.logging import Log
from services.control import audit_records
from services.control import servers as rules
from services.control.signals import Signals
from services.control.store import servers, tools
from services.control.store.moments import moment
from services.control.store.tools import Sighting

#: (name, schema hash, canonical definition)
Seen = tuple[str, str, bytes]


class ToolInbox:
    def __init__(
        self, pool: Pool, clock: Clock, signals: Signals, recorder: TableOutbox, log: Log
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._signals = signals
        self._recorder = recorder
        self._log = log

    async def tools_seen(self, tenant: TenantId, server: ServerSlug, seen: Sequence[Seen]) -> None:
        """Again with the same tools is harmless. An unknown server's are dropped."""
        usable = {name: (hash_, text) for name, hash_, text in seen if _usable(name, hash_, text)}
        if len(usable) < len(seen):
            self._log.warning("tools_dropped", server=server, dropped=len(seen) - len(usable))
        if not usable:
            return
        async with tenant_tx(self._pool, tenant) as connection:
            row = await servers.get(connection, server)  # 1
            if row is None:
                return
            changed = await self._take(connection, tenant, str(row["id"]), usable)
        if changed:
            self._recorder.wake()
            self._signals.touch()

    async def _take(
        self,
        connection: Connection,
        tenant: TenantId,
        server_id: str,
        usable: dict[str, tuple[str, bytes]],
    ) -> bool:
        names = sorted(usable)
        known = await tools.by_name(connection, server_id, names)  # 2
        room = rules.MAX_TOOLS - await tools.count(connection, server_id)
        changed = False
        for name in names:
            if name not in known and (room := room - 1) < 0:
                self._log.warning("tools_dropped", server=server_id, limit=rules.MAX_TOOLS)
                break
            schema_hash, definition = usable[name]
            state = "unclassified"
            if name in known:
                state = rules.state_after_sighting(  # 3
                    state=known[name]["state"],
                    pinned_hash=known[name]["pinned_hash"],
                    seen_hash=schema_hash,
                )
                if state != known[name]["state"]:
                    changed = True
                    await self._record_change(connection, tenant, server_id, name)
            sighting = Sighting(
                tool=name, schema_hash=schema_hash, definition=definition, state=state
            )
            now = moment(self._clock.now_ns())
            await tools.see(connection, tenant, server_id, sighting, now)  # 4
        return changed

    async def _record_change(
        self, connection: Connection, tenant: TenantId, server_id: str, tool: str
    ) -> None:
        came = audit_records.Circumstances(
            actor={"kind": "plane"},
            route="link ToolsSeen",
            request_id="",
            client_ip="",
            now_ns=self._clock.now_ns(),
        )
        record = audit_records.admin(
            "admin.tool.changed",
            tenant,
            came,
            resource="tool",
            resource_id=f"{server_id}/{tool}",
            changes=[audit_records.change("state", "approved", "changed")],
        )
        await self._recorder.put(connection, record)


def _usable(name: str, schema_hash: str, definition: bytes) -> bool:
    return (
        rules.is_tool_name(name)
        and rules.is_schema_hash(schema_hash)
        and len(definition) <= rules.MAX_DEFINITION_BYTES
    )
