"""The worker that sends what is planned: one at a time in the whole installation, under an advisory
lock; woken at the commit that planned it, not by looking.

A notice is marked as tried before it is sent, so that no end of a process loses it: it may arrive
twice, then under the same id. It is tried again after 1 s, later up to 5 min, for 24 h or for as
long as it is true. One destination that is slow or away holds up no other, and nothing else waits
for any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import asyncpg
import msgspec

from services.common.clock import Clock
from services.common.outbox.table import TableOutbox
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool, tenant_tx
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.control import audit_records
from services.control.notifications import destinations as rules
from services.control.notifications import notices
from services.control.notifications.notices import Notice
from services.control.notifications.sending import Sender, SendFailed, Sent
from services.control.store import notification_deliveries as store
from services.control.store import notification_destinations as destinations
from services.control.store.moments import moment
from services.control.store.notification_deliveries import Due, Taken
from services.control.store.notification_plans import CHANNEL

FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 300.0
#: At the same time: to one destination, and in all.
OF_EACH: Final = 8
AT_ONCE: Final = 256
#: The clock may be moved, a wake-up lost: what is due is found by then at the latest.
LOOK_S: Final = 5.0
#: The code of what was never tried while it was true.
TOO_LATE: Final = "too_late"
_LOCK: Final = int.from_bytes(hashlib.sha256(b"notifications:control").digest()[:8], signed=True)


class TurnLost(Exception):
    """The connection that holds the lock is gone: another worker may have it by now."""


def delay_s(attempts: int, *, asked_s: float = 0) -> float:
    """After so many attempts; `asked_s` is what the other side wants. No two wait alike."""
    doubled: float = min(FIRST_DELAY_S * 2 ** min(attempts - 1, 20), LONGEST_DELAY_S)
    jittered = doubled * random.uniform(0.75, 1.0)  # noqa: S311  # spread, not secrecy
    return min(max(FIRST_DELAY_S, jittered, asked_s), LONGEST_DELAY_S)


@dataclass(slots=True, kw_only=True)
class Deliveries:
    """`run` under a supervisor; attempts are its own tasks, out of each other's reach."""

    pool: Pool
    db_url: str
    clock: Clock
    sender: Sender
    recorder: TableOutbox
    supervisor: Supervisor
    counters: Counters
    log: Log
    public_url: str
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    #: What is being sent, by id: (destination, subject).
    _in_flight: dict[str, tuple[str, str]] = field(default_factory=dict)

    async def run(self) -> None:
        """1. its turn  2. what is due  3. waits for a commit, a clock or an end of an attempt."""
        connection = await asyncpg.connect(
            self.db_url, server_settings={"application_name": "behavry-notifications"}
        )
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)  # 1
            connection.add_termination_listener(self._wake)
            await connection.add_listener(CHANNEL, self._wake)
            while True:
                self._news.clear()
                if connection.is_closed():
                    raise TurnLost
                await self._start_due(connection)  # 2
                await self._rest(connection)  # 3
        finally:
            connection.terminate()

    def _wake(self, *_: object) -> None:
        self._news.set()

    async def _start_due(self, connection: Connection) -> None:
        due = await store.due(connection, self._now(), of_each=OF_EACH, at_most=AT_ONCE)
        for one in due:
            busy = list(self._in_flight.values())
            about = (one.destination, one.subject)
            if (
                len(busy) < AT_ONCE
                and sum(destination == one.destination for destination, _ in busy) < OF_EACH
                and about not in busy  # what concerns one subject arrives in order
            ):
                self._in_flight[one.id] = about
                self.supervisor.once("notification", partial(self._attempt, one))

    async def _rest(self, connection: Connection) -> None:
        now = self._now()
        due_at = await store.next_at(connection, now)
        wait_s = LOOK_S if due_at is None else min((due_at - now).total_seconds(), LOOK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._news.wait()

    # --- one attempt ----------------------------------------------------------------------------

    async def _attempt(self, due: Due) -> None:
        try:
            await self._try(due)
        finally:
            del self._in_flight[due.id]
            self._news.set()

    async def _try(self, due: Due) -> None:
        """1. say that it is tried  2. send, outside any transaction  3. what became of it."""
        now = self._now()
        again_at = now + timedelta(seconds=delay_s(due.attempts + 1))
        async with tenant_tx(self.pool, due.tenant) as connection:  # 1
            taken = await store.take(connection, due.id, now=now, again_at=again_at)
        if taken is None:
            return
        if now >= taken.give_up_at:
            await self._end(taken, "given_up", again_at, TOO_LATE)
            return
        try:
            sent = await self._send(taken)  # 2
        except SendFailed as failure:
            after = timedelta(seconds=delay_s(taken.attempts, asked_s=failure.after_s))
            await self._not_arrived(taken, failure, self._now() + after)  # 3
        else:
            await self._arrived(taken, sent)

    async def _send(self, taken: Taken) -> Sent:
        try:
            settings = rules.read(taken.kind, taken.settings)
            facts = notices.decode(taken.content)
        except msgspec.ValidationError:
            raise SendFailed("unreadable", final=True) from None
        notice = Notice(
            id=taken.id,
            event=taken.event,
            tenant=taken.tenant,
            tenant_slug=taken.tenant_slug,
            facts=facts,
            link=notices.link_of(self.public_url, facts),
            at=taken.planned_at,
        )
        return await self.sender.send(settings, notice)

    async def _arrived(self, taken: Taken, sent: Sent) -> None:
        now = self._now()
        # The notice and the destination in transactions of their own: nobody holds both locks.
        async with tenant_tx(self.pool, taken.tenant) as connection:
            await store.delivered(connection, taken.id, note=sent.note, now=now)
        if not taken.known_to_work:
            await self._works(taken, now)
        self.counters.counter("control.notifications.delivered").value += 1
        self.log.info(
            "notification_delivered",
            notification=taken.id,
            kind=taken.kind,
            notice=taken.event,
            attempts=taken.attempts,
            ms=(now - taken.planned_at) // timedelta(milliseconds=1),
        )

    async def _works(self, taken: Taken, now: datetime) -> None:
        """Where it did not before, what waits for it is tried at once."""
        async with tenant_tx(self.pool, taken.tenant) as connection:
            recovered = await destinations.works(connection, taken.destination, now)
            if recovered:
                await self._record(connection, taken, "recovered", "")
        if recovered:
            self.recorder.wake()
            async with tenant_tx(self.pool, taken.tenant) as connection:
                await store.try_at_once(connection, taken.destination, now)

    async def _not_arrived(self, taken: Taken, failure: SendFailed, again_at: datetime) -> None:
        state = "queued"
        if failure.final:
            state = "failed"
        elif again_at >= taken.give_up_at:
            state = "given_up"
        await self._end(taken, state, again_at, failure.code)
        async with tenant_tx(self.pool, taken.tenant) as connection:
            first = await destinations.fails(
                connection, taken.destination, failure.code, self._now()
            )
            if first:
                await self._record(connection, taken, "failing", failure.code)
        if first:
            self.recorder.wake()
        self.counters.counter("control.notifications.failed").value += 1
        self.log.warning(
            "notification_failed",
            notification=taken.id,
            kind=taken.kind,
            notice=taken.event,
            attempts=taken.attempts,
            code=failure.code,
            status=failure.status,
            state=state,
        )

    async def _end(self, taken: Taken, state: str, again_at: datetime, code: str) -> None:
        """Of the attempt, or of the notice: one that is lost is recorded."""
        async with tenant_tx(self.pool, taken.tenant) as connection:
            waited = await store.failed(
                connection, taken.id, state=state, again_at=again_at, code=code
            )
            lost = waited and state != "queued"
            if lost:
                await self._record(connection, taken, "lost", code)
        if lost:
            self.recorder.wake()

    async def _record(self, connection: Connection, taken: Taken, verb: str, code: str) -> None:
        """A destination's incident begins and ends with one; each notice that is lost is one."""
        of_notice = verb == "lost"
        now_ns = self.clock.now_ns()
        record = audit_records.admin(
            f"admin.notification{'' if of_notice else '_destination'}.{verb}",
            taken.tenant,
            audit_records.Circumstances(
                actor={"kind": "service", "name": "control"},
                route="notifications",
                request_id="",
                client_ip="",
                now_ns=now_ns,
            ),
            resource="notification" if of_notice else "notification_destination",
            resource_id=taken.id if of_notice else taken.destination,
            changes=[
                audit_records.change(name, None, value)
                for name, value in (
                    ("event", taken.event),
                    ("subject", taken.subject),
                    ("error", code),
                )
                if value
            ],
        )
        await self.recorder.put(connection, record)

    def _now(self) -> datetime:
        return moment(self.clock.now_ns())
