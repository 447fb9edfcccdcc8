"""A licence never stands between an agent and enforcement: every state that it can be in is entered
while agents call, with entitlements killed and away and control restarted in the midst of it. No
decision is another one, no record is lost, no process refuses to start.

What ran is the tool server's own ledger; it, what the agents were told and the chain are compared.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from services.cli import database
from services.cli.state import open_state, recall
from tests.fakes import neighbour
from tests.fakes.children import ROOT, child
from tests.fakes.licenses import DAY_S, license_token, revocations_token
from tests.fakes.stack import Refused, Rest, Stack, running, until
from tests.journeys.agents import META, Agent, register
from tests.journeys.people import signed_in
from tests.journeys.test_plan_reaches_planes import kept
from tests.journeys.test_under_fire import kill, ready
from tests.journeys.traffic import Told, answered, flowing
from tests.journeys.witnesses import compare_all
from tests.promises import promise

LICENSE: Final = "/api/v1/license"
WHY: Final = {"x-behavry-reason": "a journey through all licence states"}
AGENTS: Final = 4
PAUSE_S: Final = 0.03
TOOLS: Final = {"echo": "read", "count": "read"}
POLICY: Final = """package behavry.tenant.t{tenant}.nobody_counts

import rego.v1

verdicts contains {{
	"result": "deny",
	"code": "no_counting",
	"reason": "nobody counts",
	"obligations": [],
}} if {{
	input.request.tool == "count"
}}
"""
RECORDED: Final = """SELECT convert_from(body, 'UTF8')::jsonb ->> 'type' FROM audit.events
WHERE chain = 'admin'"""
REFUSED: Final = f"SELECT 1 FROM audit.rejected_records WHERE tenant_id <> '{neighbour.TENANT}'"
#: All fifteen (entitlements.md 3.2).
STATES: Final = (
    "VALID", "EXPIRING", "GRACE", "EXPIRED", "REVOKED", "NOT_YET_VALID", "ABSENT",
    "LIMIT_EXCEEDED", "CLOCK_SUSPECT", "MALFORMED", "SIGNATURE_INVALID", "UNKNOWN_KEY",
    "PRODUCT_MISMATCH", "SUBJECT_MISMATCH", "FINGERPRINT_MISMATCH",
)  # fmt: skip
#: A state begins within so many seconds, on a machine that is busy with calls.
BEGINS_WITHIN_S: Final = 20
Figure = Callable[[str, object], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """Whoever holds the keys, runs the installation and watches what agents are told."""

    stack: Stack
    boss: Rest
    tenant: str
    told: list[Told]
    #: Of what was activated, in the order of issue.
    issued: list[str] = field(default_factory=list)

    def license(self) -> dict[str, Any]:
        said: dict[str, Any] = self.stack.rest.get(LICENSE)
        return said

    def modes(self) -> dict[str, str]:
        return {one["key"]: one["mode"] for one in self.license()["features"]}

    def token(self, **claims: Any) -> str:
        """Of an Enterprise licence for this tenant, by the key of development."""
        self.issued.append(uuid4().hex)
        iat = int(time.time()) - 3600 + len(self.issued)
        said = {
            "tenant": self.tenant, "plan": "enterprise", "jti": self.issued[-1], "iat": iat,
            "nbf": iat, **claims,
        }  # fmt: skip
        return license_token(now_s=int(time.time()), key=said.pop("key", "dev"), **said)

    def activate(self, token: str) -> None:
        """Whatever it takes: the same key is done once."""
        headers = {"idempotency-key": uuid4().hex}
        body = {"key": token, "replace": True}
        patient(lambda: self.stack.rest.post(f"{LICENSE}/activate", body, headers=headers))

    def refusal(self, token: str) -> str:
        with pytest.raises(Refused) as refused:
            self.activate(token)
        return str(refused.value.body["code"])

    def enters(self, status: str) -> dict[str, Any]:
        """The licence document when it is so; the plane decides by its modes, and calls go on."""
        found: dict[str, Any] = {}

        def is_so() -> bool:
            with contextlib.suppress(Refused, OSError):  # control may be on its way back
                found.update(self.license())
            return found.get("status") == status

        until(is_so, f"the licence is {status}", BEGINS_WITHIN_S)
        modes = {one["key"]: one["mode"] for one in found["features"]}
        until(lambda: kept(self.stack)[1] == modes, "the plane has these modes", BEGINS_WITHIN_S)
        self.calls_go_on()
        return found

    def calls_go_on(self) -> None:
        for one in self.told:
            had = len(one.allowed) + len(one.denied)
            until(lambda: len(one.allowed) + len(one.denied) > had + 3, "calls go on", 20)  # noqa: B023  # called at once


def patient(act: Callable[[], Any]) -> Any:
    """Again while entitlements is too slow to answer in half a second."""
    give_up = time.monotonic() + BEGINS_WITHIN_S
    while True:
        try:
            return act()
        except Refused as refused:
            if refused.status != 503 or time.monotonic() > give_up:
                raise


@pytest.fixture
def stack() -> Iterator[Stack]:
    """One of its own: nobody else's plan may lapse."""
    with (
        tempfile.TemporaryDirectory(prefix="bvj-") as scratch,
        running(Path(scratch) / "s", beside_neighbour=True) as started,
    ):
        yield started


