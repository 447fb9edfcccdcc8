"""Requests that end before a decision: each is in a chain, or counted, before its answer leaves.

Which request that is stands in the pipeline; the bytes are made in answers.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.outbox.record import Record
from services.common.telemetry.counters import Counter, Counters
from services.common.telemetry.logging import Log
from services.proxy import answers, records
from services.proxy.answers import Answer, Rejection
from services.proxy.calls import Caller, Recorder, Visit
from services.proxy.failures import Failure, Failures
from services.proxy.identity import INSUFFICIENT_SCOPE, SCOPE, Unauthenticated
from services.proxy.snapshot import Snapshot


@dataclass(slots=True, kw_only=True)
class Refusals:
    recorder: Recorder
    failures: Failures
    counters: Counters
    clock: Clock
    log: Log
    _rejected: Counter = field(init=False)
    _auth_failed: Counter = field(init=False)

    def __post_init__(self) -> None:
        self._rejected = self.counters.counter("proxy.rejected")
        self._auth_failed = self.counters.counter("proxy.auth.failed")

    async def turn_away(
        self, caller: Caller, why: Rejection, *, snapshot: Snapshot, server: str, client_ip: str
    ) -> Answer:
        """There is no such server for this agent."""
        record = records.turned_away(
            caller,
            known_tenant=caller.tenant in snapshot.tenants,
            server=server,
            client_ip=client_ip,
            clock=self.clock,
        )
        return await self._rejection(record, None, why)

    async def reject(self, visit: Visit, id: Any, method: str, why: Rejection) -> Answer:
        record = records.rejected(
            visit, method=method, code=why.code, reason=why.reason, clock=self.clock
        )
        return await self._rejection(record, id, why)

    async def _rejection(self, record: Record, id: Any, why: Rejection) -> Answer:
        """An authenticated request that ends early is in the chain too, before its answer."""
        self._rejected.value += 1
        try:
            await self.recorder.put(record)
        except BehavryError as failure:
            self.log.error("not_recorded", reason=failure.code)
        return answers.rejected(id, why)

    def unauthenticated(
        self,
        failure: Unauthenticated,
        *,
        snapshot: Snapshot,
        server: str,
        client_ip: str,
        metadata_url: str,
    ) -> Answer:
        """`metadata_url` is empty where none is shown."""
        self._auth_failed.value += 1
        claimed = TenantId(failure.claimed)
        known = claimed in snapshot.tenants
        self.failures.add(
            Failure(
                address=client_ip,
                reason=failure.reason,
                tenant=claimed if known else None,
                agent="",
                server=server,
            )
        )
        parts = [f'resource_metadata="{metadata_url}"'] if metadata_url else []
        if failure.reason == INSUFFICIENT_SCOPE:
            # Clients answer this, too, by asking for another token: only a token is to blame.
            parts += [f'scope="{SCOPE}"', f'error="{INSUFFICIENT_SCOPE}"']
            return _challenged(403, INSUFFICIENT_SCOPE, parts)
        parts += [f'scope="{SCOPE}"'] if metadata_url else []
        parts += ['error="invalid_token"'] if failure.presented else []
        return _challenged(401, "unauthenticated", parts)


def _challenged(status: int, reason: str, parts: list[str]) -> Answer:
    challenge = f"Bearer {', '.join(parts)}".strip()
    return answers.error(
        None,
        answers.CODES[reason],
        reason,
        status=status,
        headers=((b"www-authenticate", challenge.encode("latin-1")),),
    )


def unavailable(reason: str) -> Answer:
    return answers.error(
        None, answers.CODES["capacity"], reason, status=503, headers=((b"retry-after", b"5"),)
    )
