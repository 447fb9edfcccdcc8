"""Two tenants that have of everything the same, and everybody of the one at every route with what
is the other's: ids in paths and bodies, names, filters, tokens of pages. Nothing of it is seen,
what is there is as unknown as what is not, and none of its rows changes.

That what is looked for could be seen at all, the other tenant's own admin shows by the same routes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import orjson
import pytest

from services.common.ids import TenantId
from tests.integration.control.conftest import Answered
from tests.integration.control.door import Door
from tests.integration.control.people import entitle
from tests.integration.control.principals import NOBODY, Registry, Who
from tests.integration.control.route_table import LEVELS, RULES, Rule
from tests.integration.control.samples import HASH, World
from tests.integration.control.second_tenant import MARK, Neighbour, state_of
from tests.integration.control.test_every_route import world
from tests.integration.control.test_order import ADMITTED, FORMS, Ask, State, first_refusals
from tests.integration.control.test_policies import source
from tests.integration.control.test_second_tenant import MOVING, OF, one_of_everything
from tests.promises import promise

__all__ = ["world"]

pytestmark = pytest.mark.needs_regorus

JSON: Final = {"content-type": "application/json", "if-match": "*"}
ALL: Final = {home: State(plan="enterprise", mode="on") for home in ("own", "other")}
#: How many rows of a table are tried, of each.
TRIED: Final = 2
#: What filters can name, each with what the other tenant has.
QUALIFIERS: Final = ("agent", "server", "tool", "class", "code", "tier", "state", "action")
FILTERED: Final = frozenset({"/api/v1/escalations", "/api/v1/traces"})
#: Only audit could say, and it is away.
AUDITS: Final = frozenset({"GET /api/v1/traces/{trace_id}"})


@dataclass(kw_only=True)
class Walk:
    """Everybody here, their admin there, and what was wrong."""

    world: World
    door: Door
    there: Neighbour
    people: list[Who]
    their_admin: Who
    #: What may be in no answer.
    words: re.Pattern[str]
    #: Their tokens, by the path of the list.
    tokens: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)

    async def ask(self, rule: Rule, who: Who, target: str, body: Any = None) -> Answered:
        headers = {**JSON, "idempotency-key": str(uuid4()), **who.headers}
        data = None if body is None else orjson.dumps(body)
        return await self.door.ask(rule.method, target, headers, data)

    async def try_it(self, rule: Rule, who: Who, target: str, body: Any = None) -> Answered:
        """Nothing of theirs is in the answer."""
        answer = await self.ask(rule, who, target, body)
        self.answers[answer.status] += 1
        told = answer.body.decode() + "".join(answer.headers.values())
        if rule.path.startswith("/approve/"):
            told = told.replace(target, rule.path)  # the address of its form; see below
        if found := self.words.search(told):
            self.wrong.append(f"{who.name} sees {found[0]} at {rule.key} ({target})")
        if rule.ends:
            await self.world.admin.execute(
                "UPDATE control.user_sessions SET ended_at = NULL WHERE tenant_id = $1",
                self.world.rest.running.tenant.id,
            )
        return answer

    async def expect(
        self, codes: set[str], rule: Rule, who: Who, target: str, body: Any = None
    ) -> None:
        answer = await self.try_it(rule, who, target, body)
        said = (answer.json or {}).get("code", "") if answer.json else ""
        admitted = first_refusals(Ask(rule=rule, who=who, states=ALL)) == ADMITTED
        if admitted and rule.level != "nobody" and said not in codes:
            self.wrong.append(f"{who.name} at {rule.key} ({target}): {answer.status} {said}")


@pytest.fixture
async def walk(world: World) -> Walk:
    there = await one_of_everything(world)
    own = world.rest.running.tenant.id
    tenants = {"own": own, "other": TenantId(str(there.tenant))}
    entitle(world.rest, tenants["other"])
    made = Registry(connection=world.admin, rest=world.rest, tenants=tenants)
    people = [NOBODY, *[await made.person(f"our {role}", role) for role in LEVELS]]
    people.append(await made.person("our admin in a browser", "admin", browser=True))
    people += [await made.machine(f"our {role} machine", role) for role in ("viewer", "admin")]
    their_admin = await made.person("their admin", "admin", "other")
    words = "|".join(map(re.escape, sorted(there.unseen)))
    return Walk(
        world=world, door=Door(world.rest), there=there, people=people, their_admin=their_admin,
        words=re.compile(words),
    )  # fmt: skip


def targets(rule: Rule, there: Neighbour) -> Iterator[str]:
    """The path with what is theirs at each of its places; of rows, the first few."""
    for turn in range(TRIED):
        names = {name: _nth(there.ids[table], turn) for name, table in OF.items()}
        names |= {"name": f"{MARK}reader", "server": f"{MARK}shelf", "tool": f"{MARK}now"}
        yield rule.path.format_map(_Known(names))
        if "{" not in rule.path:
            return


def _nth(ids: list[str], turn: int) -> str:
    return ids[turn % len(ids)] if ids else str(uuid4())


class _Known(dict[str, str]):
    """What the second tenant has none of: an id that nothing has."""

    def __missing__(self, name: str) -> str:
        return str(uuid4())


def bodies(walk: Walk, rule: Rule) -> list[Any]:
    """Such as would do something to theirs, if it were ours; or that name what is theirs."""
    world, ids = walk.world, walk.there.ids
    why = {"reason": "because a test says so"}
    named: dict[str, list[Any]] = {
        "POST /api/v1/kill-switch": [
            {"scope": "agent", "subject": ids["agents"][0], **why},
            {"scope": "server", "subject": f"{MARK}shelf", **why},
        ],
        "POST /api/v1/agents": [
            {"name": "one-of-ours", "owner": ids["users"][0]},
            {"name": "two-of-ours", "roles": [f"{MARK}reader"]},
        ],
        "POST /api/v1/enrollment-tokens": [{"label": "ours", "roles": [f"{MARK}reader"]}],
        "POST /api/v1/agents/{agent_id}:restrict": [
            {"profile": "read_only", "until": world.until(), **why}
        ],
        "POST /api/v1/agents/{agent_id}:unrestrict": [why],
        "POST /api/v1/kill-switch/{switch_id}:release": [why],
        "PATCH /api/v1/users/{user_id}": [{"role": "viewer"}],
        "POST /api/v1/me/mfa/totp/{factor_id}:confirm": [{"code": "123456"}],
        "PATCH /api/v1/settings/notifications/{destination_id}": [{"enabled": False}],
        "POST /api/v1/escalations/{escalation_id}:deny": [why],
        "PATCH /api/v1/servers/{server}": [{"domain": "files"}],
        "PUT /api/v1/servers/{server}/tools/{tool}": [{"action": "read", "schema_hash": HASH}],
        "POST /api/v1/servers/{server}/tools:classify": [
            {"items": [{"tool": f"{MARK}now", "action": "read", "schema_hash": HASH}]}
        ],
        "PUT /api/v1/policies/{policy_id}": [
            {"source": source(world.rest, "pp"), "tests": world.new_policy("pp")["tests"]}
        ],
        "POST /api/v1/policies/{policy_id}:rollback": [{"version": 1}],
    }
    return named.get(rule.key, [{}])


#: What makes something of ours by that name: it is nobody's business whose else it is.
MAKES: Final = frozenset({"PUT /api/v1/roles/{name}"})


@promise("tenancy:others-are-not-found")
async def test_everybody_at_every_route_with_what_is_anothers_sees_and_changes_nothing(
    walk: Walk,
) -> None:
    there, admin = walk.there, walk.world.admin
    await _what_nobody_else_sees_their_own_admin_does(walk)
    for rule in RULES:
        if rule.method == "GET" and rule.path.startswith("/api/v1/") and "{" not in rule.path:
            page = await walk.ask(rule, walk.their_admin, f"{rule.path}?page_size=1")
            if page.status == 200 and (token := page.json.get("next_page_token", "")):
                walk.tokens[rule.path] = token
    assert len(walk.tokens) >= 8
    before = await state_of(admin, there)
    outbox = "SELECT count(*) FROM control.outbox WHERE tenant_id = $1"
    recorded = await admin.fetchval(outbox, there.tenant)
    for rule in RULES:
        if rule.level == "super_admin" or rule.path in FORMS:
            continue  # super-admins go there, on record; forms name nothing
        for who in walk.people:
            await _with_theirs(walk, rule, who)
            if rule.method == "GET" and "{" not in rule.path and rule.path.startswith("/api/v1/"):
                await _lists(walk, rule, who)
    await _the_page_of_anothers_question_is_that_of_one_that_nobody_has(walk)
    after = await state_of(admin, there)

    assert "" == "\n".join(walk.wrong[:50])
    assert {} == {t: after[t] for t in after if after[t] != before[t] and t not in MOVING}
    assert recorded == await admin.fetchval(outbox, there.tenant)
    assert walk.answers.total() > 1_500
    assert walk.answers[404] > 300


async def _with_theirs(walk: Walk, rule: Rule, who: Who) -> None:
    names_theirs = "{" in rule.path and rule.key not in MAKES
    for target in targets(rule, walk.there):
        for body in [None] if rule.method == "GET" or not rule.reads else bodies(walk, rule):
            if names_theirs:
                unknown = {"dependency_unavailable"} if rule.key in AUDITS else {"not_found"}
                await walk.expect(unknown, rule, who, target, body)
            elif rule.reads and body:
                await walk.expect({"not_found", "validation_failed"}, rule, who, target, body)
            else:
                await walk.try_it(rule, who, target, body)


async def _lists(walk: Walk, rule: Rule, who: Who) -> None:
    """All pages; filters that name what is theirs; their own page."""
    target, pages = f"{rule.path}?page_size=20", 0
    while pages < 50:
        page = await walk.try_it(rule, who, target)
        token = (page.json or {}).get("next_page_token", "") if page.status == 200 else ""
        if not token:
            break
        target, pages = f"{rule.path}?page_size=20&page_token={token}", pages + 1
    for qualifier in QUALIFIERS if rule.path in FILTERED else ():
        named = {"agent": walk.there.ids["agents"][0], "server": f"{MARK}shelf"}
        text = named.get(qualifier, f"{MARK}now")
        answer = await walk.try_it(rule, who, f"{rule.path}?filter={qualifier}:{text}")
        if answer.status == 200 and answer.json.get("items"):
            walk.wrong.append(f"{who.name} finds by {qualifier} at {rule.key}")
    if rule.path in walk.tokens:
        theirs = f"{rule.path}?page_size=1&page_token={walk.tokens[rule.path]}"
        await walk.expect({"invalid_page_token"}, rule, who, theirs)


async def _the_page_of_anothers_question_is_that_of_one_that_nobody_has(walk: Walk) -> None:
    """To whoever is not signed in it asks for that, and to others it is not there, either way."""
    theirs = walk.there.ids["escalations"][0]
    for rule in (rule for rule in RULES if rule.path.startswith("/approve/{")):
        for who in walk.people:
            told = set()
            for asked in (theirs, str(uuid4())):
                answer = await walk.ask(rule, who, rule.path.format(escalation_id=asked))
                request = answer.headers["x-request-id"]
                text = answer.body.decode().replace(asked, "<id>").replace(request, "<request>")
                told.add((answer.status, re.sub(r'value="[\w.-]+"', "", text)))
            assert 1 == len(told), (rule.key, who.name)


async def _what_nobody_else_sees_their_own_admin_does(walk: Walk) -> None:
    """The twin: the same paths with the same ids say what there is, to whom it belongs."""
    seen, found = set[str](), set[str]()
    for rule in RULES:
        if rule.method != "GET" or LEVELS.get(rule.level) is None:
            continue
        for target in targets(rule, walk.there):
            answer = await walk.ask(rule, walk.their_admin, target)
            if answer.status == 200 and "{" in rule.path:
                found.add(rule.key)
            if walk.words.search(answer.body.decode()):
                seen.add(rule.key)

    assert len(found) >= 10
    assert len(seen) >= 20
