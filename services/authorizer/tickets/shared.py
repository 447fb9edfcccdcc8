"""The ticket store of a plane with several authorizers: one Valkey or Redis that all of them share.

Decides by the same rules as the local store (ticket.py, opening.py): it reads, decides, and writes
only if nothing that it read has changed since (scripts.py). It is as durable as the server is: one
that comes back from a restart has lost nothing only if it syncs each write and had no replica that
could have taken its place; else every approval that was not used up yet lapses before anything is
consumed, because a consumption may be among what was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal, cast
from uuid import uuid4
from weakref import WeakValueDictionary

import msgspec
from redis.exceptions import ResponseError

from services.authorizer.tickets import scripts
from services.authorizer.tickets.opening import Held, Plan, plan
from services.authorizer.tickets.protocol import Listener, StoreUnavailable, TooManyPending
from services.authorizer.tickets.ticket import (
    KEPT_MAX,
    KEPT_MS,
    PENDING_PER_AGENT,
    PENDING_PER_TENANT,
    Decided,
    Opening,
    Refused,
    State,
    Ticket,
    TicketId,
    aged,
    cancelled,
    consumed,
    decided,
    forgotten,
    lapsed,
    speaks,
    superseded,
)
from services.common.ids import AgentId, TenantId
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log
from services.common.valkey import RETRY_S, Valkey, ValkeyLost

#: A server that syncs each write needs a few milliseconds; who asks waits 500 at most.
BOUND_S: Final = 0.3
_MANY_BOUND_S: Final = 2.0
#: Inside a process callers of one ticket wait for each other; between processes the loser repeats.
_ATTEMPTS: Final = 10
_CHUNK: Final = 200
_LISTEN_MS: Final = 1_000
_FORGET_EVERY_MS: Final = 60_000

_ticket: Final = msgspec.json.Decoder(Ticket)
_encode: Final = msgspec.json.Encoder().encode

Key = tuple[TenantId, TicketId]


class SharedTicketStore:
    """Made by shared_ticket_store."""

    def __init__(self, valkey: Valkey, log: Log, *, prefix: str, bound_s: float) -> None:
        self._valkey = valkey
        self._bound_s = bound_s
        self._log = log
        self._root = f"{{{prefix}}}:ticket:"
        self._instance = str(uuid4())
        self._listeners: list[Listener] = []
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._commit_script = valkey.script(scripts.COMMIT)
        self._around_script = valkey.script(scripts.AROUND)
        self._settle_script = valkey.script(scripts.SETTLE)
        self._forget_script = valkey.script(scripts.FORGET)
        #: Where in the stream of changes this process is.
        self._heard: str | None = None
        self._forget_at_ms = 0

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def open(self, opening: Opening, *, now_ms: int) -> Ticket:
        slot = f"b:{opening.tenant}/{opening.binding}"
        subject = f"s:{opening.tenant}/{opening.subject}"
        async with self._one_at_a_time(subject):
            for _ in range(_ATTEMPTS):
                held, slot_id, subject_ids = await self._around(slot, subject, opening.tenant)
                planned = plan(opening, held, now_ms)
                if not planned.writes or await self._commit(
                    planned.writes,
                    [ticket for ticket in (held.newest, *held.of_subject) if ticket is not None],
                    now_ms=now_ms,
                    slot=[slot, slot_id],
                    subject=[subject, " ".join(sorted(subject_ids))],
                    **_room(opening, planned),
                ):
                    return planned.answer
        raise _contended()

    async def get(self, tenant: TenantId, id: TicketId) -> Ticket | None:
        return (await self._read([f"{tenant}/{id}"]))[0]

    async def by_binding(self, tenant: TenantId, binding: str, *, now_ms: int) -> Ticket | None:
        held, _, _ = await self._around(f"b:{tenant}/{binding}", "s:", tenant)
        found = held.newest
        return found if found is not None and speaks(found, now_ms) else None

    async def decide(
        self, tenant: TenantId, id: TicketId, decision: Decided, *, now_ms: int
    ) -> Ticket | None:
        def follow(ticket: Ticket) -> Ticket | None:
            known = ticket.binding == decision.binding
            return decided(ticket, decision, now_ms) if known else None

        return await self._follow(tenant, id, follow, now_ms=now_ms)

    async def consume(
        self, tenant: TenantId, id: TicketId, *, binding: str, now_ms: int
    ) -> Ticket | Refused:
        member = f"{tenant}/{id}"
        async with self._one_at_a_time(member):
            for _ in range(_ATTEMPTS):
                (ticket,), mark_ms = await self._read([member]), await self._mark_ms()
                if ticket is None:
                    return Refused.UNKNOWN
                taken = consumed(ticket, binding=binding, now_ms=now_ms, mark_ms=mark_ms)
                after = aged(ticket, now_ms) if taken is Refused.LATE else taken
                if not isinstance(after, Ticket):
                    return taken
                if await self._commit([after], [ticket], now_ms=now_ms):
                    return taken
        raise _contended()

    async def cancel(
        self, tenant: TenantId, id: TicketId, *, agent: AgentId, now_ms: int
    ) -> Ticket | None:
        def follow(ticket: Ticket) -> Ticket | None:
            return cancelled(ticket, now_ms) if ticket.agent == agent else None

        return await self._follow(tenant, id, follow, now_ms=now_ms)

    async def supersede(self, tenant: TenantId, *, keep_revision: str, now_ms: int) -> list[Ticket]:
        old = [
            ticket
            for ticket in await self.live()
            if ticket.tenant == tenant and ticket.policy_revision != keep_revision
        ]
        return await self._end_each(old, lambda ticket: superseded(ticket, now_ms), now_ms=now_ms)

    async def expire(self, *, now_ms: int) -> list[Ticket]:
        members = await self._many(
            lambda server: server.zrangebyscore(f"{self._root}live", "-inf", f"({now_ms}")
        )
        late = [ticket for ticket in await self._read(members) if ticket is not None]
        ended = await self._end_each(late, lambda ticket: aged(ticket, now_ms), now_ms=now_ms)
        if now_ms >= self._forget_at_ms:
            self._forget_at_ms = now_ms + _FORGET_EVERY_MS
            await self._forget(now_ms)
        return ended

    async def live(self) -> list[Ticket]:
        members = await self._many(lambda server: server.zrange(f"{self._root}live", 0, -1))
        return [ticket for ticket in await self._read(members) if ticket is not None]

    async def unsettled(self) -> list[Ticket]:
        members = await self._many(lambda server: server.smembers(f"{self._root}unsettled"))
        found = [ticket for ticket in await self._read(sorted(members)) if ticket is not None]
        return [ticket for ticket in found if not ticket.settled]

    async def settle(
        self,
        tenant: TenantId,
        id: TicketId,
        *,
        kept: int | None = None,
        recorded: int | None = None,
    ) -> None:
        marks = ["" if mark is None else str(mark) for mark in (kept, recorded)]
        await self._run(self._settle_script, [f"{tenant}/{id}", *marks])

    async def follow_forever(self) -> None:
        """Tells listeners what anybody changed, and goes on where it was after an outage."""
        while True:
            try:
                await self._listen()
            except ValkeyLost:
                await asyncio.sleep(RETRY_S)

    async def catch_up(self) -> None:
        """From now on each change is heard. Raises ValkeyLost."""
        newest: Any = await self._valkey.call(
            lambda server: server.xrevrange(f"{self._root}changes", count=1), bound_s=_MANY_BOUND_S
        )
        self._heard = newest[0][0] if newest else "0-0"

    async def _listen(self) -> None:
        if self._heard is None:
            await self.catch_up()
        stream = f"{self._root}changes"
        heard = self._heard or "0-0"
        answer: Any = await self._valkey.call(
            lambda server: server.xread({stream: heard}, count=_CHUNK, block=_LISTEN_MS),
            bound_s=2 * _LISTEN_MS / 1_000,
        )
        for _, entries in answer or ():
            for place, change in entries:
                self._heard = place
                ticket = _ticket.decode(change["j"])
                for listener in self._listeners:
                    listener(ticket, change["w"] == self._instance)

    async def _follow(
        self,
        tenant: TenantId,
        id: TicketId,
        follow: Callable[[Ticket], Ticket | None],
        *,
        now_ms: int,
    ) -> Ticket | None:
        member = f"{tenant}/{id}"
        async with self._one_at_a_time(member):
            for _ in range(_ATTEMPTS):
                (ticket,) = await self._read([member])
                after = None if ticket is None else follow(ticket)
                if ticket is None or after is None or after is ticket:
                    return after
                if await self._commit([after], [ticket], now_ms=now_ms):
                    return after
        raise _contended()

    async def _end_each(
        self, tickets: Iterable[Ticket], end: Callable[[Ticket], Ticket], *, now_ms: int
    ) -> list[Ticket]:
        """Those that this process ended; where another one was quicker, that one has told."""
        ended = [await self._end(ticket, end, now_ms=now_ms) for ticket in tickets]
        return [ticket for ticket in ended if ticket is not None]

    async def _end(
        self, ticket: Ticket | None, end: Callable[[Ticket], Ticket], *, now_ms: int
    ) -> Ticket | None:
        for _ in range(_ATTEMPTS):
            after = None if ticket is None else end(ticket)
            if ticket is None or after is None or after is ticket:
                return None
            if await self._commit([after], [ticket], now_ms=now_ms):
                return after
            ticket = await self.get(ticket.tenant, ticket.id)
        raise _contended()

    async def _commit(
        self, writes: Sequence[Ticket], read: Sequence[Ticket], *, now_ms: int, **more: Any
    ) -> bool:
        """False where something that was read has changed since. Raises TooManyPending."""
        planned = {
            "guards": [[f"t:{ticket.tenant}/{ticket.id}", str(ticket.version)] for ticket in read],
            "writes": [_write(ticket) for ticket in writes],
            "writer": self._instance,
        } | more
        word, detail = await self._run(self._commit_script, [_encode(planned).decode()])
        if word == "restarted":
            await self._repair(detail, now_ms=now_ms)
            return False
        if word == "full":
            raise TooManyPending(cast('Literal["agent", "tenant"]', detail))
        return bool(word == "done")

    async def _repair(self, run: str, *, now_ms: int) -> None:
        """The server is another process than the one that the tickets were written on."""
        approved = [ticket for ticket in await self.live() if ticket.state is State.APPROVED]
        if await self._lost_nothing():
            approved = []
        done = await self._commit(
            [lapsed(ticket, now_ms) for ticket in approved], approved, now_ms=now_ms, run=run
        )
        if done:
            self._log.warning("ticket_store_restarted", approvals_lapsed=len(approved))

    async def _lost_nothing(self) -> bool:
        async def ask(server: Any) -> dict[str, str]:
            try:
                return cast("dict[str, str]", await server.config_get("append*"))
            except ResponseError:  # not ours to ask: then it may have
                return {}

        kept = await self._many(ask)
        replicated = await self._many(lambda server: server.get(f"{self._root}replicated"))
        always = kept.get("appendonly") == "yes" and kept.get("appendfsync") == "always"
        return always and replicated is None

    async def _forget(self, now_ms: int) -> None:
        ended = f"{self._root}ended"
        most = await self._many(lambda server: server.zcard(ended)) - KEPT_MAX
        oldest = await self._many(
            lambda server: server.zrange(ended, 0, max(_CHUNK, most) - 1, withscores=True)
        )
        surplus = [member for member, _ in oldest[: max(0, most)]]
        old = [member for member, at_ms in oldest if now_ms > at_ms + KEPT_MS]
        held = [ticket for ticket in await self._read(old) if ticket is not None]
        spare = [
            ticket
            for ticket in await self._read(surplus)
            if ticket is not None and not speaks(ticket, now_ms)
        ]
        args: list[str] = []
        for ticket in {ticket.id: ticket for ticket in (*forgotten(held, now_ms), *spare)}.values():
            member, slot = f"{ticket.tenant}/{ticket.id}", f"b:{ticket.tenant}/{ticket.binding}"
            args += [member, str(ticket.version), slot]
        if args:
            await self._run(self._forget_script, args)

    async def _around(
        self, slot: str, subject: str, tenant: TenantId
    ) -> tuple[Held, str, list[str]]:
        slot_id, ids, rows = await self._run(self._around_script, [slot, subject, tenant])
        newest, *of_subject = [_decode(row) for row in rows]
        held = Held(
            newest=newest,
            of_subject=[ticket for ticket in of_subject if ticket is not None],
            pending_of_agent=0,  # counted where it is written
            pending_of_tenant=0,
        )
        return held, slot_id, ids

    async def _read(self, members: Sequence[str]) -> list[Ticket | None]:
        """One for each member, in order."""
        found: list[Ticket | None] = []
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]

            async def rows(server: Any, chunk: Sequence[str] = chunk) -> list[Any]:
                pipe = server.pipeline(transaction=False)
                for member in chunk:
                    pipe.hmget(f"{self._root}t:{member}", "j", "k", "r")
                return cast("list[Any]", await pipe.execute())

            bound_s = self._bound_s if len(members) == 1 else _MANY_BOUND_S
            found += [_decode(row) for row in await self._call(rows, bound_s=bound_s)]
        return found

    async def _mark_ms(self) -> int:
        mark = await self._call(
            lambda server: server.get(f"{self._root}mark"), bound_s=self._bound_s
        )
        return int(mark or 0)

    async def _many(self, command: Callable[[Any], Any]) -> Any:
        return await self._call(command, bound_s=_MANY_BOUND_S)

    async def _call(self, command: Callable[[Any], Any], *, bound_s: float) -> Any:
        try:
            return await self._valkey.call(command, bound_s=bound_s)
        except ValkeyLost as lost:
            raise StoreUnavailable(f"the shared ticket store is away: {lost}") from None

    async def _run(self, script: Any, args: Sequence[str]) -> Any:
        return await self._call(
            lambda _: script(keys=[self._root], args=args), bound_s=self._bound_s
        )

    def _one_at_a_time(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def _room(opening: Opening, planned: Plan) -> dict[str, list[str]]:
    """Only a new ticket needs room."""
    if planned.answer.id != opening.id:
        return {}
    tenant = f"p:{opening.tenant}"
    agent = f"{tenant}/{opening.agent}"
    return {"room": [agent, str(PENDING_PER_AGENT), tenant, str(PENDING_PER_TENANT)]}


def _write(ticket: Ticket) -> dict[str, str]:
    """Numbers as text: the script's are doubles, and it spells big ones its own way."""
    deadline_ms = {State.PENDING: ticket.decide_by_ms, State.APPROVED: ticket.execute_by_ms}
    deadline = deadline_ms.get(ticket.state)
    return {
        "tenant": ticket.tenant,
        "id": ticket.id,
        "agent": ticket.agent,
        "subject": ticket.subject,
        "binding": ticket.binding,
        "version": str(ticket.version),
        "state": ticket.state.value,
        "deadline": "" if deadline is None else str(deadline),
        "at": str(ticket.changed_at_ms),
        "json": _encode(ticket).decode(),
    }


def _decode(row: Sequence[str | None]) -> Ticket | None:
    """`row` is j, k, r of a ticket's hash."""
    text, kept, recorded = row
    if text is None:
        return None
    try:
        ticket = _ticket.decode(text)
        return msgspec.structs.replace(
            ticket,
            kept_version=-1 if kept is None else int(kept),
            recorded_version=-1 if recorded is None else int(recorded),
        )
    except (msgspec.DecodeError, ValueError):
        raise StoreUnavailable("the shared ticket store holds what is no ticket") from None


def _contended() -> StoreUnavailable:
    return StoreUnavailable("others kept changing the ticket")


@asynccontextmanager
async def shared_ticket_store(
    valkey: Valkey, log: Log, *, prefix: str, bound_s: float = BOUND_S
) -> AsyncIterator[SharedTicketStore]:
    """`prefix` names the plane: several may share a server."""
    store = SharedTicketStore(valkey, log, prefix=prefix, bound_s=bound_s)
    with suppress(ValkeyLost):
        await store.catch_up()
    async with Supervisor(log) as tasks:
        tasks.spawn("ticket_changes", store.follow_forever)
        yield store
