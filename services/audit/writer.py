"""The single writer: per tenant one task, which takes what waits into one transaction.

Decides when a batch is written and what a failure means; what is written is plan.py's, how is
store.py's. Nothing is acknowledged before its commit is known. In doubt (a lost commit reply, a key
that exists already) the batch goes again from the start, and the marks tell what was stored.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import asyncpg

from services.audit import store
from services.audit.chain import Head
from services.audit.notices import PEER, OwnSource
from services.audit.plan import Item, MarkKey, Plan, Sorted, chain_of_notices, doubtful, place, sort
from services.audit.streams import Batch, Stream
from services.common.clock import Clock, micros
from services.common.errors import BehavryError
from services.common.postgres.pool import Pool
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, describe

MAX_ROWS: Final = 1_000
SHORTEST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
SAVE_POSITIONS_S: Final = 0.5
#: A key that exists already is doubt; this often it is the data.
MAX_DOUBTS: Final = 3

_BAD_DATA: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresError,
    store.CommitRefused,
)


class Restored(BehavryError):
    """The database knows less than it had acknowledged: it was put back to an earlier state."""

    def __init__(self) -> None:
        super().__init__("CHAIN_FENCED", "the audit store went back in time; resend from Open")


class Delivery(NamedTuple):
    """The records of one tenant in one batch of a stream."""

    batch: Batch
    items: Sequence[Item]


class Writer:
    """Open streams, the tenants' queues, and the positions that are saved now and then."""

    def __init__(
        self,
        *,
        pool: Pool,
        own: OwnSource,
        clock: Clock,
        supervisor: Supervisor,
        counters: Counters,
        log: Log,
    ) -> None:
        self.pool = pool
        self.own = own
        self.clock = clock
        self.log = log
        self.transactions = counters.counter("audit.transactions")
        self.appended = counters.counter("audit.appended")
        self.repeats = counters.counter("audit.duplicates")
        self.rejected = counters.counter("audit.rejected")
        self.fenced = counters.counter("audit.fenced")
        self._supervisor = supervisor
        self._streams: set[Stream] = set()
        self._tenants: dict[str, _TenantWriter] = {}
        self._own_known = False

    async def open(self, *, source: str, boot: str, peer: str) -> Stream:
        """Waits for the database. Raises SOURCE_FOREIGN if another peer opened this source."""
        backoff = Backoff()
        while True:
            try:
                async with self.pool.acquire() as connection:
                    now_us = micros(self.clock.now_ns())
                    if not self._own_known:
                        await store.add_source(
                            connection, self.own.source, self.own.boot, PEER, now_us=now_us
                        )
                        self._own_known = True
                    found = await store.source(connection, source)
                    if found is None:
                        await store.add_source(connection, source, boot, peer, now_us=now_us)
                        found = await store.source(connection, source)
            except _UNAVAILABLE as failure:
                self.log.warning("database_unavailable", error=describe(failure))
                await backoff.wait()
                continue
            if found is not None:
                break
        owner, position = found
        if owner != peer:
            raise BehavryError("SOURCE_FOREIGN", "this source belongs to another service")
        stream = Stream(source=source, boot=boot, peer=peer, position=position)
        self._streams.add(stream)
        return stream

    def submit(self, tenant: str, delivery: Delivery) -> None:
        writer = self._tenants.get(tenant)
        if writer is None:
            writer = self._tenants[tenant] = _TenantWriter(self, tenant)
            self._supervisor.spawn(f"writer:{tenant}", writer.run)
        writer.put(delivery)

    async def detach(self, stream: Stream) -> None:
        """The stream's call is over; its last position is saved if the database is there."""
        self._streams.discard(stream)
        stream.abandon()
        if stream.failure is None:
            with suppress(*_UNAVAILABLE, Restored):
                await self._save_position(stream)

    def close_streams(self) -> None:
        """Each ends after what it has in flight is stored."""
        for stream in self._streams:
            stream.close()

    def end_streams(self, failure: BehavryError) -> None:
        """Nothing in flight is acknowledged; shippers connect again and resend."""
        for stream in self._streams:
            stream.fail(failure)

    def restored(self) -> Restored:
        """What was acknowledged is not there: forget it, and have everything resent."""
        self.log.critical("database_restored")
        failure = Restored()
        for writer in self._tenants.values():
            writer.forget()
        self.end_streams(failure)
        return failure

    async def save_positions(self) -> None:
        """Runs for ever. Positions may lag behind what is stored: a resent record is a repeat."""
        while True:
            await asyncio.sleep(SAVE_POSITIONS_S)
            with suppress(*_UNAVAILABLE, Restored):
                await self.save_positions_now()

    async def save_positions_now(self) -> None:
        for stream in list(self._streams):
            await self._save_position(stream)

    async def _save_position(self, stream: Stream) -> None:
        """Moves from the position known to be there only: one further back is a restored one."""
        target = stream.committed_pos
        while stream.saved_pos < target and not stream.ended:
            async with self.pool.acquire() as connection:
                if await store.move_position(
                    connection, stream.source, stream.boot, old=stream.saved_pos, new=target
                ):
                    stream.saved_pos = target
                    return
                found = await store.source(connection, stream.source)
            if found is None or found[1] < stream.saved_pos:
                raise self.restored()
            stream.saved_pos = found[1]  # another shipper of this source moved it


