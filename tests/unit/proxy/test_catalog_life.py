"""How long a tool server's list is kept, and when control is told of it."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.proxy import kept
from services.proxy.backends.upstream import Hear, Listening, Reply, Request, Session
from services.proxy.bridge import Facts
from services.proxy.calls import Ask, Caller, Decision, Offered, Visit, denied
from services.proxy.catalog import Catalog, Listing
from services.proxy.snapshot import Agent, Credential, Server, Tenant
from tests.fakes.clock import ManualClock

VISIT = Visit(
    caller=Caller(
        tenant=TenantId("t"),
        agent=AgentId("a"),
        session=SessionId("s"),
        issued_at_s=0,
        expires_at_s=0,
        audiences=frozenset(),
    ),
    tenant=Tenant(slug="default", status="active"),
    agent=Agent(name="a", status="active"),
    slug=ServerSlug("notes"),
    server=Server(id="1", domain="notes", transport="http"),
    revision="1",
    client_ip="",
)


class Nobody:
    """An authorizer that is never needed here."""

    async def decide(self, ask: Ask) -> Decision:
        return denied(ask.request_id)

    async def view(self, visit: Visit, tools: tuple[Offered, ...]) -> frozenset[str]:
        assert visit.slug
        return frozenset(tool.name for tool in tools)


class Offering:
    """A tool server with one tool."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.description = "Reads."
        self.hints: dict[str, Any] = {}
        self.takes_s = 0.0
        self.asked = 0

    async def facts(self, visit: Visit) -> Facts:
        assert visit.slug
        return Facts(era="modern", version="2026-07-28")

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        assert (visit.slug, dict(capabilities)) == ("notes", {})
        return None

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        assert (visit.slug, request.method, session) == ("notes", "tools/list", None)
        assert hear is None
        self.asked += 1
        self.clock.advance(self.takes_s)
        tool = {"name": "read", "description": self.description, "inputSchema": {}}
        return Reply({"tools": [tool], **self.hints}, None)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        raise AssertionError((visit.slug, message, session))

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        raise AssertionError((visit.slug, listening, hear, session))

    async def close(self, visit: Visit, session: Session) -> None:
        assert visit.slug
        assert session is not None


class Desk:
    """The catalogue with everything that it is told and tells."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = Offering(self.clock)
        self.reported: list[str] = []
        self.catalog = Catalog(
            decider=Nobody(),
            clock=self.clock,
            report=lambda _, listing: self.reported.append(listing.digest),
            served=lambda *_: None,
        )

    async def listing(self) -> Listing:
        return await self.catalog.listing(VISIT, self.server)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_name_that_is_not_listed_is_looked_for_once_in_thirty_seconds(desk: Desk) -> None:
    desk.server.hints = {"ttlMs": 300_000}
    await desk.listing()
    found = []
    for passed_s in (0, 29, 2, 0, 29, 2):
        desk.clock.advance(passed_s)
        names = ("absent", "another", "read")
        found += [await desk.catalog.find(VISIT, desk.server, name) for name in names]

    assert 3 == desk.server.asked
    assert ["read"] * 6 == [tool.name for tool in found if tool is not None]


@pytest.mark.parametrize(
    ("hints", "takes_s", "kept_s"),
    [
        ({}, 0.0, 1),
        ({"ttlMs": 0}, 0.0, 1),
        ({"ttlMs": -5}, 0.0, 1),
        ({"ttlMs": "60000"}, 0.0, 1),
        ({"ttlMs": True}, 0.0, 1),
        ({"ttlMs": 60_000}, 0.0, 60),
        ({"ttlMs": 3_600_000}, 0.0, 300),
        ({"ttlMs": 0}, 0.5, 10),
        ({"ttlMs": 0}, 29.0, 300),
    ],
)
async def test_a_list_lives_as_long_as_its_server_says_within_reason(
    desk: Desk, hints: dict[str, Any], takes_s: float, kept_s: float
) -> None:
    desk.server.hints, desk.server.takes_s = hints, takes_s
    await desk.listing()

    desk.clock.advance(kept_s - 0.1)
    await desk.listing()
    within = desk.server.asked
    desk.clock.advance(0.1)
    await desk.listing()

    assert (1, 2) == (within, desk.server.asked)


async def test_a_changed_definition_is_another_digest_and_is_told_at_once(desk: Desk) -> None:
    before = await desk.listing()
    desk.clock.advance(1)
    same = await desk.listing()
    desk.clock.advance(1)
    desk.server.description = "Reads, and tells a stranger."
    after = await desk.listing()

    assert before.digest == same.digest != after.digest
    assert [before.digest, after.digest] == desk.reported


async def test_an_unchanged_list_is_told_again_after_five_minutes(desk: Desk) -> None:
    for _ in range(310):
        await desk.listing()
        desk.clock.advance(1)

    assert 2 == len(desk.reported)


@pytest.mark.parametrize(
    ("kind", "lists"), [("none", 1), ("client_credentials", 1), ("token_exchange", 2)]
)
async def test_an_agent_that_the_server_knows_has_a_list_of_its_own(
    desk: Desk, kind: str, lists: int
) -> None:
    server = msgspec.structs.replace(VISIT.server, credential=Credential(kind=kind))
    other = replace(VISIT.caller, agent=AgentId("b"))
    for caller in (VISIT.caller, other, VISIT.caller):
        await desk.catalog.listing(replace(VISIT, server=server, caller=caller), desk.server)

    assert lists == desk.server.asked


async def test_so_many_lists_are_kept_and_no_more(desk: Desk) -> None:
    desk.server.hints = {"ttlMs": 300_000}
    many = [replace(VISIT.caller, tenant=TenantId(f"t{n}")) for n in range(kept.MAX_KEPT + 1)]
    for caller in many:
        await desk.catalog.listing(replace(VISIT, caller=caller), desk.server)
    await desk.catalog.listing(replace(VISIT, caller=many[-1]), desk.server)
    assert len(many) == desk.server.asked

    await desk.catalog.listing(replace(VISIT, caller=many[0]), desk.server)
    assert len(many) + 1 == desk.server.asked
