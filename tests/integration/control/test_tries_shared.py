"""Two processes of control over one database and one Valkey: whoever guesses goes from one to the
other in vain. The exact figures are in unit/control/test_tries.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from services.common.settings import SettingsError
from services.common.telemetry.logging import get_log
from services.common.valkey import open_valkey
from services.control.settings import ControlSettings
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.fakes.valkey import ValkeyServer, running_valkey
from tests.integration.control.conftest import Rest, opened
from tests.integration.control.escalated import joined
from tests.integration.control.factors import LOGIN, code, first_half, second_half, with_totp
from tests.integration.control.test_problems import check
from tests.promises import promise

pytestmark = pytest.mark.needs_valkey


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with running_valkey(keeps="no") as running:
        yield running


@pytest.fixture
async def processes(
    settings: ControlSettings, clock: ManualClock, control_database: Database, server: ValkeyServer
) -> AsyncIterator[list[Rest]]:
    shared = replace(settings, counter_store_url=server.url)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(opened(shared, clock, control_database))
            for _ in range(2)
        ]


async def guesses(rest: Rest, name: str, times: int = 10) -> list[int]:
    return [
        (await rest.post(LOGIN, {"username": name, "password": "x"}, key=None)).status
        for _ in range(times)
    ]


@promise("people:guessing-stops")
async def test_who_guessed_at_one_process_is_refused_at_the_other(
    processes: list[Rest], server: ValkeyServer
) -> None:
    here, there = processes
    anna, ben = await joined(here, "anna"), await joined(here, "ben")
    said = {"username": "anna", "password": anna.password, "bearer": True}
    for turn in range(12):  # the innocent twin: each is right, and none is too many
        assert 200 == (await processes[turn % 2].post(LOGIN, said, key=None)).status
    assert [401] * 10 == await guesses(here, "anna")
    told = await guesses(there, "anna")
    async with open_valkey(server.url, get_log("test")) as valkey:
        names = await valkey.call(lambda client: client.keys("*"), bound_s=5)

    # It fills by one in six seconds, of its own clock.
    assert 429 in told
    assert {401, 429} >= set(told)
    assert names
    assert not any("anna" in name or "127.0.0.1" in name for name in names)
    said = {"username": "ben", "password": ben.password, "bearer": True}
    assert 200 == (await there.post(LOGIN, said, key=None)).status


@promise("people:guessing-stops")
async def test_codes_that_were_wrong_at_one_process_count_at_the_other(
    processes: list[Rest],
) -> None:
    here, there = processes
    anna = await joined(here, "anna")
    secret, _ = await with_totp(here, anna)
    half = (await first_half(here, anna))["token"]
    wrong = code(here, secret, steps=9)
    for _ in range(10):
        check(await second_half(here, half, totp=wrong), 401, "unauthenticated")
    told = [(await second_half(there, half, totp=wrong)).status for _ in range(10)]

    assert 429 in told
    assert {401, 429} >= set(told)


async def test_a_lost_store_locks_nobody_out_and_lets_nobody_guess_on(
    processes: list[Rest], server: ValkeyServer
) -> None:
    here, there = processes
    anna = await joined(here, "anna")
    server.kill()
    for rest in processes:
        said = {"username": "anna", "password": anna.password, "bearer": True}
        assert 200 == (await rest.post(LOGIN, said, key=None)).status

    assert [401] * 10 + [429] == await guesses(here, "anna", 11)
    assert [401] * 10 + [429] == await guesses(there, "anna", 11)


def test_a_store_s_address_holds_no_password(settings: ControlSettings) -> None:
    with pytest.raises(SettingsError) as refused:
        replace(settings, counter_store_url="redis://:secret@127.0.0.1:6379/0")

    assert "secret@" not in str(refused.value)