class _TenantWriter:
    """One tenant's queue and what this process has acknowledged of its chains."""

    def __init__(self, writer: Writer, tenant: str) -> None:
        self._writer = writer
        self._tenant = tenant
        self._queue: deque[Delivery] = deque()
        self._waiting = asyncio.Event()
        self._heads: dict[str, Head] = {}
        self._marks: dict[MarkKey, int] = {}

    def put(self, delivery: Delivery) -> None:
        self._queue.append(delivery)
        self._waiting.set()

    def forget(self) -> None:
        self._heads.clear()
        self._marks.clear()

    async def run(self) -> None:
        while True:
            self._waiting.clear()
            while deliveries := self._take():
                await self._deliver(deliveries)
            await self._waiting.wait()

    def _take(self) -> list[Delivery]:
        """What waits, up to MAX_ROWS; a stream that has ended will resend."""
        taken: list[Delivery] = []
        rows = 0
        while self._queue and (not taken or rows + len(self._queue[0].items) <= MAX_ROWS):
            delivery = self._queue.popleft()
            if not delivery.batch.stream.ended:
                taken.append(delivery)
                rows += len(delivery.items)
        return taken

    async def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        failure = BehavryError("INTERNAL", "the records could not be stored")
        stored = False
        try:
            await self._store([item for delivery in deliveries for item in delivery.items])
            stored = True
        except BehavryError as refused:
            failure = refused
        finally:
            for delivery in deliveries:
                if stored:
                    delivery.batch.stored()
                else:
                    delivery.batch.stream.fail(failure)

    async def _store(self, items: Sequence[Item]) -> None:
        """Returns when every item is stored, known, or rejected. Waits for the database."""
        backoff = Backoff()
        doubts = 0
        sure = True
        while True:
            try:
                if not (sure and await self._append_at_once(items)):
                    await self._transact(items)
                return
            except store.Fenced as fenced:
                self._writer.fenced.value += 1
                self._writer.log.error("chain_fenced", tenant=self._tenant)
                raise BehavryError("CHAIN_FENCED", "another writer moved the chain") from fenced
            except _BAD_DATA as bad:
                sure = False
                if isinstance(bad, asyncpg.UniqueViolationError) and doubts < MAX_DOUBTS:
                    doubts += 1
                    continue
                if len(items) > 1:
                    middle = len(items) // 2
                    await self._store(items[:middle])
                    await self._store(items[middle:])
                    return
                if items[0].rejection:
                    raise
                items = [items[0]._replace(rejection="data_error")]
            except _UNAVAILABLE as failure:
                sure = False  # it may have been committed
                self._writer.log.warning(
                    "database_unavailable", tenant=self._tenant, error=describe(failure)
                )
                await backoff.wait()

    async def _append_at_once(self, items: Sequence[Item]) -> bool:
        """The usual batch in one round trip: all of it is new, in chains that this process knows.
        False, and nothing done, if it is not that usual, or if the store has moved on meanwhile:
        heads and marks move only from where they are remembered to be.
        """
        marks: dict[MarkKey, int] = {}
        for item in items:
            key = (item.source, item.boot)
            mark = marks.get(key) or self._marks.get(key, 0)
            if not mark or item.n != mark + 1 or item.rejection or item.chain not in self._heads:
                return False
            marks[key] = item.n
        own = self._writer.own
        plan = place(
            Sorted(new=list(items), marks=marks),
            tenant=self._tenant,
            own=own.key,
            heads={item.chain: self._heads[item.chain] for item in items},
            marks=self._marks,
            refused=(),
            make_notice=partial(own.make, self._tenant),
            now_us=micros(self._writer.clock.now_ns()),
        )
        try:
            async with self._writer.pool.acquire() as connection:
                await store.append(connection, self._tenant, plan)
        except store.Fenced:
            return False
        self._stored(plan)
        return True

    async def _transact(self, items: Sequence[Item]) -> None:
        """1. tenant and lock  2. heads and marks, and bodies where in doubt  3. what is refused
        4. everything at once, fenced  5. remember what is now acknowledged.
        """
        own = self._writer.own
        chains = {item.chain for item in items if not item.rejection}
        chains.add(chain_of_notices(self._tenant))
        keys = {(item.source, item.boot) for item in items} | {own.key}
        now_us = micros(self._writer.clock.now_ns())
        async with store.transaction(self._writer.pool, self._tenant) as connection:  # 1
            ends = await store.load(connection, self._tenant, chains, keys)  # 2
            self._compare(ends, chains, keys)
            ids = doubtful(items, ends.marks)
            found = await store.find(connection, self._tenant, ids) if ids else {}
            sorted_ = sort(items, ends.marks, found)
            refused = [  # 3
                item
                for item in sorted_.rejected
                if await store.reject(connection, self._tenant, item, now_us=now_us)
            ]
            plan = place(
                sorted_,
                tenant=self._tenant,
                own=own.key,
                heads=ends.heads,
                marks=ends.marks,
                refused=refused,
                make_notice=partial(own.make, self._tenant),
                now_us=now_us,
            )
            if plan.rows or plan.marks:
                await store.write(connection, self._tenant, plan)  # 4
        self._heads.update(ends.heads)  # 5
        self._marks.update(ends.marks)
        self._stored(plan)
        self._writer.repeats.value += sorted_.repeats
        self._writer.rejected.value += len(refused)

    def _stored(self, plan: Plan) -> None:
        """Its commit is known."""
        self._heads.update({head.chain: head for _, head in plan.heads})
        self._marks.update({key: n for key, _, n in plan.marks})
        self._writer.transactions.value += 1
        self._writer.appended.value += len(plan.rows)

    def _compare(self, ends: store.Ends, chains: set[str], keys: set[MarkKey]) -> None:
        """Raises Restored if the database is behind what this process has acknowledged."""
        for chain in chains:
            known, head = self._heads.get(chain), ends.heads.get(chain)
            if known is not None and (
                head is None
                or head.seq < known.seq
                or (head.seq == known.seq and head.event_hash != known.event_hash)
            ):
                raise self._writer.restored()
        for key in keys:
            if ends.marks.get(key, 0) < self._marks.get(key, 0):
                raise self._writer.restored()


class Backoff:
    """Full jitter between tries, from a tenth of a second to five."""

    def __init__(self) -> None:
        self._longest_s = SHORTEST_WAIT_S

    async def wait(self) -> None:
        await asyncio.sleep(random.uniform(SHORTEST_WAIT_S / 2, self._longest_s))  # noqa: S311  # jitter, no secret
        self._longest_s = min(self._longest_s * 2, LONGEST_WAIT_S)
