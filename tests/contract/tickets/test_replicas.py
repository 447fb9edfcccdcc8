"""Two authorizers on one Valkey: what only the shared store can show."""

from __future__ import annotations

import asyncio

import pytest

from services.authorizer.tickets.opening import Held
from services.authorizer.tickets.protocol import TooManyPending
from services.authorizer.tickets.shared import SharedTicketStore
from services.authorizer.tickets.ticket import PENDING_PER_AGENT, Refused, State, Ticket
from services.common.ids import TenantId
from tests.fakes.tickets import (
    HOUR_MS,
    START_MS,
    TENANT,
    Heard,
    another,
    approval,
    opening,
    refusal,
)
from tests.promises import promise

pytestmark = pytest.mark.needs_valkey
NOW = START_MS
Replicas = tuple[SharedTicketStore, SharedTicketStore]


@promise("escalations:once")
@pytest.mark.parametrize("uses", [1, 7])
async def test_of_fifty_on_two_replicas_as_many_win_as_there_are_uses(
    replicas: Replicas, uses: int
) -> None:
    one, two = replicas
    ticket = await one.open(opening(), now_ms=NOW)
    await two.decide(TENANT, ticket.id, approval(ticket, uses=uses), now_ms=NOW)

    got = await asyncio.gather(
        *(
            replicas[n % 2].consume(TENANT, ticket.id, binding=ticket.binding, now_ms=NOW)
            for n in range(50)
        )
    )

    winners = [answer for answer in got if isinstance(answer, Ticket)]
    assert list(range(uses)) == sorted(winner.uses_left for winner in winners)
    assert {Refused.NOT_APPROVED} == {one for one in got if not isinstance(one, Ticket)}


async def test_fifty_who_ask_two_replicas_open_one_ticket(replicas: Replicas) -> None:
    opened = await asyncio.gather(*(replicas[n % 2].open(opening(), now_ms=NOW) for n in range(50)))

    assert 1 == len({ticket.id for ticket in opened})


async def test_two_replicas_together_keep_the_limit(replicas: Replicas) -> None:
    opened = await asyncio.gather(
        *(replicas[n % 2].open(another(), now_ms=NOW) for n in range(2 * PENDING_PER_AGENT)),
        return_exceptions=True,
    )

    assert PENDING_PER_AGENT == len([one for one in opened if isinstance(one, Ticket)])
    assert PENDING_PER_AGENT == len([one for one in opened if isinstance(one, TooManyPending)])


async def test_one_of_two_revisions_at_once_supersedes_the_other(replicas: Replicas) -> None:
    for n in range(10):
        same = {"subject": f"b1:s:race{n}"}
        await asyncio.gather(
            replicas[0].open(another(policy_revision="r1", **same), now_ms=NOW),
            replicas[1].open(another(policy_revision="r2", **same), now_ms=NOW),
        )
        live = [one for one in await replicas[0].live() if one.subject == same["subject"]]
        assert 1 == len(live)


async def test_each_change_is_heard_on_both_and_is_one_replicas_own(replicas: Replicas) -> None:
    one, two = Heard(), Heard()
    replicas[0].on_change(one)
    replicas[1].on_change(two)

    ticket = await replicas[0].open(opening(), now_ms=NOW)
    await replicas[1].decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
    await replicas[0].consume(TENANT, ticket.id, binding=ticket.binding, now_ms=NOW)

    for heard in (one, two):
        await heard.hear("pending", "approved", "consumed")
    assert [True, False, True] == [here for _, here in one.changes]
    assert [False, True, False] == [here for _, here in two.changes]


async def test_what_both_expire_is_ended_once(replicas: Replicas) -> None:
    tickets = [await replicas[0].open(another(), now_ms=NOW) for _ in range(10)]
    late = NOW + HOUR_MS + 1

    ended = await asyncio.gather(*(replica.expire(now_ms=late) for replica in replicas))

    ids = sorted(ticket.id for part in ended for ticket in part)
    assert sorted(ticket.id for ticket in tickets) == ids
    assert {State.EXPIRED} == {ticket.state for part in ended for ticket in part}


async def test_a_refusal_between_looking_and_opening_is_seen(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    look = one._around
    refused: list[Ticket] = []

    async def look_and_be_overtaken(
        slot: str, subject: str, tenant: TenantId
    ) -> tuple[Held, str, list[str]]:
        seen = await look(slot, subject, tenant)
        if not refused:
            theirs = await two.open(opening(), now_ms=NOW)
            denied = await two.decide(TENANT, theirs.id, refusal(theirs), now_ms=NOW)
            assert denied is not None
            refused.append(denied)
        return seen

    monkeypatch.setattr(one, "_around", look_and_be_overtaken)

    answer = await one.open(opening(), now_ms=NOW)

    assert refused == [answer]
    assert [] == await one.live()


async def test_another_policy_ends_a_ticket_that_changes_meanwhile(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    ticket = await one.open(opening(), now_ms=NOW)
    live = one.live

    async def live_and_be_overtaken() -> list[Ticket]:
        found = await live()
        await two.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
        return found

    monkeypatch.setattr(one, "live", live_and_be_overtaken)

    (ended,) = await one.supersede(TENANT, keep_revision="r2", now_ms=NOW)

    assert (State.SUPERSEDED, 2) == (ended.state, ended.version)
