"""The steps of a decision: merging, gate, revocation, age. Anything but a clear Allow denies."""

from __future__ import annotations

import itertools

import pytest

from services.authorizer import asks
from services.authorizer.asks import Ask, Caller
from services.authorizer.context_gate import covers, gate, reaches
from services.authorizer.decision import (
    Admitted,
    EngineFailed,
    EngineSaid,
    Result,
    Verdict,
    admit,
    conclude,
    identify,
)
from services.authorizer.kill_switch import FLEET, NOTHING, Stops
from services.authorizer.plane_state import Agent, AgentClass, Restriction, Server, Tenant, Tool
from services.authorizer.rates import CountersState, Rated
from services.authorizer.revocations import Revocation, Revocations
from services.authorizer.staleness import Freshness, freshness
from services.common.ids import AgentId, SessionId, TenantId
from tests.fakes import asks as asked
from tests.fakes.control import SCHEMA_HASH as HASH

TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
AGENT = AgentId("0199d0d0-0000-7000-8000-00000000000a")
SESSION = SessionId("session")
FRESH = Freshness("fresh", 1)
PAID = Rated(0, "shared")
NOW_S = 1_800_000_000
SERVER = Server(id="x", domain="filesystem", transport="http")
TOOL = Tool(state="approved", action="read", schema_hash=HASH)


def question() -> Ask:
    wire = asked.ask()
    return asks.decode(wire.request, wire.features, wire.findings, wire.arguments_json)


def caller() -> Caller:
    return Caller(
        tenant=TENANT,
        agent=AGENT,
        session=SESSION,
        transport="http",
        requester_id="",
        requester_channel="",
        issued_at_s=0,
        delegation_presented=False,
        workflow_presented=False,
    )


def agent(status: str = "active", restriction: Restriction | None = None) -> Agent:
    return Agent(
        name="a",
        type="service",
        cls="default",
        status=status,  # type: ignore[arg-type]  # tests go through all of them
        roles=("reader",),
        restriction=restriction,
    )


def tenant(expired_action: str = "deny", **changes: object) -> Tenant:
    values: dict[str, object] = {
        "slug": "acme",
        "policy_revision": "sha256:0",
        "classes": {"default": AgentClass(expired_action=expired_action)},  # type: ignore[arg-type]  # tests go through all of them
        "roles": {"reader": ("filesystem:read",)},
        "agents": {AGENT: agent()},
        "servers": {"files": SERVER},
        "tools": {"files": {"read_file": TOOL}},
        **changes,
    }
    return Tenant(**values)  # type: ignore[arg-type]  # a test's own mapping


def admitted(*intercepts: str) -> Admitted:
    return Admitted(
        agent=agent(),
        server=SERVER,
        permissions=("filesystem:read",),
        action="read",
        category="",
        pinned=True,
        intercepts=intercepts,
    )


def said(result: Result) -> EngineSaid:
    return EngineSaid(
        result=result,
        reason_code=f"policy_{result}",
        reason="",
        codes=(f"policy_{result}",),
        policies=("p",),
        obligations=b"",
        shadow=b"",
        engine="embedded",
        engine_us=5,
    )


def decided(
    tenant: Tenant | None,
    revocations: Revocations | None = None,
    age: Freshness = FRESH,
    *,
    ask: Ask | None = None,
    stops: Stops = NOTHING,
    rated: Rated = PAID,
    now_s: int = NOW_S,
) -> Admitted | Verdict:
    """Steps 1-9."""
    asked_for = ask or question()
    known = identify(
        asked_for,
        caller(),
        tenant,
        stops=stops,
        revocations=revocations or Revocations(),
        age=age,
        now_s=now_s,
    )
    return known if isinstance(known, Verdict) else admit(asked_for, caller(), known, rated)


def reason_of(outcome: Admitted | Verdict) -> str:
    return outcome.reason_code if isinstance(outcome, Verdict) else "admitted"


