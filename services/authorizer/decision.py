"""Decides one call: the steps of core.md 6, and the only place where "fail closed" is written.

Pure. Steps 1-5 end at the first Deny; 6-9 all run so that the record shows every reason. I/O comes
in between, from judging.py: the rate's buckets between `identify` and `admit`, the engine (10)
between `admit` and `conclude`, which merges (11). Anything that is not a well-formed Allow of the
engine is a Deny.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, assert_never

from services.authorizer import restriction
from services.authorizer.asks import TOOL_METHOD, Ask, Caller
from services.authorizer.context_gate import Gate, gate, reaches
from services.authorizer.kill_switch import Stops
from services.authorizer.plane_state import Agent, Restriction, Server, Tenant
from services.authorizer.rates import CountersState, Rated
from services.authorizer.revocations import Revocations
from services.authorizer.staleness import Freshness


class Result(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    INTERCEPT = "intercept"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSaid:
    """A well-formed `behavry.decision/1`."""

    result: Result
    reason_code: str
    reason: str
    codes: tuple[str, ...]
    policies: tuple[str, ...]
    obligations: bytes
    shadow: bytes
    engine: str
    engine_us: int
    #: How many people the policies want to agree before a held call may run.
    quorum: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFailed:
    """No usable answer. `code` is a reason code: engine_timeout, policy_unavailable ..."""

    code: str
    engine: str
    engine_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """The ticket behind a verdict: the one that waits, the approval used up, or the one that ended.
    Times are Unix milliseconds, 0 where the clock does not run.
    """

    id: str
    state: str
    decide_by_ms: int
    execute_by_ms: int
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    result: Result
    reason_code: str
    reason: str
    codes: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    obligations: bytes = b""
    shadow: bytes = b""
    engine: str = "precheck"
    engine_us: int = 0
    action: str = "unclassified"
    category: str = ""
    quorum: int = 1
    escalation: Escalation | None = None
    #: After so long the same call may be answered otherwise; 0 where that is not said.
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Who asks, after steps 1-3: alive, not stopped, and held to these restrictions."""

    tenant: Tenant
    agent: Agent
    agent_restriction: Restriction | None
    session_restriction: Restriction | None
    intercepts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What steps 1-9 let through to the engine, and the reasons that they gave on the way."""

    agent: Agent
    server: Server
    permissions: tuple[str, ...]
    action: str
    category: str
    pinned: bool
    intercepts: tuple[str, ...]
    #: The profile of the restriction that holds, the agent's before the session's; empty for none.
    restriction: str = ""
    counters: CountersState = "shared"


#: What a person reads. Codes without a line here are said in words of their own.
REASONS: Final[dict[str, str]] = {
    "kill_switch": "a kill switch is on",
    "tenant_unset": "the tenant is unknown or not active",
    "agent_unknown": "the agent is not registered here",
    "agent_suspended": "the agent is suspended",
    "agent_revoked": "the agent is revoked",
    "session_revoked": "the session has been revoked",
    "policy_missing": "this data plane has no policy yet",
    "policy_expired": "the policy of this data plane is too old",
    "rate_limited": "too many calls: wait before the next one",
    "input_invalid": "the call cannot be described to the policy",
    "unknown_server": "the server is unknown",
    "tool_hidden": "the tool is not available",
    "tool_schema_changed": "the tool's definition changed and waits for approval",
    "delegation_invalid": "delegation tokens are not accepted here",
    "workflow_scope": "workflow sessions are not accepted here",
    "scan_failed": "findings cannot be judged here",
    "restricted": "restricted: the call is outside what is allowed for now",
    "default_deny": "no policy allows the call",
    "engine_error": "the policy could not be evaluated",
    "engine_invalid": "the policy engine gave no usable answer",
    "engine_timeout": "the policy engine took too long",
    "policy_unavailable": "the policy engine cannot be reached",
    "revision_mismatch": "the policy changed while the call was judged",
    "obligation_unknown": "the policy asks for something that cannot be enforced here",
    "capacity": "too many calls wait for a decision",
    "approval_pending": "the call waits for a person's decision",
    "escalation_denied": "a person denied the call",
    "escalation_expired": "nobody decided in time, or the approval was not used in time",
    "escalation_cancelled": "the request for approval was given up",
    "escalation_limit": "too many calls wait for a person's decision",
    "escalation_unavailable": "nobody can be asked for a decision now",
}


def deny(code: str, *, action: str = "unclassified", category: str = "") -> Verdict:
    reason = REASONS.get(code, code.replace("_", " "))
    return Verdict(
        result=Result.DENY,
        reason_code=code,
        reason=reason,
        codes=(code,),
        action=action,
        category=category,
    )


def identify(
    ask: Ask,
    caller: Caller,
    tenant: Tenant | None,
    *,
    stops: Stops,
    revocations: Revocations,
    age: Freshness,
    now_s: int,
) -> Known | Verdict:
    """Steps 1-3. `now_s` is wall time, for restrictions that end."""
    if stops.any and stops.stopped(caller.tenant, tenant, caller.agent, ask.request.server):  # 1
        return deny("kill_switch")
    if tenant is None or tenant.status != "active":  # 2
        return deny("tenant_unset")
    agent = tenant.agents.get(caller.agent)
    session = tenant.restricted_sessions.get(caller.session)
    refusal = _identity_refusal(agent, caller, tenant, revocations)
    if not refusal and agent is not None:
        refusal = _wound_down(agent.restriction, session, now_s)
    if refusal or agent is None:
        return deny(refusal)
    intercepts: tuple[str, ...] = ()
    if age.state == "expired":  # 3
        match tenant.classes[agent.cls].expired_action if agent.cls in tenant.classes else "deny":
            case "deny":
                return deny("policy_expired")
            case "intercept":
                intercepts = ("policy_expired",)
            case "serve":
                pass
            case unknown:
                assert_never(unknown)
    return Known(
        tenant=tenant,
        agent=agent,
        agent_restriction=agent.restriction
        if restriction.holds(agent.restriction, now_s)
        else None,
        session_restriction=session if restriction.holds(session, now_s) else None,
        intercepts=intercepts,
    )


def admit(ask: Ask, caller: Caller, known: Known, rated: Rated) -> Admitted | Verdict:
    """Steps 5-9; the envelope (4) was decoded before. Blast radius (9) has no producer yet."""
    tenant = known.tenant
    if rated.retry_after_ms:  # 5
        return _rate_limited(ask, tenant, rated)
    permissions = tenant.permissions(known.agent)
    server = tenant.servers.get(ask.request.server)
    if server is None or not reaches(permissions, server.domain):
        return deny("unknown_server")
    seen = _gate(ask, tenant, server, permissions)
    if seen.refusal:
        return deny(seen.refusal, action=seen.action, category=seen.category)
    codes = _token_and_finding_codes(ask, caller)  # 6, 7
    outside = _outside(ask, known, server, seen.action)  # 8
    if outside:
        codes.append("restricted")
    if codes:
        first = deny(codes[0], action=seen.action, category=seen.category)
        reason = outside if codes[0] == "restricted" else first.reason
        return replace(first, codes=tuple(codes), reason=reason)
    held = known.agent_restriction or known.session_restriction
    return Admitted(
        agent=known.agent,
        server=server,
        permissions=permissions,
        action=seen.action,
        category=seen.category,
        pinned=seen.pinned,
        intercepts=known.intercepts,
        restriction=held.profile if held else "",
        counters=rated.counters,
    )


def conclude(admitted: Admitted, answer: EngineSaid | EngineFailed) -> Verdict:
    """Step 11: deny > intercept > allow. The earliest step's code is the reason, all are listed."""
    if isinstance(answer, EngineFailed):
        refused = deny(answer.code, action=admitted.action, category=admitted.category)
        return Verdict(
            result=Result.DENY,
            reason_code=refused.reason_code,
            reason=refused.reason,
            codes=(*admitted.intercepts, *refused.codes),
            engine=answer.engine,
            engine_us=answer.engine_us,
            action=admitted.action,
            category=admitted.category,
        )
    result, code, reason = answer.result, answer.reason_code, answer.reason
    if admitted.intercepts and result is not Result.DENY:
        result, code = Result.INTERCEPT, admitted.intercepts[0]
        reason = REASONS.get(code, code)
    codes = tuple(dict.fromkeys((*admitted.intercepts, *answer.codes)))
    return Verdict(
        result=result,
        reason_code=code,
        reason=reason or REASONS.get(code, code),
        codes=codes if result is not Result.ALLOW else (),
        policies=answer.policies,
        obligations=answer.obligations,
        shadow=answer.shadow,
        engine=answer.engine,
        engine_us=answer.engine_us,
        action=admitted.action,
        category=admitted.category,
        quorum=answer.quorum,
    )


