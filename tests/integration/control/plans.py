"""Control beside the real entitlements service, on one clock: what tests of plans share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from services.common.settings import load
from services.control.settings import ControlSettings
from services.entitlements import app as entitlements
from services.entitlements.settings import EntitlementsSettings
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import issuers_keys, license_token
from tests.fakes.postgres import Database
from tests.integration.control.conftest import PUBLIC, Answered, Rest, opened
from tests.integration.control.escalated import Somebody
from tests.integration.control.people import TENANTS, WHY, operator

LICENSE: Final = "/api/v1/license"
ACTIVATE: Final = "/api/v1/license/activate"
SUMMARY: Final = "/api/v1/context-gate/summary"


@dataclass(kw_only=True)
class Plans:
    """`boss` runs the installation and is also the tenant's admin."""

    rest: Rest
    boss: Somebody

    @property
    def now_s(self) -> int:
        return self.rest.clock.now_ns() // 10**9

    @property
    def tenant(self) -> str:
        return self.rest.running.tenant.id

    def token(self, **claims: Any) -> str:
        return license_token(now_s=claims.pop("now_s", self.now_s), key="issuer", **claims)

    async def activate(self, token: str, *, key: str = "", **more: Any) -> Answered:
        headers = {"idempotency-key": key or str(uuid4())}
        return await self.rest.post(ACTIVATE, {"key": token, **more}, headers=headers)

    async def features(self, **body: Any) -> Answered:
        headers = WHY | body.pop("headers", {})
        path = f"{TENANTS}/{self.tenant}/features"
        return await self.rest.post(path, body, key=self.boss.token, headers=headers)

    async def plan(self, **body: Any) -> Answered:
        path = f"{TENANTS}/{self.tenant}/plan"
        return await self.rest.put(path, body, key=self.boss.token, headers=WHY)

    async def license(self) -> dict[str, Any]:
        answer = await self.rest.get(LICENSE)
        assert 200 == answer.status, answer.body
        said: dict[str, Any] = answer.json
        return said

    async def modes(self) -> dict[str, str]:
        return {one["key"]: one["mode"] for one in (await self.license())["features"]}

    async def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first licence document that is so."""

        async def ask() -> dict[str, Any]:
            answer = await self.rest.get(LICENSE)
            return answer.json if answer.status == 200 else {}

        return await ask_until(ask, lambda said: bool(said) and true(said))


def environments(state: Any, database: Database, env: str) -> dict[str, str]:
    return {
        "BEHAVRY_STATE_DIR": str(state),
        "BEHAVRY_ENV": env,
        "BEHAVRY_CONTROL_HTTP_LISTEN": "127.0.0.1:0",
        "BEHAVRY_CONTROL_PUBLIC_URL": PUBLIC,
        "BEHAVRY_CONTROL_DB_URL": database.dsn("behavry_control"),
        "BEHAVRY_ENTITLEMENTS_DB_URL": database.dsn("behavry_entitlements"),
    }


@asynccontextmanager
async def beside_entitlements(
    state: Any, database: Database, clock: ManualClock, *, env: str = "development"
) -> AsyncIterator[Plans]:
    """`env`: entitlements'; in production an installation without a licence has the trial alone."""
    common = environments(state, database, env)
    settings = load(EntitlementsSettings, common)
    async with entitlements.running(settings, clock=clock, keys=issuers_keys()):
        control = load(ControlSettings, common | {"BEHAVRY_ENV": "development"})
        async with opened(control, clock, database) as rest:
            plans = Plans(rest=rest, boss=await operator(rest))
            await plans.until(lambda said: not said["stale"])
            yield plans


Act = Callable[[Plans], Awaitable[Answered]]
