"""What a tenant may use, worked out once more: slowly, from the tables as they are written, sharing
nothing with the service but the words. The service's answers are held against this.

Everything is plain dicts. A licence: `plan, says {key: bool}, iat, nbf, exp, grace, since, revoked,
id`; a tenant: `plan, ends, since, licences, rows, had`; an installation: `licences, development`.
"""

from __future__ import annotations

from typing import Any

DAY = 86_400
# key: (plan, what it becomes)
TABLE: dict[str, tuple[str, str]] = {
    "community_library": ("trial", "stopped"),
    "custom_dlp_patterns": ("trial", "frozen"),
    "behavioral_baselines": ("trial", "stopped"),
    "inbound_rules": ("professional", "frozen"),
    "context_gate": ("professional", "frozen"),
    "blast_radius": ("professional", "frozen"),
    "cost_attribution": ("professional", "stopped"),
    "siem_webhooks": ("professional", "kept"),
    "discovery_connectors": ("professional", "stopped"),
    "human_governance": ("professional", "frozen"),
    "delegation_chains": ("enterprise", "frozen"),
    "workflow_governance": ("enterprise", "frozen"),
    "data_protection": ("enterprise", "tightened"),
    "policy_writer_ai": ("enterprise", "stopped"),
    "compliance_modules": ("enterprise", "frozen"),
    "saml_sso": ("enterprise", "kept"),
    "team_management": ("enterprise", "kept"),
}
LADDER = ["trial", "professional", "enterprise"]
PLAN_GRACE = {"trial": 0, "professional": 14 * DAY, "enterprise": 14 * DAY}


def in_plan(key: str, plan: str) -> bool:
    return TABLE[key][0] in LADDER[: LADDER.index(plan) + 1]


def phase(end: int | None, grace: int, now: int) -> str:
    if end is None or now < end:
        return "force"
    if now < end + grace:
        return "grace"
    return "lapsed"


def phase_of(licence: dict[str, Any], now: int) -> str:
    if licence["revoked"]:
        return "revoked"
    if now < licence["nbf"]:
        return "ahead"
    return phase(licence["exp"], licence["grace"], now)


def pick(licences: list[dict[str, Any]], now: int) -> dict[str, Any] | None:
    for wanted in ("force", "grace", "lapsed", "revoked"):
        found = [one for one in licences if phase_of(one, now) == wanted]
        if found:
            newest = max(one["iat"] for one in found)
            return min((one for one in found if one["iat"] == newest), key=lambda one: one["id"])
    return None


def override(rows: list[dict[str, Any]], key: str, now: int) -> str | None:
    """Rows are in the order in which they were added."""
    for row in reversed(rows):
        if row["key"] == key and row["starts"] <= now:
            over = row["ends"] is not None and row["ends"] <= now
            return None if over or row["effect"] == "clear" else row["effect"]
    return None


def answer(
    tenant: dict[str, Any], installation: dict[str, Any], key: str, now: int
) -> tuple[bool, str, str]:
    """(allowed, mode, source)."""
    allowed, source = entitled(tenant, installation, key, now, forgiving=False)
    if allowed:
        return True, "on", source
    had = key in tenant["had"] or entitled(tenant, installation, key, now, forgiving=True)[0]
    return False, TABLE[key][1] if had else "off", source


def entitled(
    tenant: dict[str, Any], installation: dict[str, Any], key: str, now: int, *, forgiving: bool
) -> tuple[bool, str]:
    own = pick(tenant["licences"], now)
    cap = pick(installation["licences"], now)
    own_phase = phase_of(own, now) if own else "none"
    cap_phase = phase_of(cap, now) if cap else "none"
    if forgiving:  # as if nothing had ended
        own_phase = "force" if own else "none"
        cap_phase = "force" if cap else "none"
    own_says = own["says"].get(key) if own and own_phase in {"force", "grace"} else None
    cap_says = cap["says"].get(key) if cap and cap_phase in {"force", "grace"} else None

    # What is the highest that anybody may have here?
    if cap is not None:
        inside = cap["says"].get(key, in_plan(key, cap["plan"]))
        top = cap["plan"]
    elif installation["development"]:
        inside, top = True, "enterprise"
    else:
        inside, top = in_plan(key, "trial"), "trial"

    # Which plan, and since when is it how it is?
    if own and max(own["since"], own["nbf"]) >= tenant["since"]:
        plan, plan_phase = own["plan"], own_phase
    else:
        plan = tenant["plan"]
        plan_phase = "force" if forgiving else phase(tenant["ends"], PLAN_GRACE[plan], now)
    if LADDER.index(plan) > LADDER.index(top):
        plan = top

    said = override(tenant["rows"], key, now)
    if own_says is False or cap_says is False:
        return False, "license"
    if said == "disable" and not forgiving:
        return False, "override"
    if cap_phase in {"lapsed", "revoked"}:
        return False, "plan"
    if said == "enable" and inside:
        return True, "override"
    if (own_says or cap_says) and inside:
        fresh = (own_says and own_phase == "force") or (cap_says and cap_phase == "force")
        return True, "license" if fresh and cap_phase != "grace" else "grace"
    if plan_phase in {"force", "grace"} and in_plan(key, plan):
        return True, "grace" if "grace" in {plan_phase, cap_phase} else "plan"
    return False, "plan"
