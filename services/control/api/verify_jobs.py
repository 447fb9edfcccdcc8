"""Follows verifications that audit runs, and keeps their jobs' rows up to date.

A job that was open when control stopped is taken up again at the next start; one that audit no
longer knows has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, Final

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.postgres.pool import Pool, tenant_tx
from services.common.supervisor import Supervisor
from services.control.clients.audit import AuditReader, VerifyState
from services.control.store import jobs, tenants
from services.control.store.moments import moment

#: Progress is written at most this often; the end always.
WRITE_EVERY_S: Final = 0.5
RETRY_S: Final = 1.0
_MAX_FINDINGS: Final = 1_000


class Verifications:
    def __init__(
        self, pool: Pool, clock: Clock, audit: AuditReader, supervisor: Supervisor
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._audit = audit
        self._supervisor = supervisor

    def follow(self, tenant: TenantId, job_id: str, verify_id: str) -> None:
        async def run() -> None:
            await self._follow(tenant, job_id, verify_id)

        self._supervisor.spawn(f"verify-{job_id}", run)

    async def resume(self) -> None:
        """Takes up what was open when control stopped."""
        async with self._pool.acquire() as connection:
            known = await tenants.every(connection)
        for tenant in known:
            async with tenant_tx(self._pool, tenant.id) as connection:
                rows = await jobs.unfinished(connection)
            for row in rows:
                self.follow(tenant.id, str(row["id"]), row["remote_id"])

    async def _follow(self, tenant: TenantId, job_id: str, verify_id: str) -> None:
        """Until the verdict, or until audit says that it knows nothing of it."""
        while True:
            try:
                async with aclosing(self._audit.watch_verify(tenant, verify_id)) as states:
                    if await self._keep(tenant, job_id, states):
                        return
            except BehavryError as lost:
                if lost.reason != "DEPENDENCY_UNAVAILABLE":
                    await self._finish(tenant, job_id, state="failed", error=lost.code)
                    return
            await asyncio.sleep(RETRY_S)

    async def _keep(
        self, tenant: TenantId, job_id: str, states: AsyncIterator[VerifyState]
    ) -> bool:
        """Whether the verdict came."""
        loop = asyncio.get_running_loop()
        written = 0.0
        async for state in states:
            if state.done:
                await self._finish(tenant, job_id, state="succeeded", result=_verdict(state))
                return True
            if loop.time() - written >= WRITE_EVERY_S:
                written = loop.time()
                progress = {"rows_done": state.rows_done, "rows_total": state.rows_total}
                async with tenant_tx(self._pool, tenant) as connection:
                    await jobs.progress(connection, job_id, progress)
        return False

    async def _finish(
        self,
        tenant: TenantId,
        job_id: str,
        *,
        state: str,
        result: dict[str, Any] | None = None,
        error: str = "",
    ) -> None:
        now = moment(self._clock.now_ns())
        async with tenant_tx(self._pool, tenant) as connection:
            await jobs.finish(connection, job_id, state=state, now=now, result=result, error=error)


def _verdict(state: VerifyState) -> dict[str, Any]:
    verdict = asdict(state)
    for name in ("done", "chain"):
        del verdict[name]
    verdict["findings"] = list(state.findings[:_MAX_FINDINGS])
    return verdict
