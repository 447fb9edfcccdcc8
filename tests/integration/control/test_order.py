"""Who is refused what, first: every route, everybody, each plan and mode, either tenant's path,
bodies that are none. What is right stands in route_table.py, by hand; the order, here.

401, 404 of the path's tenant, 403 of the page, the role, the person, the feature, 400 of key and
reason, and only then anything of the body or the resource (control.md 2.1, entitlements.md 8).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from uuid import uuid4

import asyncpg
import pytest

from services.common.ids import TenantId
from services.control.api import openapi
from services.control.api.routers import ROUTERS
from services.control.features import Entitlements, FeatureAnswer
from services.control.problems import CATALOGUE
from tests.integration.control import neighbour
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.door import Door
from tests.integration.control.principals import NOBODY, Registry, Who
from tests.integration.control.route_table import (
    CORE,
    FEATURES,
    GATED,
    LEVELS,
    MODES,
    PLANS,
    RULES,
    Rule,
)
from tests.integration.control.test_problems import check
from tests.promises import promise

#: The tenant that the path names; "": it names none.
Path = Literal["", "own", "other", "gone"]
GONE: Final = "00000000-0000-7000-8000-000000000000"
JSON: Final = {"content-type": "application/json"}
#: What guards say, and readers of bodies. Whoever is admitted hears none of it.
FIRST: Final = frozenset({
    "unauthenticated", "session_expired", "csrf_failed", "role_required", "human_required",
    "step_up_required", "feature_not_included", "idempotency_key_required", "reason_required",
    "malformed_json",
})  # fmt: skip
#: Their bodies are forms.
FORMS: Final = {
    "/api/v1/auth/token", "/api/v1/auth/backchannel-logout", "/api/v1/auth/device/authorize",
    "/api/v1/auth/device/token",
}  # fmt: skip
ADMITTED: Final = frozenset({"admitted"})
#: What a request ended or closed, of whoever asks.
_UNDONE: Final = (
    "UPDATE control.user_sessions SET ended_at = NULL WHERE tenant_id <> $1",
    "UPDATE control.tenants SET status = 'active' WHERE id <> $1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a tenant's plan gives. `mode` "": what the plan says by itself; None: nothing known."""

    plan: str
    mode: str | None = ""

    def mode_of(self, feature: str) -> str:
        if self.mode is None:
            return "off"
        included = PLANS.index(self.plan) >= PLANS.index(FEATURES[feature])
        return self.mode or ("on" if included else "off")

    def told(self, tenant: TenantId, revision: int) -> Entitlements:
        return Entitlements(
            tenant=tenant,
            plan=self.plan,
            status="VALID",
            plan_expires_at_s=None,
            revision=revision,
            features=tuple(
                FeatureAnswer(
                    key=key,
                    allowed=self.mode_of(key) == "on",
                    mode=self.mode_of(key),
                    source="PLAN",
                    required_plan=plan,
                )
                for key, plan in FEATURES.items()
            ),
        )


