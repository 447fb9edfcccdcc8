"""Who may decide an escalation, when it is decided, what an approval is worth: rules as values."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from services.common.ids import AgentId, PlaneId, TenantId
from services.control import escalation_filters, escalation_reports, escalations, signed_decisions
from services.control.escalation_reports import Opened
from services.control.escalations import Circle, Person, Rule, Terms, Ticket, Verdict, Vote
from services.control.problems import Refusal
from services.control.signed_decisions import Decision, DecisionKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TICKET = Ticket(
    state="pending", quorum=1, tier="low", requester="", requester_verified=False, owner=None,
    execute_for_s=900,
)  # fmt: skip
ANN, BOB, EVE = (
    Person(id=name.lower() + "-id", name=name.lower()) for name in ("Ann", "Bob", "Eve")
)


def circle(*people: Person, sole: bool = True) -> Circle:
    return Circle(people=people, sole_operator=sole)


def rule(ticket: Ticket, *people: Person, sole: bool = True) -> Rule:
    return escalations.rule_of(ticket, circle(*people, sole=sole))


def approval(person: Person, uses: int = 1, execute_for_s: int = 900) -> Vote:
    return Vote(user=person.id, verdict="approve", uses=uses, execute_for_s=execute_for_s)


def refusal(ticket: Ticket, rule: Rule, person: Person, *, stepped_up: bool = True) -> str:
    try:
        escalations.check_approval(ticket, rule, user=person.id, stepped_up=stepped_up)
    except Refusal as refused:
        return refused.code
    return ""


def test_anybody_of_the_circle_may_approve_and_nobody_else() -> None:
    allowed = rule(TICKET, ANN, BOB)

    assert ["", "", "self_approval_forbidden"] == [
        refusal(TICKET, allowed, person, stepped_up=False) for person in (ANN, BOB, EVE)
    ]


@pytest.mark.parametrize("named", ["ann-id", "ann", " ANN "])
def test_who_verifiably_asked_does_not_approve(named: str) -> None:
    asked = replace(TICKET, requester=named, requester_verified=True)
    allowed = rule(asked, ANN, BOB)

    assert ["self_approval_forbidden", ""] == [
        refusal(asked, allowed, person) for person in (ANN, BOB)
    ]


def test_a_requester_that_nobody_verified_bars_nobody() -> None:
    """Anybody could name an approver, and so shut them out."""
    asked = replace(TICKET, requester="ann", requester_verified=False)

    assert "" == refusal(asked, rule(asked, ANN, BOB), ANN)


def test_the_agents_owner_does_not_approve() -> None:
    owned = replace(TICKET, owner=ANN.id)
    allowed = rule(owned, ANN, BOB)

    assert ["self_approval_forbidden", ""] == [
        refusal(owned, allowed, person) for person in (ANN, BOB)
    ]


def test_a_lone_operator_may_approve_their_own_agent_stepped_up_and_flagged() -> None:
    owned = replace(TICKET, owner=ANN.id)
    alone = rule(owned, ANN)

    assert ("sole_operator",) == alone.flags
    assert ["step_up_required", ""] == [
        refusal(owned, alone, ANN, stepped_up=stepped_up) for stepped_up in (False, True)
    ]


@pytest.mark.parametrize(
    ("people", "sole"), [((ANN,), False), ((ANN, BOB), True)], ids=["not allowed", "not alone"]
)
def test_otherwise_the_owner_stays_barred(people: tuple[Person, ...], sole: bool) -> None:
    owned = replace(TICKET, owner=ANN.id)
    allowed = rule(owned, *people, sole=sole)

    assert ("self_approval_forbidden", ()) == (refusal(owned, allowed, ANN), allowed.flags)


def test_a_lone_operator_who_verifiably_asked_is_barred_all_the_same() -> None:
    asked = replace(TICKET, requester="ann", requester_verified=True, owner=ANN.id)

    assert "self_approval_forbidden" == refusal(asked, rule(asked, ANN), ANN)


def test_two_must_agree_where_two_are_asked_for() -> None:
    two = replace(TICKET, quorum=2)
    both = rule(two, ANN, BOB)

    assert (2, (), False) == (both.quorum, both.flags, both.step_up)
    assert [None, None, "approve"] == [
        escalations.settled(votes, both)
        for votes in ([], [approval(ANN)], [approval(ANN), approval(BOB)])
    ]


def test_one_suffices_where_there_is_only_one_stepped_up_and_flagged() -> None:
    two = replace(TICKET, quorum=2)
    alone = rule(two, ANN)

    assert (1, ("quorum_reduced",), True) == (alone.quorum, alone.flags, alone.step_up)
    assert "step_up_required" == refusal(two, alone, ANN, stepped_up=False)


def test_three_are_not_replaced_by_two() -> None:
    three = replace(TICKET, quorum=3)
    some = rule(three, ANN, BOB)

    assert (3, None) == (some.quorum, escalations.settled([approval(ANN), approval(BOB)], some))


def test_a_vote_counts_while_its_giver_may_give_it() -> None:
    two = replace(TICKET, quorum=2)
    gone = rule(two, BOB, EVE)  # Ann has left

    assert None is escalations.settled([approval(ANN), approval(BOB)], gone)
    assert [BOB.id] == escalations.approvers([approval(ANN), approval(BOB)], gone)


def test_one_deny_ends_it_whoever_else_agreed() -> None:
    deny = Vote(user=EVE.id, verdict="deny", uses=0, execute_for_s=0)

    assert "deny" == escalations.settled([approval(ANN), deny], rule(TICKET, ANN, BOB))


def test_an_approval_is_worth_the_least_that_was_granted() -> None:
    votes = [approval(ANN, uses=20, execute_for_s=600), approval(BOB, uses=3, execute_for_s=3600)]

    assert Terms(uses=3, execute_for_s=600) == escalations.terms(votes, rule(TICKET, ANN, BOB))


@pytest.mark.parametrize(
    ("tier", "needed"), [("low", False), ("medium", False), ("high", True), ("critical", True)]
)
def test_high_and_critical_risk_need_the_password_again(tier: str, needed: bool) -> None:
    risky = replace(TICKET, tier=tier)
    allowed = rule(risky, ANN, BOB)

    assert needed == allowed.step_up
    assert ("step_up_required" if needed else "") == refusal(risky, allowed, ANN, stepped_up=False)


@pytest.mark.parametrize("state", sorted(escalations.STATES - {"pending"}))
def test_only_what_waits_is_approved(state: str) -> None:
    closed = replace(TICKET, state=state)

    assert "escalation_closed" == refusal(closed, rule(closed, ANN), EVE, stepped_up=False)


@pytest.mark.parametrize(
    ("verdict", "open_in"), [("deny", "pending"), ("cancel", "pending"), ("revoke", "approved")]
)
def test_each_ending_has_its_state(verdict: Verdict, open_in: str) -> None:
    for state in escalations.STATES:
        ticket = replace(TICKET, state=state)
        if state == open_in:
            escalations.check_ending(ticket, verdict)
        else:
            with pytest.raises(Refusal) as refused:
                escalations.check_ending(ticket, verdict)
            assert "escalation_closed" == refused.value.code


@pytest.mark.parametrize(("ago_s", "fresh"), [(0, True), (300, True), (301, False), (-1, False)])
def test_a_step_up_counts_for_five_minutes(ago_s: int, fresh: bool) -> None:
    assert fresh == escalations.is_stepped_up(NOW - timedelta(seconds=ago_s), NOW)
    assert not escalations.is_stepped_up(None, NOW)


@pytest.mark.parametrize(
    ("state", "said", "then"),
    [
        ("pending", "expired", "expired"),
        ("pending", "approved", "approved"),
        ("approved", "consumed", "consumed"),
        ("revoked", "approved", "revoked"),
        ("revoked", "consumed", "consumed"),
        ("denied", "approved", "denied"),
        ("approved", "superseded", "superseded"),
        ("cancelled", "pending", "cancelled"),
    ],
)
def test_the_planes_last_word_is_what_happened(state: str, said: str, then: str) -> None:
    assert then == escalations.state_after_plane(state, said)


# What planes tell ---------------------------------------------------------------------------------

OPENED = Opened(
    id="0199d0d0-0000-7000-8000-000000000001",
    tenant=TenantId("0199d0d0-0000-7000-8000-000000000002"),
    agent=AgentId("0199d0d0-0000-7000-8000-000000000003"), agent_name="a", agent_class="c",
    requester="", requester_verified=False, server="s", tool="t", method="tools/call",
    action="write", category="", resource="", resource_kind="", codes=["policy"], reason="",
    policies=[], features=b"{}", finding_tags=[], binding="b1:x", policy_revision="r", quorum=1,
    tier="low", opened_at_ms=1, decide_by_ms=2, execute_for_s=900,
)  # fmt: skip


def test_an_ordinary_one_is_kept_as_it_was_told() -> None:
    assert OPENED == escalation_reports.opened(OPENED)


@pytest.mark.parametrize(
    "more",
    [
        {"id": "0199D0D0-0000-7000-8000-000000000001"}, {"tenant": ""}, {"agent": "x"},
        {"binding": ""}, {"binding": "\0"}, {"binding": "b" * 257}, {"opened_at_ms": -1},
        {"decide_by_ms": 1 << 62},
    ],
)  # fmt: skip
def test_what_names_nothing_is_not_kept(more: dict[str, Any]) -> None:
    assert None is escalation_reports.opened(replace(OPENED, **more))


# The signed form ----------------------------------------------------------------------------------

DECISION = Decision(
    plane=PlaneId("dp"), tenant=TenantId("t"), escalation="e", binding="b1:x", verdict="approve",
    uses=3, decided_at=NOW, execute_by=NOW + timedelta(minutes=15), approvers=["ann-id"],
)  # fmt: skip


def test_a_decision_has_one_spelling() -> None:
    assert (
        b'{"approvers":["ann-id"],"binding":"b1:x","decided_at_ms":1767225600000,"escalation":"e",'
        b'"execute_by_ms":1767226500000,"plane":"dp","tenant":"t","uses":3,'
        b'"v":"behavry.escalation-decision/1","verdict":"approve"}'
    ) == signed_decisions.payload(DECISION)


def test_a_decision_is_signed_over_exactly_that() -> None:
    key = ECKey.generate_key("P-256")
    token = DecisionKey(private=key, kid="k").sign(DECISION)
    read = jws.deserialize_compact(token, key, algorithms=["ES256"])

    assert signed_decisions.payload(DECISION) == read.payload
    assert {"alg": "ES256", "kid": "k", "typ": "behavry-decision"} == read.headers()
    assert (
        0
        == json.loads(
            signed_decisions.payload(replace(DECISION, verdict="deny", uses=1, execute_by=None))
        )["execute_by_ms"]
    )


# The filter ---------------------------------------------------------------------------------------


def test_a_filter_binds_its_values_and_pastes_none() -> None:
    where = escalation_filters.parse('state:pending,approved -tool:"rm -rf" agent:a\'b', first=4)

    assert (["pending", "approved"], ["rm -rf"], ["a'b"]) == where.bound
    assert where.kept.endswith(
        " AND NOT e.tool = ANY($5::text[])"
        " AND (e.agent_name = ANY($6::text[]) OR e.agent_id::text = ANY($6::text[]))"
    )
    assert ("", "true", ()) == escalation_filters.parse("  ", first=4)


@pytest.mark.parametrize(
    ("text", "narrow"),
    [
        ("state:pending", True),
        ("state:approved,pending", True),
        ("state:pending,expired", False),
        ("-state:pending", False),
    ],
)
def test_what_is_live_is_looked_for_among_what_is_live(text: str, narrow: bool) -> None:
    where = escalation_filters.parse(text, first=4)

    assert narrow == ("e.state IN ('pending', 'approved')" in where.found)
    assert 1 == len(where.bound)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pending", "syntax"),
        ("state:", "syntax"),
        ("colour:red", "unknown_qualifier"),
        ("state:open", "not_allowed"),
        ("tool:,", "missing"),
        (" ".join(["tool:x"] * 21), "too_many"),
    ],
)
def test_a_filter_that_cannot_be_used_is_refused(text: str, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        escalation_filters.parse(text, first=4)

    assert ("invalid_filter", code) == (refused.value.code, refused.value.errors[0].code)