@contextmanager
def office(stack: Stack, ledger: Path) -> Iterator[Office]:
    """Half of the agents call what they may, half what a policy denies, until the block ends."""
    directory = stack.up.state_dir
    grant = ("admin", "grant", "admin", "--confirm", "admin", "--state", directory)
    subprocess.run([sys.executable, "-m", "services.cli", *grant], cwd=ROOT, check=True)
    boss = signed_in(stack).rest
    with child("tests.fakes.mcp_echo", "--ledger", str(ledger)) as (_, server):
        stack.raise_limits()
        stack.add_http_server("plans", server["url"])
        agents = [register(stack, f"caller-{n}", "plans:read") for n in range(AGENTS)]
        first = register(stack, "first", "plans:read")  # whose calls nobody compares
        stack.approve("plans", first.token, TOOLS, category="plans")
        enforce(stack)
        for agent in [first, *agents]:
            until(lambda: TOOLS.keys() <= set(stack.listed("plans", agent.token)), "tools are seen")  # noqa: B023  # called at once
        until(lambda: refused(stack, first), "the policy is in force")
        half = AGENTS // 2
        with (
            flowing(stack, "plans", "echo", agents[:half], pause_s=PAUSE_S) as allowed,
            flowing(stack, "plans", "count", agents[half:], pause_s=PAUSE_S) as denied,
        ):
            until(lambda: answered(allowed) > AGENTS, "calls go through")
            yield Office(stack=stack, boss=boss, tenant=stack.tenant(), told=[*allowed, *denied])


def enforce(stack: Stack) -> None:
    """A rule of the tenant's own: nobody counts."""
    body = {
        "key": "nobody_counts",
        "source": POLICY.format(tenant=stack.tenant().replace("-", "")),
        "tests": [{"name": "no", "input": {"request": {"tool": "count"}}, "expect": "deny"}],
    }
    saved = stack.rest.post("/api/v1/policies", body)
    key = {"idempotency-key": str(saved["id"])}
    stack.rest.post(f"/api/v1/policies/{saved['id']}:enforce", headers=key)


def refused(stack: Stack, agent: Agent) -> bool:
    arguments = {"call": uuid4().hex, "text": "t"}
    answer = stack.ask(
        "plans", agent.token, "tools/call", {"name": "count", "arguments": arguments}
    )
    return META in answer.get("result", {}).get("_meta", {})


@promise("plans:never-in-the-way")
def test_every_licence_state_under_traffic_changes_no_decision_and_loses_no_record(
    stack: Stack, tmp_path: Path, record_property: Figure
) -> None:
    ledger = tmp_path / "ledger"
    with office(stack, ledger) as here:
        states = entered(here)
        lapsed = here.modes()
        faults(here)
        states += more_entered(here)
        here.activate(here.token())
        renewed = here.enters("VALID")

    half = AGENTS // 2
    assert [[]] * half == [list(one.denied) for one in here.told[:half]]
    assert [[]] * half == [one.allowed for one in here.told[half:]]
    assert {"no_counting"} == {reason for one in here.told[half:] for reason in one.reasons()}
    assert [] == [call for one in here.told for call in one.nothing]
    assert "on" not in lapsed.values()
    assert {"on"} == {one["mode"] for one in renewed["features"]}
    for figure, value in compare_all(stack, here.told, ledger).items():
        record_property(figure, value)
    until(lambda: told_in_chain(stack), "the edges are in the chain")
    record_property("states", ",".join(states))
    assert set(STATES) == set(states)


def entered(here: Office) -> list[str]:
    """From in force to the lapse, by time; and every token that is refused."""
    now_s = int(time.time())
    here.activate(here.token())
    here.enters("VALID")
    here.activate(here.token(nbf=now_s + 3600, exp=now_s + 400 * DAY_S))
    scheduled = here.license()["scheduled"]
    assert scheduled["starts_at"] > scheduled["issued_at"]
    here.activate(here.token(exp=now_s + 10 * DAY_S))
    here.enters("EXPIRING")
    here.activate(here.token(limits={"agents": 1}))
    here.enters("LIMIT_EXCEEDED")
    with pytest.raises(Refused) as one_more:
        here.stack.add_agent("one-too-many", [])
    assert "limit_exceeded" == one_more.value.body["code"]
    codes = [here.refusal(token) for token in refused_tokens(here)]
    downgraded(here)
    put(here, "plan", {"plan": "enterprise", "expires_at": in_seconds(2)})
    here.enters("GRACE")
    put(here, "plan", {"plan": "trial", "expires_at": in_seconds(2)})
    here.enters("EXPIRED")
    names = [code.removeprefix("license_").upper() for code in codes]
    return ["VALID", "NOT_YET_VALID", "EXPIRING", "LIMIT_EXCEEDED", *names, "GRACE", "EXPIRED"]


