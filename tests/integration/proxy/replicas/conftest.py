"""Two proxies that share a Valkey, an authorizer and their keys."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes import curious_server
from tests.fakes.asked import ALL
from tests.fakes.authorizer import AGENT, OTHER_AGENT, TENANT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import http_server
from tests.fakes.replicas import Two, two
from tests.fakes.talker import Talker
from tests.fakes.tool_server import ToolServer
from tests.fakes.valkey import ValkeyServer, running_valkey


@pytest.fixture(scope="module")
def meeting_place() -> Iterator[ValkeyServer]:
    """Of its own: planes of other tests have the same name."""
    with running_valkey(keeps="no") as server:
        yield server


async def both_may(pair: Two) -> None:
    """A second agent has the rights of the first."""
    agents = pair.one.authorizer.snapshot["tenants"][TENANT]["agents"]
    await pair.one.authorizer.publish(agents={**agents, OTHER_AGENT: agents[AGENT]})


async def settled(pair: Two) -> None:
    for proxy in (pair.one, pair.other):
        await proxy.settled()
        proxy.forget_records()


@pytest.fixture
async def notes(
    tmp_path: Path, tools: ToolServer, meeting_place: ValkeyServer
) -> AsyncIterator[Two]:
    """In front of a server whose writing needs an approval."""
    assert tools.url is not None
    async with two(
        tmp_path, {"notes": http_server(tools.url)}, meeting_place.url, BEHAVRY_HOLD_SECONDS="20"
    ) as pair:
        await both_may(pair)
        await pair.one.offered("notes", "read_note", "write_note")
        await pair.other.modern("tools/list")
        pair.one.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")
        await settled(pair)
        yield pair


@pytest.fixture
async def talking(
    tmp_path: Path, talker: Talker, meeting_place: ValkeyServer
) -> AsyncIterator[Two]:
    """In front of a legacy server that says what a test tells it to."""
    talker.eras = {"legacy"}
    async with two(tmp_path, {"notes": http_server(talker.url)}, meeting_place.url) as pair:
        await both_may(pair)
        await pair.one.offered("notes", "talk")
        for proxy in (pair.one, pair.other):
            await proxy.settled()
            await proxy.modern("tools/list")
        await settled(pair)
        yield pair


@pytest.fixture
async def curious(
    tmp_path: Path, meeting_place: ValkeyServer
) -> AsyncIterator[tuple[Two, Curious]]:
    """In front of a legacy server that asks before it answers."""
    async with curious_server.serving() as server:
        server.eras = ("legacy",)
        servers = {"notes": http_server(server.url, grants=ALL)}
        async with two(tmp_path, servers, meeting_place.url) as pair:
            await both_may(pair)
            await pair.one.offered("notes", "ask")
            await settled(pair)
            yield pair, server
