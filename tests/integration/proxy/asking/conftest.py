"""A proxy in front of one curious server, for all tests of a file."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fakes import curious_server
from tests.fakes.asked import ALL
from tests.fakes.authorizer import AGENT, OTHER_AGENT, TENANT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway, gateway, http_server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, Curious]]:
    """In front of one server, as `notes` with every grant and as `plain` with the default ones; a
    second agent may do the same.
    """
    async with curious_server.serving() as server:
        servers = {
            "notes": http_server(server.url, grants=ALL),
            "plain": http_server(server.url, id="0199d0d0-0000-7000-8000-0000000000e2"),
        }
        state = tmp_path_factory.mktemp("asking")
        async with gateway(state, servers, BEHAVRY_HOLD_SECONDS="10") as made:
            agents = made.authorizer.snapshot["tenants"][TENANT]["agents"]
            await made.authorizer.publish(agents={**agents, OTHER_AGENT: agents[AGENT]})
            for slug in servers:
                await made.offered(slug, "ask")
            yield made, server


@pytest.fixture
def server(running: tuple[Gateway, Curious]) -> Curious:
    """As if it had just been started."""
    _, made = running
    made.forget()
    return made


@pytest.fixture
def proxy(running: tuple[Gateway, Curious], server: Curious) -> Gateway:
    made, _ = running
    made.forget_upstreams()
    made.forget_records()
    made.authorizer.rules.verdicts.clear()
    made.authorizer.tickets.clear()
    made.authorizer.asks.clear()
    return made


@pytest.fixture
def legacy(proxy: Gateway, server: Curious) -> Curious:
    server.eras = ("legacy",)
    return server