def test_a_known_agent_with_a_granted_and_pinned_tool_is_admitted() -> None:
    outcome = decided(tenant())

    assert "admitted" == reason_of(outcome)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (tenant(status="suspended"), "tenant_unset"),
        (tenant(agents={}), "agent_unknown"),
        (tenant(agents={AGENT: agent("suspended")}), "agent_suspended"),
        (tenant(agents={AGENT: agent("pending")}), "agent_suspended"),
        (tenant(agents={AGENT: agent("revoked")}), "agent_revoked"),
        (tenant(revoked_sessions={SESSION: 1}), "session_revoked"),
        (tenant(roles={}), "unknown_server"),
        (tenant(servers={}), "unknown_server"),
        (tenant(tools={}), "tool_hidden"),
    ],
)
def test_what_the_bundle_does_not_grant_is_denied(changed: Tenant, reason: str) -> None:
    assert reason == reason_of(decided(changed))


def test_no_tenant_is_denied() -> None:
    assert "tenant_unset" == reason_of(decided(None))


@pytest.mark.parametrize(
    ("action", "reason"),
    [("deny", "policy_expired"), ("intercept", "admitted"), ("serve", "admitted")],
)
def test_an_expired_policy_does_what_the_agents_class_says(action: str, reason: str) -> None:
    expired = Freshness("expired", 90_000)

    outcome = decided(tenant(action), age=expired)

    assert reason == reason_of(outcome)
    if isinstance(outcome, Admitted):
        assert (action == "intercept") == ("policy_expired" in outcome.intercepts)


@pytest.mark.parametrize("result", list(Result))
@pytest.mark.parametrize("earlier", [(), ("policy_expired",)])
def test_deny_beats_intercept_beats_allow_whichever_step_says_it(
    result: Result, earlier: tuple[str, ...]
) -> None:
    verdict = conclude(admitted(*earlier), said(result))

    strongest = Result.INTERCEPT if earlier and result is Result.ALLOW else result
    assert strongest is verdict.result
    if result is not Result.ALLOW:
        assert verdict.codes == (*earlier, f"policy_{result}")


@pytest.mark.parametrize(
    "code",
    [
        "engine_error",
        "engine_invalid",
        "engine_timeout",
        "obligation_unknown",
        "policy_unavailable",
        "revision_mismatch",
        "something_new",
    ],
)
def test_an_engine_without_answer_denies_whatever_came_before(code: str) -> None:
    for earlier in ((), ("policy_expired",)):
        verdict = conclude(admitted(*earlier), EngineFailed(code=code, engine="opa"))

        assert (Result.DENY, code) == (verdict.result, verdict.reason_code)


@pytest.mark.parametrize(
    ("tool", "offered", "permissions", "refusal"),
    [
        (TOOL, HASH, ("filesystem:read",), ""),
        (TOOL, HASH, ("*:read",), ""),
        (TOOL, HASH, ("filesystem:*",), ""),
        (TOOL, HASH, ("filesystem:write",), "tool_hidden"),
        (TOOL, HASH, ("git:read",), "tool_hidden"),
        (TOOL, HASH, (), "tool_hidden"),
        (None, HASH, ("*:*",), "tool_hidden"),
        (Tool(state="hidden", schema_hash=HASH), HASH, ("*:*",), "tool_hidden"),
        (Tool(state="unclassified"), HASH, ("*:*",), "tool_hidden"),
        (Tool(state="changed", schema_hash=HASH), HASH, ("*:*",), "tool_schema_changed"),
        (TOOL, "sha256:other", ("*:*",), "tool_schema_changed"),
        (TOOL, None, ("*:*",), "tool_schema_changed"),
        (Tool(state="approved", action="read"), "", ("*:*",), "tool_schema_changed"),
    ],
)
def test_only_an_approved_pinned_and_granted_tool_is_visible(
    tool: Tool | None, offered: str | None, permissions: tuple[str, ...], refusal: str
) -> None:
    seen = gate(server=SERVER, tool=tool, offered_hash=offered, permissions=permissions)

    assert refusal == seen.refusal


def test_a_blocked_server_hides_all_its_tools() -> None:
    blocked = Server(id="x", domain="filesystem", transport="http", trust="blocked")

    seen = gate(server=blocked, tool=TOOL, offered_hash=HASH, permissions=("*:*",))

    assert "tool_hidden" == seen.refusal


@pytest.mark.parametrize(
    "permission", ["", ":", "filesystem", "filesystem:", ":read", "files*:read"]
)
def test_half_a_permission_grants_nothing(permission: str) -> None:
    assert not covers(permission, "filesystem", "read")


