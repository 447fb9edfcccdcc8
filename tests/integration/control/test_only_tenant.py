"""Where one tenant is left, nobody has to say which. All other tests here have two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.clock import ManualClock
from tests.fakes.lending import Lending
from tests.fakes.openid import openid_provider
from tests.fakes.postgres import Database
from tests.integration.control import neighbour_rows
from tests.integration.control.conftest import Rest, beside_neighbour
from tests.integration.control.openid import LOGIN, Browser, signs_in_by
from tests.integration.control.people import entitle
from tests.integration.control.test_problems import check


@pytest.fixture
def control_database(lending: Lending) -> Iterator[Database]:
    """The second tenant was deleted."""
    yield from beside_neighbour(lending, ("control",), neighbour_rows.plant_gone)


async def test_its_provider_need_not_be_named(rest: Rest, clock: ManualClock) -> None:
    async with openid_provider(clock) as provider:
        await signs_in_by(rest, provider.url)
        entitle(rest)
        browser = Browser(rest=rest)

        check(await browser.get(LOGIN, tenant="nobody-there"), 404, "not_found")
        named = await browser.get(LOGIN, tenant="default")
        unnamed = await browser.get(LOGIN)

    assert [302, 302] == [named.status, unnamed.status]
    assert unnamed.headers["location"].startswith(provider.url)