STATES: Final = (
    *(State(plan=plan) for plan in PLANS),
    *(State(plan="professional", mode=mode) for mode in MODES),
    State(plan="", mode=None),
)
NOTHING: Final = State(plan="trial", mode="off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    rule: Rule
    who: Who
    path: Path = ""
    keyed: bool = True
    broken: bool = False
    states: dict[str, State] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f" in {self.path}" if self.path else ""
        more = "" if self.keyed else " keyless"
        state = self.states.get(self.plan_of)
        return f"{self.rule.key}{where} by {self.who.name}{more}, {state}, broken={self.broken}"

    @property
    def visits(self) -> bool:
        return self.path != ""

    @property
    def plan_of(self) -> str:
        """Whose plan counts: the path's, else that of the sender."""
        return self.path or self.who.home

    @property
    def bypasses(self) -> bool:
        """Whether the plan does not allow it, for all but super-admins."""
        if not self.rule.feature:
            return False
        mode = self.states.get(self.plan_of, NOTHING).mode_of(self.rule.feature)
        return self.rule.what not in MODES[mode]

    @property
    def target(self) -> str:
        return re.sub(r"\{(\w+)\}", self._filler, self._prefixed)

    @property
    def _prefixed(self) -> str:
        if not self.visits or self.rule.names_tenant:
            return self.rule.path
        return self.rule.path.replace("/api/v1/", "/api/v1/tenants/{tenant_id}/", 1)

    def _filler(self, named: re.Match[str]) -> str:
        if named[1] == "tenant_id":
            return f"<{self.path}>"
        return GONE if named[1].endswith("_id") and named[1] != "key_id" else "gone"


def first_refusals(ask: Ask) -> frozenset[str]:
    """What may be said first; "admitted": nothing of this. The numbers are the order."""
    rule, who = ask.rule, ask.who
    if rule.level == "nobody":
        return frozenset({"not_found"}) if ask.visits else ADMITTED
    unseen = ask.path == "gone" or (ask.path not in {"", who.home} and not who.operator)
    visiting = ask.visits and (rule.human or rule.lasts)
    keyless = rule.keyed and not ask.keyed
    unexplained = (ask.visits or ask.bypasses) and not who.reason
    steps = (
        (who is NOBODY, {"unauthenticated"}),  # 1
        (unseen, {"not_found"}),  # 2
        (not who.own_page and rule.method != "GET", {"csrf_failed"}),  # 3
        (not _role_suffices(ask), {"role_required"}),  # 4
        ((rule.human and not who.human) or visiting, {"human_required"}),  # 5
        (rule.fresh and who.human and not who.fresh, {"step_up_required"}),
        (ask.bypasses and not who.operator, {"feature_not_included"}),  # 6
        (keyless and unexplained, {"idempotency_key_required", "reason_required"}),  # 7
        (keyless, {"idempotency_key_required"}),
        (unexplained, {"reason_required"}),
        (rule.reads and ask.broken, {"malformed_json"}),  # 8
    )
    return next((frozenset(said) for applies, said in steps if applies), ADMITTED)


def _role_suffices(ask: Ask) -> bool:
    """Super-admins alone visit, and are admins where they do."""
    rule, who = ask.rule, ask.who
    if (ask.visits or rule.level == "super_admin") and not who.operator:
        return False
    if who.scopes:
        resource = rule.path.split("/")[3].partition(":")[0]
        reading = rule.method == "GET"
        good = {resource, f"{resource}:read"} if reading else {resource}
        if not good & set(who.scopes) and not (resource == "me" and reading):
            return False
    return rule.level == "super_admin" or ask.visits or who.level >= LEVELS[rule.level]


@dataclass(kw_only=True)
class Everyone:
    """Two tenants, everybody in them, and the door."""

    rest: Rest
    door: Door
    connection: asyncpg.Connection[asyncpg.Record]
    tenants: dict[str, TenantId]
    people: list[Who]
    visitors: list[Who]
    operators: list[Who]
    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    #: Records that are due: a tenant; a tenant, a feature and its mode.
    visits: Counter[str] = field(default_factory=Counter)
    bypasses: Counter[str] = field(default_factory=Counter)
    _revision: int = 1

    def plans(self, **states: State) -> dict[str, State]:
        features = self.rest.running.control.features
        self._revision += 1
        for home, state in states.items():
            if state.mode is None:
                features.forget(self.tenants[home], self._revision)
            else:
                features.update(state.told(self.tenants[home], self._revision))
        return states

    async def check(self, ask: Ask) -> None:
        target = ask.target
        for name, tenant in self.tenants.items():
            target = target.replace(f"<{name}>", tenant)
        headers = JSON | ask.who.headers
        if ask.keyed:
            headers["idempotency-key"] = str(uuid4())
        body = (b"{" if ask.broken else b"{}") if ask.rule.method != "GET" else None
        sees = ask.who.operator and ask.rule.of_all_tenants
        answer = await self.door.ask(ask.rule.method, target, headers, body, sees_neighbour=sees)
        expected = first_refusals(ask)
        said = (answer.json or {}).get("code", "")
        if self._fits(ask, answer, said, expected):
            self.verdicts[said if said in expected else "admitted"] += 1
        else:
            self.wrong.append(f"{ask}: {answer.status} {said}, not {sorted(expected)}")
        if expected <= {"malformed_json", "admitted"} and ask.who.operator:
            tenant = self.tenants[ask.plan_of]
            self.visits[tenant] += ask.visits
            if ask.bypasses:
                mode = ask.states[ask.plan_of].mode_of(ask.rule.feature)
                self.bypasses[f"{tenant} {ask.rule.feature} {mode}"] += 1
        if expected == ADMITTED and ask.rule.ends:
            await self._undo()

    def _fits(self, ask: Ask, answer: Answered, said: str, expected: frozenset[str]) -> bool:
        if expected == ADMITTED:
            is_list = ask.rule.method == "GET" and not ask.rule.path.endswith("}")
            found = not is_list or "{" in ask.rule.path or answer.status in {200, 503}
            wrong_proof = ask.rule.path == "/api/v1/auth/step-up" and said == "step_up_required"
            return (said not in FIRST or wrong_proof) and found
        if said not in expected or answer.status != CATALOGUE[said][0]:
            return False
        check(answer)  # each refusal is a whole problem document
        return said != "feature_not_included" or self._told(ask, answer)

    def _told(self, ask: Ask, answer: Answered) -> bool:
        """What a refusal says of the plan (entitlements.md 8)."""
        state, feature, said = ask.states[ask.plan_of], ask.rule.feature, answer.json
        known = state.mode is not None
        return bool(
            (said["feature"], said["mode"]) == (feature, state.mode_of(feature))
            and said["current_plan"] == state.plan
            and said["required_plan"] == (FEATURES[feature] if known else "")
            and said["revision"] == (self._revision if known else 0)
        )

    async def _undo(self) -> None:
        for statement in _UNDONE:
            await self.connection.execute(statement, neighbour.TENANT)

    async def recorded(self, type: str, *named: str) -> Counter[str]:
        """The records of a type, by what they name."""
        found = [record for record in await self.rest.records() if record["type"] == type]
        return Counter(" ".join(record[name] for name in named) for record in found)

    async def check_records(self) -> None:
        """One for each visit and each bypass, in the tenant that it was in (C-BYP)."""
        assert self.visits == await self.recorded("admin.superadmin.access", "tenant")
        bypasses = await self.recorded("entitlement.bypass", "tenant", "feature", "mode")
        assert self.bypasses == bypasses


@pytest.fixture
async def everyone(rest: Rest) -> AsyncIterator[Everyone]:
    connection = await asyncpg.connect(rest.database.admin_dsn)
    other = TenantId(str(uuid4()))
    await connection.execute(
        "INSERT INTO control.tenants (id, slug, name, status, created_at)"
        " VALUES ($1, 'second', 'Second', 'active', now())",
        other,
    )
    tenants = {"own": rest.running.tenant.id, "other": other, "gone": TenantId(GONE)}
    made = Registry(connection=connection, rest=rest, tenants=tenants)
    runs = await made.person("operator", "viewer", operator=True)
    guest = await made.person("operator of elsewhere", "viewer", "other", operator=True)
    admin = await made.person("admin-", "admin")
    machine = await made.machine("machine", "admin")
    foreign = await made.person("admin of elsewhere", "admin", "other")
    forged = await made.person("another page", "admin", browser=True, own_page=False)
    operators = [runs, runs.with_reason(), guest.with_reason()]
    yield Everyone(
        rest=rest,
        door=Door(rest),
        connection=connection,
        tenants=tenants,
        people=[
            NOBODY,
            *[await made.person(f"{role}-", role) for role in LEVELS if role != "admin"],
            admin,
            await made.person("admin in a browser", "admin", browser=True),
            forged,
            await made.person("admin of long ago", "admin", fresh=False),
            *[await made.machine(f"{role} machine", role) for role in LEVELS if role != "admin"],
            machine,
            await made.machine("machine for agents", "admin", "own", "agents", "users:read"),
            foreign,
            await made.machine("machine of elsewhere", "admin", "other"),
            *operators,
        ],
        visitors=[
            NOBODY, admin, machine, foreign, forged, *operators,
            await made.person(
                "operator on another page", "admin", operator=True, browser=True, own_page=False
            ),
            (
                await made.person("operator of long ago", "admin", operator=True, fresh=False)
            ).with_reason(),
        ],
        operators=operators,
    )  # fmt: skip
    await connection.close()


def asks(everyone: Everyone, rule: Rule, states: dict[str, State]) -> Iterator[Ask]:
    """Everybody, wherever the route can be, with each body and with and without a key."""
    paths: list[Path] = ["own", "other", "gone"] if rule.names_tenant or rule.can_be_inside else []
    places: list[tuple[Path, list[Who]]] = [(path, everyone.visitors) for path in paths]
    if not rule.names_tenant and rule.level != "nobody":
        places.append(("", everyone.people))
    for path, people in places:
        for who in people:
            for broken in (True, False) if rule.reads else (False,):
                for keyed in (True, False) if rule.keyed else (False,):
                    yield Ask(
                        rule=rule, who=who, path=path, keyed=keyed, broken=broken, states=states
                    )


def test_each_route_is_in_the_table_and_each_line_is_a_route() -> None:
    found = {
        f"{method} {route.path_format}"
        for route in openapi.api_routes(ROUTERS)
        for method in route.methods or ()
    }
    named = Counter(rule.key for rule in RULES)

    assert found == set(named)
    assert {1} == set(named.values())


async def test_what_is_said_of_each_route_is_what_the_table_says(rest: Rest) -> None:
    described = (await rest.get("/openapi.json", key=None)).json["paths"]
    shown = [rule for rule in RULES if rule.path in described]
    assert len(shown) > 100
    for rule in shown:
        one = described[rule.path][rule.method.lower()]
        keyed = any(p["name"] == "Idempotency-Key" for p in one.get("parameters", ()))
        required = one["x-required-role"] or "nobody"
        human = one.get("x-requires-human", False)
        assert (rule.level, rule.feature, rule.keyed) == (
            required, one.get("x-required-feature", ""), keyed,
        ), rule.key  # fmt: skip
        assert one.get("x-requires-step-up", False) is rule.fresh, rule.key
        assert human is (rule.human or rule.level == "super_admin"), rule.key
        if rule.path not in FORMS:
            assert rule.reads is ("requestBody" in one), rule.key


def test_a_feature_gates_what_is_under_its_addresses_and_nothing_else() -> None:
    for rule in RULES:
        under = {
            feature
            for feature, addresses in GATED.items()
            for address in addresses
            if re.match(rf"/api/v1/{address}(?![a-z-])", rule.path)
        }
        expected = set() if rule.key in CORE else under
        assert {rule.feature} - {""} == expected, rule.key


@promise("api:order-of-refusals")
async def test_every_route_refuses_everybody_in_the_right_order(everyone: Everyone) -> None:
    """With every feature off: whatever is of the core works on."""
    states = everyone.plans(own=NOTHING, other=NOTHING)
    for rule in RULES:
        for ask in asks(everyone, rule, states):
            await everyone.check(ask)

    assert "" == "\n".join(everyone.wrong[:50])
    assert FIRST - {"session_expired"} <= set(everyone.verdicts)
    assert sum(everyone.verdicts.values()) > 4_000
    await everyone.check_records()
    assert everyone.visits.total() > 500
    assert everyone.bypasses.total() > 20


@promise("api:order-of-refusals")
async def test_a_gated_route_follows_the_plan_of_its_tenant_in_every_mode(
    everyone: Everyone,
) -> None:
    """The other tenant is in another state each time: whose plan it is shows."""
    everyone.people = [one for one in everyone.people if one.level in {1, 4} and one.own_page]
    everyone.visitors = [one for one in everyone.visitors if one.operator and one.own_page]
    gated = [rule for rule in RULES if rule.feature]
    for place, state in enumerate(STATES):
        states = everyone.plans(own=state, other=STATES[(place + 4) % len(STATES)])
        for rule in gated:
            for ask in asks(everyone, rule, states):
                await everyone.check(ask)
        await everyone.check_records()

    assert "" == "\n".join(everyone.wrong[:50])
    assert sum(everyone.verdicts.values()) > 3_000
    assert everyone.bypasses.total() > 200


@promise("people:role-counts-at-once")
async def test_a_role_that_is_lost_is_lost_at_every_route_with_the_next_request(
    everyone: Everyone,
) -> None:
    """Through two doors, which share what is in the database alone."""
    rest, doors = everyone.rest, (everyone.door, Door(everyone.rest))
    states = everyone.plans(own=State(plan="enterprise"), other=NOTHING)
    [anna] = [one for one in everyone.people if one.name == "admin-"]
    user = await everyone.connection.fetchval(
        "SELECT id FROM control.users WHERE username = $1", anna.name
    )
    path = f"/api/v1/users/{user}"

    assert 200 == (await rest.call("PATCH", path, {"role": "viewer"})).status
    demoted = replace(anna, level=LEVELS["viewer"])
    rules = [rule for rule in RULES if rule.level != "nobody" and not rule.names_tenant]
    for everyone.door in doors:
        for rule in rules:
            await everyone.check(Ask(rule=rule, who=demoted, states=states, broken=True))
    assert "" == "\n".join(everyone.wrong[:50])
    assert everyone.verdicts["role_required"] > 80

    assert 200 == (await rest.post(f"{path}:deactivate")).status
    gone = Counter[int]()
    for door in doors:
        for rule in rules:
            target = Ask(rule=rule, who=anna, states=states).target
            gone[(await door.ask(rule.method, target, JSON | anna.headers, b"{")).status] += 1

    assert {401} == set(gone)


def test_the_table_has_each_feature_and_each_mode() -> None:
    """entitlements.md 1 and 2."""
    assert 17 == len(FEATURES) == len(GATED)
    assert [3, 7, 7] == [list(FEATURES.values()).count(plan) for plan in PLANS]
    assert 6 == len(MODES)
