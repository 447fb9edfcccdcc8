"""The outbox of a service whose changes lie in PostgreSQL: a record is a row written in the
transaction of the change it reports, so neither exists without the other.

One shipper at a time, under an advisory lock and as a boot of its own, numbers rows that have
committed and stores number and bytes before it sends them; a repetition sends the same. Sending is
the Shipper's. The table is `table.sql`, part of the owner's migrations.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from services.common.clock import Clock, micros
from services.common.ids import NIL_TENANT, BootId, EventId, SourceId, TenantId, uuid7
from services.common.outbox.digests import Digester
from services.common.outbox.identity import new_source
from services.common.outbox.reader import Shipment
from services.common.outbox.record import Record
from services.common.outbox.shipper import Shipper, Transport
from services.common.outbox.stamp import Origin, Stamp
from services.common.postgres.connection import Connection, SingleConnection
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

POLL_S: Final = 1.0
HEARTBEAT_NS: Final = 60_000_000_000
MARK_EVERY: Final = 1_000
_NUMBERED_AT_ONCE: Final = 1_000
_SYSTEM_CHAIN: Final = "system"
_NO_BOOT: Final = BootId(NIL_TENANT)

_INSERT = """
INSERT INTO {schema}.outbox (tenant_id, chain, event_id, draft) VALUES ($1, $2, $3, $4)"""
_BEGIN_BOOT = """
INSERT INTO {schema}.outbox_source AS s (source, boot) VALUES ($1, $2)
ON CONFLICT (only_row) DO UPDATE SET boot = excluded.boot
RETURNING source, pos"""
_PREVIOUS_BOOT = "SELECT boot FROM {schema}.outbox_source"
_LAST_NUMBERS = """
SELECT tenant_id, max(n) AS n FROM {schema}.outbox WHERE boot = $1
GROUP BY tenant_id ORDER BY tenant_id LIMIT 200"""
_WAITING = """
SELECT id, tenant_id, chain, event_id, draft FROM {schema}.outbox
WHERE pos IS NULL ORDER BY event_id = $2 DESC, id LIMIT $1"""
_NUMBER = """
UPDATE {schema}.outbox AS o SET boot = $1, n = u.n, pos = u.pos, stored = u.stored
FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[]) AS u (id, n, pos, stored)
WHERE o.id = u.id AND o.pos IS NULL"""
_ADVANCE = "UPDATE {schema}.outbox_source SET pos = $2 WHERE boot = $1 AND pos = $3 RETURNING pos"
_NUMBERED = """
SELECT pos, stored FROM {schema}.outbox WHERE pos > $1 ORDER BY pos LIMIT $2"""
_COMMITTED = """
UPDATE {schema}.outbox SET committed_at = now() WHERE pos <= $1 AND committed_at IS NULL"""
_RECLAIM = """
DELETE FROM {schema}.outbox WHERE committed_at < now() - interval '24 hours'"""


class ShipperFenced(Exception):
    """Another shipper began a boot, or the lock's connection is gone: this one's turn is over."""


def table_sql() -> str:
    """What the owner's migration runs, inside its schema."""
    return (importlib.resources.files(__package__) / "table.sql").read_text("utf-8")


