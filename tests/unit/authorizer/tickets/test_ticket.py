"""What may follow what: the table of core.md 9, each pair of a state and an event."""

from __future__ import annotations

import msgspec
import pytest

from services.authorizer.tickets.ticket import (
    ENDED_SPEAKS_MS,
    KEPT_MAX,
    KEPT_MS,
    LIVE,
    MAX_EXECUTE_MS,
    MAX_GRANT_MS,
    Decided,
    Refused,
    State,
    Ticket,
    Verdict,
    aged,
    cancelled,
    consumed,
    decided,
    forgotten,
    lapsed,
    marked,
    opened,
    speaks,
    superseded,
)
from tests.fakes.tickets import HOUR_MS, MINUTE_MS, START_MS, another, approval, opening, refusal

NOW = START_MS + MINUTE_MS
LATE = START_MS + 2 * HOUR_MS


def ticket_in(state: State) -> Ticket:
    """Opened at START_MS; where approved, usable for half an hour."""
    return msgspec.structs.replace(
        opened(opening()),
        state=state,
        version=5,
        uses_left=1 if state is State.APPROVED else 0,
        execute_by_ms=START_MS + HOUR_MS // 2,
    )


# (event, state) -> the state that follows; whatever is not named stays.
FOLLOWS = {
    ("approve", State.PENDING): State.APPROVED,
    ("deny", State.PENDING): State.DENIED,
    ("deny", State.APPROVED): State.REVOKED,
    ("revoke", State.PENDING): State.DENIED,
    ("revoke", State.APPROVED): State.REVOKED,
    ("cancel", State.PENDING): State.CANCELLED,
    ("cancel", State.APPROVED): State.REVOKED,
    ("consume", State.APPROVED): State.CONSUMED,
    ("give_up", State.PENDING): State.CANCELLED,
    ("supersede", State.PENDING): State.SUPERSEDED,
    ("supersede", State.APPROVED): State.SUPERSEDED,
    ("lapse", State.APPROVED): State.LAPSED,
}
EVENTS = ["approve", "deny", "revoke", "cancel", "consume", "give_up", "supersede", "lapse", "age"]


def happens(event: str, ticket: Ticket, now_ms: int) -> Ticket:
    match event:
        case "approve":
            return decided(ticket, approval(ticket, at_ms=now_ms), now_ms)
        case "deny" | "revoke" | "cancel":
            return decided(ticket, refusal(ticket, Verdict(event)), now_ms)
        case "consume":
            after = consumed(ticket, binding=ticket.binding, now_ms=now_ms, mark_ms=now_ms)
            return after if isinstance(after, Ticket) else ticket
        case "give_up":
            return cancelled(ticket, now_ms)
        case "supersede":
            return superseded(ticket, now_ms)
        case "lapse":
            return lapsed(ticket, now_ms)
        case _:
            return aged(ticket, now_ms)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_each_event_in_each_state(event: str, state: State) -> None:
    before = ticket_in(state)

    after = happens(event, before, NOW)

    expected = FOLLOWS.get((event, state), state)
    assert expected == after.state
    if expected is state:
        assert before is after
    else:
        assert (6, NOW) == (after.version, after.changed_at_ms)
        assert (1 if after.state is State.APPROVED else 0) == after.uses_left


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in {"consume", "lapse"}])
@pytest.mark.parametrize("state", State)
def test_what_comes_too_late_finds_the_clock_first(event: str, state: State) -> None:
    after = happens(event, ticket_in(state), LATE)

    ended = {State.PENDING: State.EXPIRED, State.APPROVED: State.LAPSED}
    assert ended.get(state, state) == after.state


def test_no_state_that_ended_is_left_again() -> None:
    assert {state for _, state in FOLLOWS} <= LIVE


def test_a_grant_counts_its_uses_down() -> None:
    ticket = decided(opened(opening()), approval(opened(opening()), uses=3), NOW)

    left = []
    while isinstance(
        after := consumed(ticket, binding=ticket.binding, now_ms=NOW, mark_ms=NOW), Ticket
    ):
        left.append((after.state, after.uses_left))
        ticket = after

    assert [(State.APPROVED, 2), (State.APPROVED, 1), (State.CONSUMED, 0)] == left
    assert Refused.NOT_APPROVED == after


@pytest.mark.parametrize(
    ("uses", "asked_ms", "given_ms"),
    [
        (1, MINUTE_MS, MINUTE_MS),
        (1, 48 * HOUR_MS, MAX_EXECUTE_MS),
        (2, 2 * HOUR_MS, MAX_GRANT_MS),
        (2, MINUTE_MS, MINUTE_MS),
    ],
)
def test_our_clock_bounds_what_was_signed(uses: int, asked_ms: int, given_ms: int) -> None:
    ticket = opened(opening())

    after = decided(ticket, approval(ticket, at_ms=NOW, uses=uses, execute_in_ms=asked_ms), NOW)

    assert NOW + given_ms == after.execute_by_ms


def test_an_approval_signed_for_the_past_is_used_by_nobody() -> None:
    ticket = opened(opening())

    after = decided(ticket, approval(ticket, at_ms=NOW, execute_in_ms=-1), NOW)

    refused = consumed(after, binding=after.binding, now_ms=NOW, mark_ms=NOW)
    assert Refused.LATE == refused


@pytest.mark.parametrize("uses", [0, -1, 21])
def test_uses_out_of_bounds_are_no_decision(uses: int) -> None:
    with pytest.raises(ValueError, match="uses"):
        Decided(binding="b", verdict=Verdict.APPROVE, uses=uses)


@pytest.mark.parametrize("state", State)
def test_an_ended_ticket_falls_silent(state: State) -> None:
    ticket = ticket_in(state)
    denied = max(ticket.decide_by_ms, ticket.changed_at_ms + 300_000)
    last = {
        State.PENDING: LATE * 2,
        State.APPROVED: LATE * 2,
        State.DENIED: denied,
        State.CONSUMED: 0,
        State.SUPERSEDED: 0,
    }.get(state, ticket.changed_at_ms + ENDED_SPEAKS_MS)

    assert speaks(ticket, last) == (last > 0)
    assert speaks(ticket, last + 1) == (state in LIVE)


def test_marks_neither_go_back_nor_ahead() -> None:
    ticket = ticket_in(State.CONSUMED)

    assert not ticket.settled
    ahead = marked(ticket, kept=9, recorded=3)
    assert (5, 3) == (ahead.kept_version, ahead.recorded_version)
    back = marked(ahead, kept=1, recorded=None)
    assert (5, 3) == (back.kept_version, back.recorded_version)
    assert marked(back, kept=None, recorded=5).settled


def test_the_oldest_go_where_too_many_ended() -> None:
    def ended(at_ms: int, *, told: int) -> Ticket:
        return msgspec.structs.replace(
            opened(another()), state=State.CONSUMED, changed_at_ms=at_ms,
            kept_version=told, recorded_version=told,
        )  # fmt: skip

    recent = [ended(LATE + n, told=-1) for n in range(KEPT_MAX - 2)]
    old, untold, oldest = (ended(NOW + n, told=n % 2 - 1) for n in (3, 2, 0))

    assert [oldest] == forgotten([oldest, *recent, untold, old], NOW + 10)
    assert [oldest, old] == forgotten([oldest, *recent, untold, old], NOW + KEPT_MS + 10)