def _identity_refusal(
    agent: Agent | None, caller: Caller, tenant: Tenant, revocations: Revocations
) -> str:
    if agent is None:
        return "agent_unknown"
    if agent.status == "revoked":
        return "agent_revoked"
    if agent.status != "active" or revocations.agent(caller.tenant, caller.agent):
        return "agent_suspended"
    if caller.session in tenant.revoked_sessions or revocations.session(
        caller.tenant, caller.session
    ):
        return "session_revoked"
    return ""


def _wound_down(agent: Restriction | None, session: Restriction | None, now_s: int) -> str:
    if restriction.wound_down(agent, now_s):
        return "agent_suspended"
    return "session_revoked" if restriction.wound_down(session, now_s) else ""


def _rate_limited(ask: Ask, tenant: Tenant, rated: Rated) -> Verdict:
    tool = tenant.tools.get(ask.request.server, {}).get(ask.request.tool)
    refused = (
        deny("rate_limited", action=tool.action, category=tool.category)
        if tool
        else deny("rate_limited")
    )
    return replace(refused, retry_after_ms=rated.retry_after_ms)


def _outside(ask: Ask, known: Known, server: Server, action: str) -> str:
    """What the first restriction that refuses has against the call; empty for nothing."""
    for one in (known.agent_restriction, known.session_restriction):
        if one is not None and (why := restriction.refusal(one, ask, server, action)):
            return why
    return ""


def _gate(ask: Ask, tenant: Tenant, server: Server, permissions: tuple[str, ...]) -> Gate:
    if ask.request.method == TOOL_METHOD:
        return gate(
            server=server,
            tool=tenant.tools.get(ask.request.server, {}).get(ask.request.tool),
            offered_hash=ask.request.schema_hash,
            permissions=permissions,
        )
    # Reading a resource or a prompt is a read of the server itself; policy decides.
    refusal = "tool_hidden" if server.trust == "blocked" else ""
    return Gate(refusal=refusal, action="read", category="", pinned=False)


def _token_and_finding_codes(ask: Ask, caller: Caller) -> list[str]:
    """What would have to be judged by a part that this build does not have is refused."""
    codes = []
    if ask.findings.scan != "none" or ask.findings.items:
        codes.append("scan_failed")
    if caller.delegation_presented:
        codes.append("delegation_invalid")
    if caller.workflow_presented:
        codes.append("workflow_scope")
    return codes
