"""What control says after a committed change, and from which bundle on it need not be said."""

import asyncio

from services.common.ids import AgentId, SessionId, TenantId
from services.control.signals import Signals
from tests.fakes.clock import ManualClock

TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
AGENT = AgentId("0199d0d0-0000-7000-8000-00000000000a")
PROMPT_S = 5.0


def signals(serial: int = 0) -> Signals:
    return Signals(clock=ManualClock(), serial=serial)


async def test_changes_that_came_before_the_wait_count_once() -> None:
    said = signals()
    said.touch()
    said.touch()
    await asyncio.wait_for(said.touched(), PROMPT_S)
    again = asyncio.ensure_future(said.touched())
    done, _ = await asyncio.wait({again}, timeout=0)
    assert set() == done

    said.touch()
    await asyncio.wait_for(again, PROMPT_S)


async def test_taking_rights_away_is_a_change_too() -> None:
    said = signals()
    said.revoke(TENANT, agents=[AGENT])

    await asyncio.wait_for(said.touched(), PROMPT_S)


def test_taking_nothing_away_says_nothing() -> None:
    said = signals()
    said.revoke(TENANT)

    assert ([], 0) == (said.pending(), said.changes)


def test_the_next_bundle_says_what_is_revoked_now() -> None:
    said = signals(serial=4)
    said.revoke(TENANT, sessions=[SessionId("s")])

    assert [5] == [signal.min_serial for signal in said.pending()]


def test_a_bundle_that_is_being_read_may_have_missed_it() -> None:
    said = signals(serial=4)
    said.building = True
    said.revoke(TENANT, agents=[AGENT])
    said.building = False
    said.published(5)
    assert [6] == [signal.min_serial for signal in said.pending()]

    said.published(6)
    assert [] == said.pending()


def test_who_listens_hears_of_signals_and_bundles_until_it_stops() -> None:
    said = signals()
    heard = said.listen()
    said.revoke(TENANT, agents=[AGENT])
    assert heard.is_set()
    heard.clear()
    said.published(1)
    assert heard.is_set()
    heard.clear()
    said.forget(heard)
    said.published(2)

    assert not heard.is_set()


def test_signals_differ_and_keep_their_order() -> None:
    said = signals()
    for name in "abc":
        said.revoke(TENANT, sessions=[SessionId(name)])

    assert [("a",), ("b",), ("c",)] == [signal.sessions for signal in said.pending()]
    assert 3 == len({signal.id for signal in said.pending()})