def test_a_server_is_reached_by_any_permission_of_its_domain_and_no_other() -> None:
    assert reaches(("filesystem:write",), "filesystem")
    assert not reaches(("git:read",), "filesystem")


def everything_wrong(**mended: object) -> str:
    """The reason of a call that every early step refuses, but for those that were mended."""
    revoked = Revocations()
    revoked.add(signal(9), active_serial=1)
    values: dict[str, object] = {
        "stops": Stops(frozenset({FLEET})),
        "tenant": tenant(
            status="suspended",
            tools={},
            agents={AGENT: agent(restriction=Restriction(profile="wind_down", until_s=0))},
        ),
        "revocations": revoked,
        "age": Freshness("expired", 90_000),
        "rated": Rated(1_000, "local"),
        **mended,
    }
    return reason_of(decided(**values))  # type: ignore[arg-type]  # a test's own mapping


def test_the_earliest_step_that_refuses_gives_the_reason() -> None:
    """Mends one step after the other: the next one speaks."""
    mended: dict[str, object] = {}
    reasons = [everything_wrong()]
    wound_down = {AGENT: agent(restriction=Restriction(profile="wind_down", until_s=0))}
    for mend in (
        {"stops": NOTHING},
        {"tenant": tenant(tools={}, agents=wound_down)},
        {"revocations": Revocations()},
        {"tenant": tenant(tools={})},
        {"age": FRESH},
        {"rated": PAID},
        {"tenant": tenant()},
    ):
        mended |= mend
        reasons.append(everything_wrong(**mended))

    assert [
        "kill_switch",
        "tenant_unset",
        "agent_suspended",
        "agent_suspended",
        "policy_expired",
        "rate_limited",
        "tool_hidden",
        "admitted",
    ] == reasons


def test_too_many_calls_are_told_when_to_come_back() -> None:
    outcome = decided(tenant(), rated=Rated(1_200, "shared"))

    assert isinstance(outcome, Verdict)
    assert (Result.DENY, "rate_limited", 1_200, "read") == (
        outcome.result,
        outcome.reason_code,
        outcome.retry_after_ms,
        outcome.action,
    )


@pytest.mark.parametrize("counters", ["shared", "local"])
def test_the_envelope_says_whose_counts_these_are(counters: CountersState) -> None:
    outcome = decided(tenant(), rated=Rated(0, counters))

    assert isinstance(outcome, Admitted)
    assert counters == outcome.counters


def signal(min_serial: int) -> Revocation:
    return Revocation(
        signal_id=f"s{min_serial}",
        tenant=TENANT,
        agents=frozenset({AGENT}),
        sessions=frozenset({SESSION}),
        min_serial=min_serial,
    )


def test_a_revocation_holds_until_a_bundle_that_knows_it_is_active() -> None:
    revocations = Revocations()
    revocations.add(signal(5), active_serial=4)
    refused = reason_of(decided(tenant(), revocations))
    revocations.settle(4)
    still = reason_of(decided(tenant(), revocations))
    revocations.settle(5)

    assert ("agent_suspended", "agent_suspended") == (refused, still)
    assert "admitted" == reason_of(decided(tenant(), revocations))


def test_a_revocation_that_the_bundle_knows_already_changes_nothing() -> None:
    revocations = Revocations()
    revocations.add(signal(5), active_serial=5)

    assert not revocations.agent(TENANT, AGENT)
    assert not revocations.session(TENANT, SESSION)


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [(0, "fresh"), (299, "fresh"), (300, "stale"), (86_399, "stale"), (86_400, "expired")],
)
def test_policy_age_has_three_states(age_s: int, expected: str) -> None:
    now_s = 1_800_000_000

    age = freshness(
        confirmed_s=now_s - age_s,
        now_s=now_s,
        mark_s=now_s,
        not_after_s=now_s + 10**7,
        expire_after_s=86_400,
    )

    assert (expected, age_s) == (age.state, age.age_s)


def test_a_bundle_past_its_end_is_expired_and_a_clock_set_back_revives_nothing() -> None:
    end_s = 1_800_000_000

    for now_s, mark_s in itertools.product((end_s, end_s - 10_000), (end_s + 1,)):
        age = freshness(
            confirmed_s=end_s - 10,
            now_s=now_s,
            mark_s=mark_s,
            not_after_s=end_s,
            expire_after_s=86_400,
        )
        assert "expired" == age.state
