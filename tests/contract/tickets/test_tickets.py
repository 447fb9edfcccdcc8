"""What every store of tickets promises (protocol.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.authorizer.tickets.protocol import TicketStore, TooManyPending
from services.authorizer.tickets.ticket import (
    MAX_GRANT_MS,
    PENDING_PER_AGENT,
    PENDING_PER_TENANT,
    Refused,
    State,
    Ticket,
    TicketId,
    Verdict,
)
from services.common.ids import AgentId
from tests.fakes.tickets import (
    AGENT,
    HOUR_MS,
    MINUTE_MS,
    OTHER_AGENT,
    OTHER_TENANT,
    START_MS,
    TENANT,
    Heard,
    another,
    approval,
    opening,
    refusal,
)
from tests.promises import promise

NOW = START_MS


async def approved(store: TicketStore, *, uses: int = 1, at_ms: int = NOW) -> Ticket:
    ticket = await store.open(another(at_ms=at_ms), now_ms=at_ms)
    after = await store.decide(
        TENANT, ticket.id, approval(ticket, at_ms=at_ms, uses=uses), now_ms=at_ms
    )
    assert after is not None
    return after


async def use(store: TicketStore, ticket: Ticket, *, now_ms: int = NOW) -> Ticket | Refused:
    return await store.consume(ticket.tenant, ticket.id, binding=ticket.binding, now_ms=now_ms)


# --- opening -------------------------------------------------------------------------------------


async def test_a_question_is_kept_as_it_was_asked(store: TicketStore) -> None:
    asked = opening(codes=("a", "b"), features=b'{"x":"\xc3\xa9"}', resource="/é", schema_hash="")

    ticket = await store.open(asked, now_ms=NOW)

    assert (State.PENDING, 0) == (ticket.state, ticket.version)
    assert await store.get(TENANT, asked.id) == ticket
    assert all(getattr(asked, name) == getattr(ticket, name) for name in asked.__struct_fields__)


async def test_the_same_binding_is_the_same_ticket(store: TicketStore) -> None:
    first = await store.open(opening(), now_ms=NOW)
    second = await store.open(opening(), now_ms=NOW)
    twin = await store.open(another(), now_ms=NOW)

    assert first == second
    assert first.id != twin.id
    assert {first.id, twin.id} == {ticket.id for ticket in await store.live()}


async def test_fifty_who_ask_at_once_open_one_ticket(store: TicketStore) -> None:
    opened = await asyncio.gather(*(store.open(opening(), now_ms=NOW) for _ in range(50)))

    assert 1 == len({ticket.id for ticket in opened})
    assert 1 == len(await store.live())


async def test_other_codes_of_the_same_call_are_a_ticket_beside_it(store: TicketStore) -> None:
    first = await store.open(opening(), now_ms=NOW)
    second = await store.open(opening(binding="b1:k:codes", codes=("scan_limit",)), now_ms=NOW)

    assert {first.id, second.id} == {ticket.id for ticket in await store.live()}


@pytest.mark.parametrize("changed", [{"policy_revision": "r2"}, {"schema_hash": "sha256:bb"}])
@pytest.mark.parametrize("state", [State.PENDING, State.APPROVED])
async def test_another_policy_or_definition_supersedes(
    store: TicketStore, changed: dict[str, Any], state: State
) -> None:
    first = await store.open(opening(), now_ms=NOW)
    if state is State.APPROVED:
        await store.decide(TENANT, first.id, approval(first), now_ms=NOW)
    twin = await store.open(another(), now_ms=NOW)
    second = await store.open(opening(binding="b1:k:two", **changed), now_ms=NOW)

    old = await store.get(TENANT, first.id)

    assert old is not None
    assert State.SUPERSEDED == old.state
    assert Refused.NOT_APPROVED == await use(store, old)
    assert {second.id, twin.id} == {ticket.id for ticket in await store.live()}


async def test_a_tenant_sees_nothing_of_another(store: TicketStore) -> None:
    mine = await approved(store)

    assert await store.get(OTHER_TENANT, mine.id) is None
    assert await store.by_binding(OTHER_TENANT, mine.binding, now_ms=NOW) is None
    assert await store.decide(OTHER_TENANT, mine.id, refusal(mine), now_ms=NOW) is None
    assert await store.cancel(OTHER_TENANT, mine.id, agent=AGENT, now_ms=NOW) is None
    refused = await store.consume(OTHER_TENANT, mine.id, binding=mine.binding, now_ms=NOW)
    assert Refused.UNKNOWN == refused
    assert isinstance(await use(store, mine), Ticket)


# --- how many ------------------------------------------------------------------------------------


async def test_an_agent_has_twenty_pending_at_most(store: TicketStore) -> None:
    tickets = [await store.open(another(), now_ms=NOW) for _ in range(PENDING_PER_AGENT)]

    with pytest.raises(TooManyPending) as refused:
        await store.open(another(), now_ms=NOW)

    assert "agent" == refused.value.scope
    assert tickets[0] == await store.open(
        another(binding=tickets[0].binding), now_ms=NOW
    )  # the same question is no other
    await store.open(another(agent=OTHER_AGENT), now_ms=NOW)
    await store.decide(TENANT, tickets[0].id, refusal(tickets[0]), now_ms=NOW)
    await store.open(another(), now_ms=NOW)  # one place is free again
    with pytest.raises(TooManyPending):
        await store.open(another(), now_ms=NOW)


async def test_concurrent_openings_do_not_pass_the_limit(store: TicketStore) -> None:
    opened = await asyncio.gather(
        *(store.open(another(), now_ms=NOW) for _ in range(2 * PENDING_PER_AGENT)),
        return_exceptions=True,
    )

    assert PENDING_PER_AGENT == len([ticket for ticket in opened if isinstance(ticket, Ticket)])
    assert PENDING_PER_AGENT == len([no for no in opened if isinstance(no, TooManyPending)])


async def test_a_superseded_one_leaves_its_place(store: TicketStore) -> None:
    for _ in range(PENDING_PER_AGENT - 1):
        await store.open(another(), now_ms=NOW)
    await store.open(opening(), now_ms=NOW)

    again = await store.open(opening(binding="b1:k:two", policy_revision="r2"), now_ms=NOW)

    assert State.PENDING == again.state


async def test_a_tenant_has_five_hundred_pending_at_most(store: TicketStore) -> None:
    agents = [AgentId(f"0192bbbb-0000-7000-8000-0000000001{n:02}") for n in range(26)]
    openings = [another(agent=agents[n // PENDING_PER_AGENT]) for n in range(PENDING_PER_TENANT)]
    for start in range(0, PENDING_PER_TENANT, 50):
        await asyncio.gather(*(store.open(one, now_ms=NOW) for one in openings[start : start + 50]))

    with pytest.raises(TooManyPending) as refused:
        await store.open(another(agent=agents[25]), now_ms=NOW)

    assert "tenant" == refused.value.scope
    await store.open(another(tenant=OTHER_TENANT), now_ms=NOW)


# --- deciding ------------------------------------------------------------------------------------


async def test_an_approval_is_used_once(store: TicketStore) -> None:
    ticket = await approved(store)

    first, second = await use(store, ticket), await use(store, ticket)

    assert isinstance(first, Ticket)
    assert (State.CONSUMED, 0, 2) == (first.state, first.uses_left, first.version)
    assert Refused.NOT_APPROVED == second
    assert await store.get(TENANT, ticket.id) == first
    assert [] == await store.live()


@promise("escalations:once")
@pytest.mark.parametrize(("uses", "taken"), [(1, 1), (3, 3), (20, 20)])
async def test_of_fifty_who_consume_at_once_as_many_win_as_there_are_uses(
    store: TicketStore, uses: int, taken: int
) -> None:
    ticket = await approved(store, uses=uses)

    got = await asyncio.gather(*(use(store, ticket) for _ in range(50)))

    winners = [one for one in got if isinstance(one, Ticket)]
    assert taken == len(winners)
    assert list(range(uses)) == sorted(winner.uses_left for winner in winners)
    after = await store.get(TENANT, ticket.id)
    assert after is not None
    assert State.CONSUMED == after.state


async def test_what_nobody_approved_is_not_consumed(store: TicketStore) -> None:
    pending = await store.open(another(), now_ms=NOW)
    denied = await store.open(another(), now_ms=NOW)
    await store.decide(TENANT, denied.id, refusal(denied), now_ms=NOW)
    ticket = await approved(store)

    assert Refused.NOT_APPROVED == await use(store, pending)
    assert Refused.NOT_APPROVED == await use(store, denied)
    unknown = TicketId("0192cccc-0000-7000-8000-000000000001")
    refused = await store.consume(TENANT, unknown, binding=ticket.binding, now_ms=NOW)
    assert Refused.UNKNOWN == refused
    refused = await store.consume(TENANT, ticket.id, binding="b1:k:other", now_ms=NOW)
    assert Refused.UNKNOWN == refused
    assert isinstance(await use(store, ticket), Ticket)


async def test_a_decision_for_another_binding_decides_nothing(store: TicketStore) -> None:
    ticket = await store.open(opening(), now_ms=NOW)
    other = await store.open(another(), now_ms=NOW)

    assert await store.decide(TENANT, ticket.id, approval(other), now_ms=NOW) is None

    assert ticket == await store.get(TENANT, ticket.id)


async def test_deciding_again_changes_nothing(store: TicketStore) -> None:
    ticket = await approved(store, uses=2)
    once = await use(store, ticket)
    assert isinstance(once, Ticket)

    again = await store.decide(TENANT, ticket.id, approval(ticket, uses=2), now_ms=NOW)

    assert once == again
    assert 1 == once.uses_left
    last = await use(store, ticket)
    again = await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
    assert last == again  # used up stays used up


@pytest.mark.parametrize(
    ("verdict", "pending", "granted"),
    [
        (Verdict.DENY, State.DENIED, State.REVOKED),
        (Verdict.REVOKE, State.DENIED, State.REVOKED),
        (Verdict.CANCEL, State.CANCELLED, State.REVOKED),
    ],
)
async def test_a_refusal_ends_what_lives_and_no_approval_revives_it(
    store: TicketStore, verdict: Verdict, pending: State, granted: State
) -> None:
    waiting = await store.open(another(), now_ms=NOW)
    ready = await approved(store)

    first = await store.decide(TENANT, waiting.id, refusal(waiting, verdict), now_ms=NOW)
    second = await store.decide(TENANT, ready.id, refusal(ready, verdict), now_ms=NOW)

    assert (pending, granted) == (first and first.state, second and second.state)
    for ticket in (waiting, ready):
        late = await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
        assert late in {first, second}
        assert Refused.NOT_APPROVED == await use(store, ticket)


async def test_an_agent_gives_up_its_own_pending_ticket_alone(store: TicketStore) -> None:
    mine = await store.open(another(), now_ms=NOW)
    ready = await approved(store)

    assert await store.cancel(TENANT, mine.id, agent=OTHER_AGENT, now_ms=NOW) is None
    first = await store.cancel(TENANT, mine.id, agent=AGENT, now_ms=NOW)
    second = await store.cancel(TENANT, mine.id, agent=AGENT, now_ms=NOW)
    kept = await store.cancel(TENANT, ready.id, agent=AGENT, now_ms=NOW)

    assert first is not None
    assert State.CANCELLED == first.state
    assert first == second
    assert ready == kept


# --- the two clocks ------------------------------------------------------------------------------


async def test_nobody_decides_after_the_time_to_decide(store: TicketStore) -> None:
    in_time = await store.open(another(), now_ms=NOW)
    late = await store.open(another(), now_ms=NOW)
    at = NOW + HOUR_MS

    first = await store.decide(TENANT, in_time.id, approval(in_time, at_ms=at), now_ms=at)
    second = await store.decide(TENANT, late.id, approval(late, at_ms=at), now_ms=at + 1)

    assert (State.APPROVED, State.EXPIRED) == (first and first.state, second and second.state)


async def test_nobody_executes_after_the_time_to_execute(store: TicketStore) -> None:
    in_time, late = await approved(store), await approved(store)
    at = NOW + 15 * MINUTE_MS

    assert isinstance(await use(store, in_time, now_ms=at), Ticket)
    assert Refused.LATE == await use(store, late, now_ms=at + 1)

    after = await store.get(TENANT, late.id)
    assert after is not None
    assert State.LAPSED == after.state
    assert Refused.NOT_APPROVED == await use(store, late, now_ms=at)


async def test_a_grant_of_many_uses_ends_within_the_hour(store: TicketStore) -> None:
    ticket = await store.open(another(), now_ms=NOW)
    signed = approval(ticket, uses=5, execute_in_ms=24 * HOUR_MS)

    after = await store.decide(TENANT, ticket.id, signed, now_ms=NOW)

    assert after is not None
    assert (NOW + MAX_GRANT_MS, 5) == (after.execute_by_ms, after.uses_left)


async def test_what_is_late_is_ended_and_told(store: TicketStore) -> None:
    pending = await store.open(another(), now_ms=NOW)
    ready = await approved(store)
    lasting = await store.open(another(decide_in_ms=24 * HOUR_MS), now_ms=NOW)

    assert [] == await store.expire(now_ms=NOW)
    ended = await store.expire(now_ms=NOW + HOUR_MS + 1)

    assert {(pending.id, State.EXPIRED), (ready.id, State.LAPSED)} == {
        (ticket.id, ticket.state) for ticket in ended
    }
    assert [lasting] == await store.live()
    assert [] == await store.expire(now_ms=NOW + HOUR_MS + 1)


async def test_a_clock_far_behind_the_journal_consumes_nothing(store: TicketStore) -> None:
    ticket = await approved(store)
    await store.open(another(), now_ms=NOW)
    at = NOW - 5 * MINUTE_MS

    assert Refused.CLOCK_SUSPECT == await use(store, ticket, now_ms=at - 1)

    assert isinstance(await use(store, ticket, now_ms=at), Ticket)


# --- answering a binding -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "speaks_ms"),
    [
        ("deny", HOUR_MS),
        ("deny_late", 59 * MINUTE_MS + 5 * MINUTE_MS),
        ("cancel", MINUTE_MS),
        ("revoke", MINUTE_MS),
    ],
)
async def test_an_ended_ticket_answers_its_binding_for_a_while(
    store: TicketStore, end: str, speaks_ms: int
) -> None:
    ticket = await store.open(opening(), now_ms=NOW)
    match end:
        case "deny":
            await store.decide(TENANT, ticket.id, refusal(ticket), now_ms=NOW)
        case "deny_late":
            await store.decide(TENANT, ticket.id, refusal(ticket), now_ms=NOW + 59 * MINUTE_MS)
        case "cancel":
            await store.cancel(TENANT, ticket.id, agent=AGENT, now_ms=NOW)
        case _:
            await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
            await store.decide(TENANT, ticket.id, refusal(ticket, Verdict.REVOKE), now_ms=NOW)
    until = NOW + speaks_ms

    still = await store.open(opening(at_ms=until), now_ms=until)
    after = await store.open(opening(at_ms=until + 1), now_ms=until + 1)

    assert ticket.id == still.id
    assert not still.live
    assert ticket.id != after.id
    assert State.PENDING == after.state


async def test_a_late_ticket_says_so_to_whoever_asks_first(store: TicketStore) -> None:
    ticket = await store.open(opening(), now_ms=NOW)
    late = NOW + HOUR_MS + 1

    answer = await store.open(opening(at_ms=late), now_ms=late)

    assert (ticket.id, State.EXPIRED, 1) == (answer.id, answer.state, answer.version)
    again = late + MINUTE_MS + 1
    assert ticket.id != (await store.open(opening(at_ms=again), now_ms=again)).id


async def test_after_a_use_the_same_call_is_a_new_question(store: TicketStore) -> None:
    ticket = await approved(store)
    assert isinstance(await use(store, ticket), Ticket)

    assert await store.by_binding(TENANT, ticket.binding, now_ms=NOW) is None
    again = await store.open(another(binding=ticket.binding, subject=ticket.subject), now_ms=NOW)

    assert ticket.id != again.id
    assert State.PENDING == again.state
    assert again == await store.by_binding(TENANT, ticket.binding, now_ms=NOW)


async def test_another_policy_revision_ends_the_tenants_tickets(store: TicketStore) -> None:
    old, ready = await store.open(another(), now_ms=NOW), await approved(store)
    new = await store.open(another(policy_revision="r2"), now_ms=NOW)
    theirs = await store.open(another(tenant=OTHER_TENANT), now_ms=NOW)

    ended = await store.supersede(TENANT, keep_revision="r2", now_ms=NOW)

    assert {old.id, ready.id} == {ticket.id for ticket in ended}
    assert {State.SUPERSEDED} == {ticket.state for ticket in ended}
    assert {new.id, theirs.id} == {ticket.id for ticket in await store.live()}


# --- being told ----------------------------------------------------------------------------------


async def test_listeners_hear_each_change_once_and_in_order(store: TicketStore) -> None:
    heard = Heard()
    store.on_change(heard)
    ticket = await approved(store, uses=2)
    for _ in range(3):
        await use(store, ticket)
    await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)

    tickets = await heard.hear("pending", "approved", "approved", "consumed")

    assert [0, 1, 2, 3] == [one.version for one in tickets]
    assert all(here for _, here in heard.changes)


async def test_what_was_told_is_settled_version_by_version(store: TicketStore) -> None:
    ticket = await store.open(opening(), now_ms=NOW)
    assert [ticket] == await store.unsettled()

    await store.settle(TENANT, ticket.id, kept=0)
    assert [ticket.id] == [one.id for one in await store.unsettled()]
    await store.settle(TENANT, ticket.id, recorded=0)
    assert [] == await store.unsettled()

    await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
    await store.settle(TENANT, ticket.id, kept=7, recorded=0)

    (left,) = await store.unsettled()
    assert (1, 1, 0) == (left.version, left.kept_version, left.recorded_version)


async def test_what_ended_long_ago_and_is_told_is_forgotten(store: TicketStore) -> None:
    told, untold = await approved(store), await approved(store)
    for ticket in (told, untold):
        await use(store, ticket)
    await store.settle(TENANT, told.id, kept=2, recorded=2)
    await store.settle(TENANT, untold.id, kept=2)
    await store.get(TENANT, told.id)

    await store.expire(now_ms=NOW + 24 * HOUR_MS)
    assert await store.get(TENANT, told.id) is not None
    await store.expire(now_ms=NOW + 25 * HOUR_MS)

    assert await store.get(TENANT, told.id) is None
    assert await store.get(TENANT, untold.id) is not None
