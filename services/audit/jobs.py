"""Verifications as jobs: each runs in the background over one snapshot of the store, tells how far
it is, and keeps its verdict for whoever asks later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import asyncpg

from services.audit import reading
from services.audit.verify import Verdict, Verifier
from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import uuid7
from services.common.postgres.pool import Pool
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log, describe

#: Finished jobs that are remembered; the oldest goes first.
KEPT_JOBS: Final = 256
AT_ONCE: Final = 2


class Job:
    """`changed` is set on every step; a watcher takes what it finds."""

    def __init__(self, tenant: str, chain: str | None) -> None:
        self.tenant = tenant
        self.only_chain = chain
        self.rows_done = 0
        self.rows_total = 0
        self.chain = ""
        self.verdict: Verdict | None = None
        self._changed = asyncio.Condition()

    async def tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def steps(self) -> AsyncIterator[Job]:
        """Itself after each step, the last time with its verdict."""
        while True:
            done = self.verdict is not None  # before the pause, in which it may come
            yield self
            if done:
                return
            async with self._changed:
                if self.verdict is None:
                    await self._changed.wait()


class Jobs:
    def __init__(self, *, pool: Pool, clock: Clock, supervisor: Supervisor, log: Log) -> None:
        self._pool = pool
        self._clock = clock
        self._supervisor = supervisor
        self._log = log
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._room = asyncio.Semaphore(AT_ONCE)

    def start(self, tenant: str, chain: str | None) -> str:
        job_id = uuid7(self._clock.now_ns())
        job = self._jobs[job_id] = Job(tenant, chain)
        while len(self._jobs) > KEPT_JOBS:
            self._jobs.popitem(last=False)
        self._supervisor.once(f"verify:{job_id}", partial(self._run, job))
        return job_id

    def find(self, tenant: str, job_id: str) -> Job:
        """Raises VERIFY_UNKNOWN, also for another tenant's job."""
        job = self._jobs.get(job_id)
        if job is None or job.tenant != tenant:
            raise BehavryError("VERIFY_UNKNOWN", "there is no such verification")
        return job

    async def _run(self, job: Job) -> None:
        why = "the verification was interrupted"
        verdict = None
        try:
            async with self._room:
                verdict = await self._verify(job)
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError) as failure:
            self._log.warning("verify_interrupted", error=describe(failure))
            why = "the audit store could not be read"
        finally:
            job.verdict = verdict or Verdict("incomplete", (), job.rows_done, 0, why)
            await job.tell()
        self._log.info(
            "chain_verified",
            tenant=job.tenant,
            verdict=job.verdict.verdict,
            assurance=job.verdict.assurance,
            rows=job.verdict.rows,
            findings=len(job.verdict.findings),
        )

    async def _verify(self, job: Job) -> Verdict:
        async with reading.snapshot(self._pool, job.tenant) as connection:
            heads = {head.chain: head for head in await reading.heads(connection, job.tenant)}
            if job.only_chain is not None and job.only_chain not in heads:
                heads = {}
            verifier = Verifier(job.tenant, heads, only_chain=job.only_chain)
            job.rows_total = sum(
                head.seq for name, head in heads.items() if job.only_chain in {None, name}
            )
            async for group in reading.rows(connection, job.tenant, job.only_chain):
                for row, parts in group:
                    verifier.add(row, parts)
                job.rows_done, job.chain = verifier.rows, verifier.chain
                await job.tell()
        return verifier.verdict()
