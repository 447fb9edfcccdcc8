"""What a plan's modes change in decisions: nothing that was refused is allowed by a lapse, whatever
the cause (entitlements.md 1 and 2, row E4).

The modes are entitlements' own answers before and after; bundle, authorizer and engine are real.
The same calls are asked under both.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from services.authorizer.app import running
from services.authorizer.settings import AuthorizerSettings
from services.common.clock import SystemClock
from services.common.rpc.client import dial
from services.common.settings import load
from services.control.desired_state import TenantRows
from services.entitlements import effective
from services.proxy.calls import Decision, Result
from services.proxy.clients.decide import read
from tests.fakes.asks import DIGEST, FEATURES, FINDINGS, Decider, ask
from tests.fakes.control import (
    AGENT,
    ENVIRONMENT,
    PLANE,
    SCHEMA_HASH,
    TENANT,
    FakeControl,
    policy,
    rows,
)
from tests.fakes.peers import identity, make_peers
from tests.fakes.plane_desk import PlaneDesk
from tests.promises import promise
from tests.unit.entitlements.naive import DAY, PLAN_GRACE, TABLE
from tests.unit.entitlements.worlds import KEYS, NOW_S, ceiling_of, licence, tenant_of

CAUSES: Final = ("expiry", "downgrade", "override", "revocation")
HELD: Final = """verdicts contains {"result": "intercept", "code": "ask_first", "reason": "ask",
\t"obligations": []} if input.request.tool == "hold_file"
"""
DENIED: Final = """verdicts contains {"result": "deny", "code": "never", "reason": "no",
\t"obligations": []} if input.request.tool == "sign_file"
"""
WATCHED: Final = """verdicts contains {"result": "deny", "code": "watched", "reason": "no",
\t"obligations": []} if input.request.tool == "read_file"
"""
OTHER_AGENT: Final = "0199d0d0-0000-7000-8000-00000000000b"
NOBODY: Final = "0199d0d0-0000-7000-8000-0000000000ff"
#: From what is let through to what is not.
FREEDOM: Final = {Result.DENY: 0, Result.INTERCEPT: 1, Result.ALLOW: 2}
SEVERE: Final = {
    **FINDINGS, "max_severity": "critical", "tags": ["secret:aws_key"], "content_risk": 95,
    "scan": "full",
}  # fmt: skip
#: What agents may ask for, each kind of answer among it.
CALLS: Final[Mapping[str, Mapping[str, Any]]] = {
    "granted": {},
    "of the other agent": {"caller": {"agent_id": OTHER_AGENT}},
    "with many arguments": {
        "features": {**FEATURES, "item_count": 500, "recipient_count": 60, "overflow": True}
    },
    "with a severe finding": {"findings": SEVERE},
    "for a person": {"tool": "hold_file"},
    "refused by a policy": {"tool": "sign_file"},
    "without the permission": {"tool": "delete_file"},
    "unclassified": {"tool": "new_file"},
    "unknown tool": {"tool": "format_disk"},
    "changed tool": {"schema_hash": "sha256:" + "9" * 64},
    "not offered": {"schema_hash": None},
    "unknown server": {"server": "nowhere"},
    "unknown agent": {"caller": {"agent_id": NOBODY}},
    "unknown tenant": {"caller": {"tenant_id": NOBODY}},
    "revoked session": {"caller": {"session_id": NOBODY}},
    "arguments left out": {"arguments": b"", "arguments_omitted": True},
}


def approved(action: str, **more: Any) -> dict[str, Any]:
    tool = {
        "state": "approved", "action": action, "category": "", "allow_tags": [],
        "schema_hash": SCHEMA_HASH,
    }  # fmt: skip
    return {**tool, **more}


@cache
def configured() -> TenantRows:
    """A tenant that uses what is built: classified tools, policies, roles, a revoked session."""
    read = approved("read")
    tools = {
        "read_file": read, "hold_file": read, "sign_file": read,
        "delete_file": approved("delete"), "new_file": approved("read", state="unclassified"),
    }  # fmt: skip
    one = rows().agents[AGENT]
    held = rows().limits
    fast = ("agent_per_minute", "agent_burst", "tenant_per_minute")
    rates = {**held["rates"], **dict.fromkeys(fast, 1_000_000)}
    return rows(
        tools={"files": tools},
        agents={AGENT: one, OTHER_AGENT: {**one, "name": "other", "roles": []}},
        policies=[
            policy(TENANT, "ask_first", HELD),
            policy(TENANT, "never", DENIED),
            policy(TENANT, "watched", WATCHED, state="shadow"),
        ],
        revoked_sessions={NOBODY: 2**40},
        limits={**held, "rates": rates},
    )


def lapsed(key: str, cause: str) -> tuple[dict[str, str], dict[str, str]]:
    """The 17 modes before and after the feature was lost."""
    own = licence(plan="enterprise")
    tenant: dict[str, Any] = {
        "plan": "enterprise", "ends": None, "since": NOW_S - DAY, "rows": [], "had": [],
        "licences": [own] if cause == "revocation" else [],
    }  # fmt: skip
    before = view(tenant)
    tenant["had"] = sorted(key for key, mode in before.items() if mode == "on")
    match cause, TABLE[key][0]:
        case "expiry", _:
            tenant["ends"] = NOW_S - PLAN_GRACE["enterprise"]
        case "downgrade", "enterprise":
            tenant["plan"] = "professional"
        case "downgrade", "professional":
            tenant["plan"] = "trial"
        case "downgrade", _:  # there is no plan below: it is lost by the trial's end alone
            tenant["plan"], tenant["ends"] = "trial", NOW_S
        case "override", _:
            tenant["rows"] = [{"key": key, "effect": "disable", "starts": NOW_S, "ends": None}]
        case _:
            own["revoked"] = True
    return before, view(tenant)


def view(tenant: Mapping[str, Any]) -> dict[str, str]:
    ceiling = ceiling_of({"licences": [], "development": True})
    seen = effective.view(tenant_of(dict(tenant)), ceiling, NOW_S)
    return {answer.feature: answer.mode for answer in seen.answers}


@dataclass(slots=True, kw_only=True)
class Plane:
    """A real authorizer that is given one bundle after the other."""

    control: FakeControl
    desk: PlaneDesk
    decider: Decider
    clock: SystemClock = field(default_factory=SystemClock)

    async def under(self, modes: Mapping[str, str]) -> dict[str, tuple[int, str, str]]:
        """What each call is answered when a bundle with these modes is in force."""
        self.control.publish(configured(), now_s=self.clock.now_ns() // 10**9, modes=modes)
        self.desk.notify(self.control.serial)
        while (await self._ask(ask()))[0].revision.bundle_serial < self.control.serial:
            pass
        decisions = await self._ask(*(ask(**changes) for changes in CALLS.values()))
        assert {self.control.serial} == {one.revision.bundle_serial for one in decisions}
        return {
            name: (FREEDOM[one.result], one.reason_code, ",".join(sorted(one.codes)))
            for name, one in zip(CALLS, decisions, strict=True)
        }

    async def _ask(self, *asks: Any) -> list[Decision]:
        return [read(verdict, DIGEST) for verdict in await self.decider.ask(*asks)]


@asynccontextmanager
async def plane(state: Path) -> AsyncIterator[Plane]:
    control, desk = FakeControl(state), PlaneDesk()
    control.write_files()
    peers = make_peers(state / "peers")
    (state / "run").mkdir()
    control.publish(configured(), now_s=SystemClock().now_ns() // 10**9)
    async with control.serving(), desk.serving(state / "run" / "control.sock"):
        env = {
            "BEHAVRY_STATE_DIR": str(state),
            "BEHAVRY_ENV": "development",
            "BEHAVRY_PLANE_ID": PLANE,
            "BEHAVRY_ENVIRONMENT": ENVIRONMENT,
            "BEHAVRY_CONTROL_PUBLIC_URL": control.url,
            "BEHAVRY_AUTHORIZER_ENGINE": "embedded",
        }
        async with (
            running(load(AuthorizerSettings, env)) as serving,
            dial(serving.address, identity(peers, "proxy")) as link,
            Decider(link) as decider,
        ):
            await desk.until_connected(1)
            yield Plane(control=control, desk=desk, decider=decider)


@pytest.mark.needs_regorus
@promise("plans:never-in-the-way")
async def test_no_call_is_allowed_more_after_a_lapse_than_before_whatever_the_cause() -> None:
    answers: dict[str, dict[str, tuple[int, str, str]]] = {}
    with tempfile.TemporaryDirectory(prefix="bvc-") as directory:
        async with plane(Path(directory)) as real:

            async def under(modes: Mapping[str, str]) -> dict[str, tuple[int, str, str]]:
                """Equal modes make an equal bundle: asked once."""
                name = repr(sorted(modes.items()))
                if name not in answers:
                    answers[name] = await real.under(modes)
                return answers[name]

            compared, changed = 0, []
            for key in KEYS:
                for cause in CAUSES:
                    before, after = lapsed(key, cause)
                    assert ("on", TABLE[key][1]) == (before[key], after[key])
                    was, now = await under(before), await under(after)
                    compared += 1
                    assert all(now[call][0] <= was[call][0] for call in CALLS)
                    changed += [(key, cause, call) for call in CALLS if now[call] != was[call]]
            # A mode that is missing or unknown: what is configured is enforced.
            was = await under(dict.fromkeys(KEYS, "on"))
            assert was == await under({}) == await under(dict.fromkeys(KEYS, "not a mode"))

    assert 17 * 4 == compared
    assert [] == changed  # no feature that is built decides otherwise by its mode
    assert {0, 1, 2} == {freedom for freedom, _, _ in was.values()}
    assert (2, 1, 0) == tuple(was[call][0] for call in ("granted", "for a person", "unclassified"))
