"""The shared ticket store while its server dies, comes back, or comes back without its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import pytest

from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.shared import SharedTicketStore, shared_ticket_store
from services.authorizer.tickets.ticket import Refused, State, Ticket
from services.common.telemetry.logging import get_log
from services.common.valkey import Valkey, open_valkey
from tests.fakes.ports import free_port
from tests.fakes.tickets import START_MS, TENANT, Heard, another, approval
from tests.fakes.valkey import ValkeyServer, running_valkey

pytestmark = pytest.mark.needs_valkey
NOW = START_MS
LOG = get_log("test")
_Answer = TypeVar("_Answer")


@asynccontextmanager
async def on(server: ValkeyServer) -> AsyncIterator[SharedTicketStore]:
    async with (
        open_valkey(server.url, LOG) as valkey,
        shared_ticket_store(valkey, LOG, prefix="plane") as store,
    ):
        yield store


async def once_available(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    async with asyncio.timeout(5):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await a_moment()


async def a_moment() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, done.set)
    await done.wait()


async def approved(store: SharedTicketStore, *, uses: int = 1) -> Ticket:
    ticket = await store.open(another(), now_ms=NOW)
    after = await store.decide(TENANT, ticket.id, approval(ticket, uses=uses), now_ms=NOW)
    assert after is not None
    return after


async def use(store: SharedTicketStore, ticket: Ticket) -> Ticket | Refused:
    return await store.consume(TENANT, ticket.id, binding=ticket.binding, now_ms=NOW)


def using(store: SharedTicketStore, ticket: Ticket) -> Callable[[], Awaitable[Ticket | Refused]]:
    return lambda: use(store, ticket)


async def test_a_killed_server_is_unavailable_and_has_forgotten_nothing() -> None:
    heard = Heard()
    with running_valkey() as server:
        async with on(server) as store, on(server) as other:
            ready, pending = await approved(store), await store.open(another(), now_ms=NOW)
            spent = await approved(store)
            assert isinstance(await use(other, spent), Ticket)
            other.on_change(heard)

            server.kill()
            for call in (
                use(store, ready),
                store.open(another(), now_ms=NOW),
                store.get(TENANT, ready.id),
                store.expire(now_ms=NOW),
                store.live(),
            ):
                with pytest.raises(StoreUnavailable):
                    await call

            server.started()
            assert Refused.NOT_APPROVED == await once_available(using(store, spent))
            assert isinstance(await use(store, ready), Ticket)
            assert Refused.NOT_APPROVED == await use(other, ready)
            assert pending == await other.get(TENANT, pending.id)
            await heard.hear("consumed")  # the stream goes on where it was


async def test_a_server_that_may_have_lost_a_use_gives_none() -> None:
    """`everysec` may lose the last second, and a use of an approval with it."""
    with running_valkey(keeps="everysec") as server:
        async with on(server) as store, on(server) as other:
            ready, granted = await approved(store), await approved(store, uses=3)
            pending = await store.open(another(), now_ms=NOW)
            assert isinstance(await use(store, granted), Ticket)

            server.stop()  # in peace: all is on the disk, which nobody can know
            server.started()

            for ticket in (ready, granted):
                refused = await once_available(using(store, ticket))
                assert Refused.NOT_APPROVED == refused
                after = await other.get(TENANT, ticket.id)
                assert after is not None
                assert State.LAPSED == after.state
            assert pending == await store.get(TENANT, pending.id)
            again = await approved(other)  # from here on as ever
            assert isinstance(await use(store, again), Ticket)


async def test_a_server_that_does_not_say_how_it_syncs_may_have_lost_a_use() -> None:
    with running_valkey(more=['rename-command CONFIG ""']) as server:
        async with on(server) as store:
            ready = await approved(store)
            server.kill()
            server.started()

            assert Refused.NOT_APPROVED == await once_available(using(store, ready))
            assert isinstance(await use(store, await approved(store)), Ticket)


async def test_a_server_without_memory_knows_no_approval() -> None:
    with running_valkey(keeps="no") as server:
        async with on(server) as store:
            ready = await approved(store)
            server.kill()
            server.started()

            assert Refused.UNKNOWN == await once_available(using(store, ready))
            again = await store.open(another(binding=ready.binding), now_ms=NOW)
            assert State.PENDING == again.state


async def test_a_replica_that_takes_over_gives_no_use_that_it_may_have_missed() -> None:
    port = free_port()
    with running_valkey(port=port) as first, running_valkey(replica_of=port) as second:
        async with open_valkey(first.url, LOG) as valkey:
            await replicated(valkey)
        async with on(first) as store:
            ready, pending = await approved(store), await store.open(another(), now_ms=NOW)
            async with open_valkey(first.url, LOG) as valkey:
                assert 1 == await valkey.call(lambda server: server.wait(1, 1_000), bound_s=2)
        first.kill()
        async with open_valkey(second.url, LOG) as valkey:
            await valkey.call(lambda server: server.replicaof("NO", "ONE"), bound_s=1)

        async with on(second) as store:
            assert Refused.NOT_APPROVED == await once_available(using(store, ready))
            assert [pending] == await store.live()


async def replicated(valkey: Valkey) -> None:
    async with asyncio.timeout(5):
        while True:
            told = await valkey.call(lambda server: server.info("replication"), bound_s=1)
            if told["connected_slaves"] == 1:
                return
            await a_moment()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_answer_that_was_lost_spends_and_is_not_used(
    when: Literal["before", "after"],
) -> None:
    with running_valkey() as server:
        async with on(server) as store, on(server) as other:
            ready = await approved(store)
            if when == "before":
                server.pause()  # it takes the command, and answers nobody in time
            else:
                assert isinstance(await use(other, ready), Ticket)
                server.pause()
            with pytest.raises(StoreUnavailable):
                await use(store, ready)
            server.resume()

            answers = [await once_available(using(one, ready)) for one in (store, other)]

            won = len([answer for answer in answers if isinstance(answer, Ticket)])
            assert won <= (1 if when == "before" else 0)


async def test_the_stream_of_changes_survives_an_outage() -> None:
    heard = Heard()
    with running_valkey() as server:
        async with on(server) as store, on(server) as other:
            other.on_change(heard)
            ticket = await approved(store)
            await heard.hear("pending", "approved")
            server.kill()
            server.started()
            await once_available(using(store, ticket))

            await heard.hear("pending", "approved", "consumed")