class TableOutbox:
    """`put` inside a transaction, `wake` after it; `run` under a supervisor."""

    def __init__(
        self,
        *,
        schema: str,
        origin: Origin,
        clock: Clock,
        counters: Counters,
        log: Log,
        digester: Digester | None = None,
    ) -> None:
        self._schema = schema
        self._origin = origin
        self._clock = clock
        self._counters = counters
        self._log = log
        self._digester = digester
        self._records = counters.counter("outbox.records")
        self._committed = asyncio.Event()
        self._insert = _INSERT.format(schema=schema)
        self._drafting = Stamp(
            kind=origin.kind,
            source=SourceId(NIL_TENANT),
            boot=_NO_BOOT,
            plane=origin.plane,
            version=origin.version,
        )
        self.pending = 0
        counters.watch("outbox.pending", lambda: self.pending)

    async def put(self, connection: Connection, record: Record) -> EventId:
        """Adds the record to the transaction that is open on `connection`, under its tenant's
        setting. Raises ProfileError and what asyncpg raises.
        """
        now_ns = self._clock.now_ns()
        event_id = record.id or EventId(uuid7(now_ns))
        draft = self._drafting.draft(record, event_id, micros(now_ns), self._digester)
        await connection.execute(
            self._insert, UUID(record.tenant), record.chain, UUID(event_id), draft
        )
        self._records.value += 1
        return event_id

    def wake(self) -> None:
        """A transaction with records has committed: ship at once, not at the next poll."""
        self._committed.set()

    async def news(self) -> None:
        """Ends at a wake, or after a while: other processes commit too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._committed.wait()
        self._committed.clear()

    async def run(self, dsn: str, transport: Transport) -> None:
        """Waits for its turn and ships until cancelled or until something fails."""
        async with self._boot(dsn) as boot:
            await Shipper(boot, transport, log=self._log, counters=self._counters).run()

    @asynccontextmanager
    async def _boot(self, dsn: str) -> AsyncIterator[TableBoot]:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "outbox"})
        try:
            name = hashlib.sha256(f"outbox:{self._schema}".encode()).digest()
            key = int.from_bytes(name[:8], signed=True)
            # Held by this connection, which is nobody else's: losing it loses the lock.
            await connection.execute("SELECT pg_advisory_lock($1)", key)
            await connection.execute("SELECT set_config('behavry.outbox_shipper', 'on', false)")
            boot = await TableBoot.begin(self, connection)
            try:
                yield boot
            finally:
                # Without it the next boot's source.opened tells the same.
                with contextlib.suppress(
                    ShipperFenced, asyncpg.PostgresError, asyncpg.InterfaceError, OSError
                ):
                    async with asyncio.timeout(2):
                        await boot.end()
        finally:
            connection.terminate()

    @property
    def clock(self) -> Clock:
        return self._clock

    def statement(self, template: str) -> str:
        return template.format(schema=self._schema)

    def stamp(self, source: SourceId, boot: BootId) -> Stamp:
        return Stamp(
            kind=self._origin.kind,
            source=source,
            boot=boot,
            plane=self._origin.plane,
            version=self._origin.version,
        )


@dataclass(frozen=True, slots=True)
class _Numbered:
    ids: list[int]
    ns: list[int]
    positions: list[int]
    stored: list[bytes]
    last_n: dict[TenantId, int]


class TableBoot:
    """One shipper's turn. Implements Shippable on the connection that holds the lock."""

    def __init__(
        self, outbox: TableOutbox, connection: SingleConnection, stamp: Stamp, pos: int
    ) -> None:
        self.source = stamp.source
        self.boot = stamp.boot
        self.first_pos = pos + 1
        self._outbox = outbox
        self._connection = connection
        #: asyncpg allows one operation at a time, the shipper's tasks are three.
        self._turn = asyncio.Lock()
        self._stamp = stamp
        self._pos = pos
        self._read_pos = 0
        self._committed_pos = 0
        self._n: dict[TenantId, int] = {}
        #: Goes before whatever waited while nobody shipped.
        self._opened_id = EventId(NIL_TENANT)
        self._beat_n: dict[TenantId, int] = {}
        self._beat_ns = self._reclaimed_ns = outbox.clock.monotonic_ns()

    @classmethod
    async def begin(cls, outbox: TableOutbox, connection: SingleConnection) -> TableBoot:
        boot = BootId(uuid7(outbox.clock.now_ns()))
        async with connection.transaction():
            previous = await connection.fetchval(outbox.statement(_PREVIOUS_BOOT))
            numbers = await connection.fetch(outbox.statement(_LAST_NUMBERS), previous)
            row = await connection.fetchrow(
                outbox.statement(_BEGIN_BOOT), UUID(new_source()), UUID(boot)
            )
            if row is None:
                raise ShipperFenced
            stamp = outbox.stamp(SourceId(str(row["source"])), boot)
            self = cls(outbox, connection, stamp, row["pos"])
            last = [{"tenant": str(number["tenant_id"]), "n": number["n"]} for number in numbers]
            self._opened_id = await self._note(
                "source.opened",
                previous_boot=None if previous is None else str(previous),
                last=last,
            )
        return self

    async def end(self) -> None:
        """The boot's last record; it is sent by the next one."""
        async with self._turn:
            while await self._number():
                pass
            await self._note("source.closed", last=_listed(self._n))
            await self._number()

    async def news(self) -> None:
        await self._outbox.news()

    async def seek(self, pos: int) -> None:
        self._read_pos = self._committed_pos = pos
        self._outbox.wake()

    async def read(self, *, max_records: int, max_bytes: int) -> Shipment:
        """Numbers what has committed since, then answers what is numbered. Raises ShipperFenced."""
        async with self._turn:
            await self._number()
            rows = await self._connection.fetch(
                self._outbox.statement(_NUMBERED), self._read_pos, max_records
            )
        shipment = Shipment(self._read_pos)
        for row in rows:
            stored = row["stored"]
            if shipment.stored and shipment.size_bytes + len(stored) > max_bytes:
                break
            shipment.stored.append(stored)
            shipment.size_bytes += len(stored)
            shipment.last_pos = row["pos"]
        self._read_pos = shipment.last_pos
        shipment.full = len(rows) == max_records or len(shipment.stored) < len(rows)
        self._outbox.pending = max(0, self._pos - self._committed_pos)
        return shipment

    async def committed(self, pos: int) -> None:
        self._committed_pos = max(self._committed_pos, pos)
        self._outbox.pending = max(0, self._pos - self._committed_pos)
        async with self._turn:
            await self._connection.execute(self._outbox.statement(_COMMITTED), pos)

    async def reclaim(self) -> None:
        """Committed rows stay a day, to refill a restored audit database."""
        now_ns = self._outbox.clock.monotonic_ns()
        if now_ns - self._beat_ns >= HEARTBEAT_NS:
            self._beat_ns = now_ns
            moved = {t: n for t, n in self._n.items() if self._beat_n.get(t) != n}
            self._beat_n = dict(self._n)
            async with self._turn:
                await self._note("heartbeat", last=_listed(moved))
                await self._connection.execute(self._outbox.statement(_RECLAIM))

    async def _number(self) -> int:
        """Gives numbers to committed rows, in a transaction."""
        if self._connection.is_closed():
            raise ShipperFenced
        async with self._connection.transaction():
            rows = await self._connection.fetch(
                self._outbox.statement(_WAITING), _NUMBERED_AT_ONCE, UUID(self._opened_id)
            )
            if not rows:
                return 0
            made = self._stamped(rows)
            advanced = await self._connection.fetchval(
                self._outbox.statement(_ADVANCE), UUID(self.boot), made.positions[-1], self._pos
            )
            if advanced is None:
                raise ShipperFenced
            await self._connection.execute(
                self._outbox.statement(_NUMBER),
                UUID(self.boot), made.ids, made.ns, made.positions, made.stored,
            )  # fmt: skip
            for tenant, n in made.last_n.items():
                if n // MARK_EVERY > self._n.get(tenant, 0) // MARK_EVERY:
                    await self._note("source.mark", tenant, last_n=n)
        self._pos, self._n = made.positions[-1], made.last_n
        return len(rows)

    def _stamped(self, rows: list[Any]) -> _Numbered:
        made = _Numbered([], [], [], [], dict(self._n))
        for pos, row in enumerate(rows, start=self._pos + 1):
            tenant = TenantId(str(row["tenant_id"]))
            n = made.last_n.get(tenant, 0) + 1
            made.last_n[tenant] = n
            made.ids.append(row["id"])
            made.ns.append(n)
            made.positions.append(pos)
            made.stored.append(
                self._stamp.stored(
                    tenant=tenant,
                    chain=row["chain"],
                    event_id=EventId(str(row["event_id"])),
                    n=n,
                    pos=pos,
                    body=self._stamp.finish(row["draft"], n),
                )
            )
        return made

    async def _note(
        self, record_type: str, tenant: TenantId = NIL_TENANT, **fields: Any
    ) -> EventId:
        record = Record(
            type=record_type,
            tenant=tenant,
            chain=_SYSTEM_CHAIN,
            at_us=micros(self._outbox.clock.now_ns()),
            fields=fields,
        )
        return await self._outbox.put(self._connection, record)


def _listed(last_n: dict[TenantId, int]) -> list[dict[str, Any]]:
    return [{"tenant": tenant, "n": n} for tenant, n in list(last_n.items())[:200]]
