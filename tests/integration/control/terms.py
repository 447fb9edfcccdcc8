"""Control and entitlements on one clock, with somebody outside who is told: what tests of a term's
end share. Each of them can be opened more than once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from services.common.settings import load
from services.control.features import Entitlements
from services.control.settings import ControlSettings
from services.entitlements import app as entitlements
from services.entitlements.settings import EntitlementsSettings
from tests.fakes.asking import ask_until
from tests.fakes.clock import START_NS, ManualClock
from tests.fakes.licenses import DAY_S, issuers_keys
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Answered, Rest, opened
from tests.integration.control.people import operator
from tests.integration.control.plans import Plans, environments
from tests.integration.control.receivers import HttpReceiver

NOW_S: Final = START_NS // 10**9
PATH: Final = "/api/v1/settings/notifications"
KEY: Final = "a signing key of the tests, long"
EDGES: Final = ("license.expiring", "license.grace", "license.lapsed")


@dataclass(kw_only=True)
class World:
    """One installation: its state, its database and its clock."""

    state: Path
    database: Database
    clock: ManualClock

    @property
    def env(self) -> dict[str, str]:
        return environments(self.state, self.database, "development")

    @asynccontextmanager
    async def entitlements(self) -> AsyncIterator[None]:
        settings = load(EntitlementsSettings, self.env)
        async with entitlements.running(settings, clock=self.clock, keys=issuers_keys()):
            yield

    @asynccontextmanager
    async def control(self, name: str = "control") -> AsyncIterator[Plans]:
        run = self.state / "run"
        own = {
            "BEHAVRY_CONTROL_GRPC_LISTEN": f"unix:{run}/{name}.sock",
            "BEHAVRY_CONTROL_ENTITLEMENTS_COPY": str(self.state / f"{name}.copy"),
        }
        settings = load(ControlSettings, self.env | own)
        async with opened(settings, self.clock, self.database) as rest:
            yield Plans(rest=rest, boss=await operator(rest))

    def go_to(self, days: float) -> None:
        """So many days after the clock's start; both clocks go on."""
        wall_ns = START_NS + round(days * DAY_S) * 10**9
        self.clock.advance((wall_ns - self.clock.now_ns()) / 1e9)


async def done(act: Callable[[], Awaitable[Answered]]) -> Answered:
    """Its answer, once there is one: entitlements may need more than half a second on a machine
    that is busy, and whoever asks then asks again.
    """
    answer = await ask_until(act, lambda one: one.status != 503)
    assert 200 == answer.status, answer.body
    return answer


async def activated(plans: Plans, token: str) -> Answered:
    key = str(uuid4())
    return await done(lambda: plans.activate(token, key=key))


async def fresh(plans: Plans) -> dict[str, Any]:
    return await plans.until(lambda said: not said["stale"])


async def standing(plans: Plans, status: str) -> dict[str, Any]:
    return await plans.until(lambda said: said["status"] == status)


async def told_to(rest: Rest, receiver: HttpReceiver) -> str:
    """A destination that hears of everything; its id."""
    secrets = rest.state / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "key").write_text(KEY)
    settings = {"url": receiver.url, "key": "secret://key"}
    answer = await rest.post(PATH, {"name": "ops", "kind": "webhook", "settings": settings})
    assert 201 == answer.status, answer.body
    return str(answer.json["id"])


def notices(receiver: HttpReceiver) -> list[dict[str, Any]]:
    """What came, in the order of coming, each once."""
    found: dict[str, dict[str, Any]] = {}
    for got in receiver.received:
        body = json.loads(got.body)
        found.setdefault(body["id"], body)
    return list(found.values())


async def until_notices(receiver: HttpReceiver, count: int) -> list[dict[str, Any]]:
    async def come() -> list[dict[str, Any]]:
        return notices(receiver)

    return await ask_until(come, lambda found: len(found) >= count)


async def edges(rest: Rest) -> list[dict[str, Any]]:
    return [one for one in await rest.records() if one["type"] in EDGES]


async def until_edges(rest: Rest, count: int) -> list[dict[str, Any]]:
    return await ask_until(lambda: edges(rest), lambda found: len(found) >= count)


def heard_by(plans: Plans) -> list[Entitlements]:
    """What this control is told from now on, revision by revision."""
    features, heard = plans.rest.running.control.features, []

    def note(tenant: Any) -> None:
        held = features.of(tenant)
        if held is not None:
            heard.append(held)

    features.listen(note)
    return heard