def refused_tokens(here: Office) -> list[str]:
    good = here.token()
    head, body, _ = good.split(".")
    return [
        "not a licence",
        f"{head}.{body}.{here.token().rpartition('.')[2]}",
        here.token(key="nobody"),
        here.token(aud="another product"),
        here.token(tenant=str(uuid4())),
        here.token(fingerprint="0" * 64),
    ]


def downgraded(here: Office) -> None:
    """By a person, at once: the lapse modes of what the lower plan does not have; and one feature
    switched off and on again.
    """
    second = int(time.time())  # of one second, a licence is the later one
    until(lambda: int(time.time()) > second, "the next second")
    put(here, "plan", {"plan": "enterprise"})
    put(here, "plan", {"plan": "professional"})
    modes = here.modes()
    assert ("kept", "tightened", "on") == (
        modes["team_management"], modes["data_protection"], modes["context_gate"],
    )  # fmt: skip
    for wanted, mode in (("disable", "frozen"), ("clear", "on")):
        put(here, "features", {wanted: ["context_gate"]}, method="POST")
        assert mode == here.modes()["context_gate"]
        here.calls_go_on()


def put(here: Office, what: str, body: Mapping[str, Any], *, method: str = "PUT") -> None:
    path = f"/api/v1/tenants/{here.tenant}/{what}"
    patient(lambda: here.boss.call(method, path, body, headers=WHY))


def in_seconds(seconds: int) -> str:
    return f"{datetime.fromtimestamp(int(time.time()) + seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def faults(here: Office) -> None:
    """Lapsed, and entitlements away while control is killed and starts anew."""
    stack, before = here.stack, here.license()
    (entitlements,) = ready(stack, "entitlements")
    os.kill(entitlements, signal.SIGSTOP)
    try:
        kill(stack, "control", here.told)
        away = here.enters("EXPIRED")
        assert away["stale"]
        said = before["features"]
        assert said == away["features"]
    finally:
        os.kill(entitlements, signal.SIGCONT)
    until(lambda: not here.license()["stale"], "control hears again", BEGINS_WITHIN_S)


def more_entered(here: Office) -> list[str]:
    """What an issuer takes back, what somebody wrote into the database, and a clock set back."""
    here.activate(here.token())
    here.enters("VALID")
    now_s = int(time.time())
    here.activate(revocations_token(now_s=now_s, serial=1, revoked=here.issued))
    here.enters("REVOKED")
    in_database(here, "UPDATE entitlements.installation SET clock_mark_s = clock_mark_s + 3600")
    here.activate(here.token(exp=now_s + 200 * DAY_S))
    suspect = here.enters("CLOCK_SUSPECT")
    assert all(one["allowed"] for one in suspect["features"])
    # A licence whose row was edited is as if there were none.
    in_database(
        here,
        "UPDATE entitlements.installation SET clock_mark_s = clock_mark_s - 3600;"
        f"UPDATE entitlements.licenses SET token = token || 'x' WHERE tenant_id = '{here.tenant}'",
    )
    until(lambda: here.license()["license"] is None, "nothing of it is believed", BEGINS_WITHIN_S)
    here.calls_go_on()
    return ["REVOKED", "CLOCK_SUSPECT", "ABSENT"]


def in_database(here: Office, sql: str) -> None:
    """As somebody who has the database; entitlements knows nothing of it and starts anew."""
    (entitlements,) = ready(here.stack, "entitlements")
    os.kill(entitlements, signal.SIGSTOP)
    asked(here.stack, sql)
    kill(here.stack, "entitlements", here.told)


def asked(stack: Stack, sql: str) -> list[Any]:
    """The answer of the database itself."""
    state = open_state(Path(stack.up.state_dir))
    remembered = recall(state)
    dsn = database.address(
        state.root,
        run_dir=Path(remembered.run_dir or state.root / "run"),
        passfiles=state.passfiles,
        named=None,
    )
    assert dsn is not None

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            if not sql.startswith("SELECT"):
                await connection.execute(sql)
                return []
            return [row[0] for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def told_in_chain(stack: Stack) -> bool:
    """The edges and what the lapses changed are where an auditor looks for them."""
    types = set(asked(stack, RECORDED))
    edges = {"license.expiring", "license.grace", "license.lapsed", "entitlement.lapsed"}
    return edges <= types and [] == asked(stack, REFUSED)
