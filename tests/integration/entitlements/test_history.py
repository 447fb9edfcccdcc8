"""The history of overrides under several writers at two replicas (E15): what is seen is the history
played again, at any instant; nothing in it changes or is lost; of those who expect the same
revision one wins.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.common.errors import BehavryError
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import Desk, issued, serving
from tests.integration.entitlements.test_changes import replayed

KEYS = ("saml_sso", "context_gate", "community_library", "data_protection")
EFFECTS = ("enable", "disable", "clear")
ROUNDS = 12
WRITERS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A change that went through: its answer, when, and the revision that it expected."""

    answer: wire.TenantEntitlements
    request_id: str
    at_s: int
    expected: int


@dataclass(slots=True)
class Outcome:
    accepted: list[Accepted] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


async def write(desk: Desk, tenant: str, name: str, chance: Random, outcome: Outcome) -> None:
    """One random change: of up to three features, now or later, for a while or for good."""
    keys = chance.sample(KEYS, chance.randrange(1, 4))
    now_s = desk.now_s
    starts = chance.choice([0, now_s + chance.randrange(1, 60)])
    ends = chance.choice([0, (starts or now_s) + chance.randrange(1, 60)])
    expected = (await desk.get(tenant)).revision if chance.random() < 0.5 else 0
    wanted: dict[str, list[str]] = {effect: [] for effect in EFFECTS}
    for key in keys:
        wanted[chance.choice(EFFECTS)].append(key)
    try:
        answer = await desk.override(
            tenant,
            **wanted,
            starts_at=starts,
            ends_at=ends,
            request_id=name,
            expected=expected,
        )
    except BehavryError as refused:
        outcome.refused[refused.reason] += 1
    else:
        outcome.accepted.append(
            Accepted(answer=answer, request_id=name, at_s=now_s, expected=expected)
        )


async def test_under_many_writers_the_view_is_the_history_and_nothing_in_it_changes(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    chance, outcome = Random(20_151), Outcome()
    histories: list[list[wire.Override]] = []
    async with (
        serving(tmp_path, entitlements_database, clock, name="one") as one,
        serving(tmp_path, entitlements_database, clock, name="two") as two,
    ):
        await one.activate(issued(plan="enterprise", exp=one.now_s + 10**9))
        tenant = await one.tenant()
        await two.until(tenant, lambda told: told.HasField("installation_license"))
        for turn in range(ROUNDS):
            await asyncio.gather(
                *(
                    write(chance.choice((one, two)), tenant, f"{turn}-{number}", chance, outcome)
                    for number in range(WRITERS)
                )
            )
            histories.append((await one.history(tenant, page_size=5))[::-1])
            now = replayed(histories[-1][::-1], one.now_s)
            for desk in (one, two):  # within half a second
                await desk.until(tenant, lambda told, n=now: dict(told.feature_overrides) == n)
            clock.advance(chance.randrange(0, 40))
        last = histories[-1]
        both = [await desk.history(tenant) for desk in (one, two)]

    assert both[0] == both[1] == last[::-1]
    for history in histories:  # added to, never changed
        assert history == last[: len(history)]
    assert len({row.id for row in last}) == len(last)
    assert {one.request_id for one in outcome.accepted} == {row.request_id for row in last}
    # Each answer is the history up to its own rows, played at its instant.
    ends = {row.request_id: place + 1 for place, row in enumerate(last)}
    for accepted in outcome.accepted:
        until = last[: ends[accepted.request_id]]
        assert replayed(until[::-1], accepted.at_s) == dict(accepted.answer.feature_overrides)
    winners = Counter(one.expected for one in outcome.accepted if one.expected)
    assert set(winners.values()) <= {1}  # whoever was first
    assert set(outcome.refused) == {"STALE_REVISION"}
    assert len(outcome.accepted) > ROUNDS * WRITERS / 3
