"""The authorizer's own records (audit.md 1.1): the bundles it runs or refused, its engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.authorizer.bundles import VerifiedBundle
from services.common.clock import Clock, micros
from services.common.ids import NIL_TENANT
from services.common.outbox.outbox import FileOutbox
from services.common.outbox.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    outbox: FileOutbox
    clock: Clock

    async def bundle_activated(self, bundle: VerifiedBundle, *, from_disk: bool) -> None:
        await self._put(
            "bundle.activated",
            severity="info",
            revision={"bundle_serial": bundle.serial, "bundle_digest": bundle.digest},
            reason="restored" if from_disk else "fetched",
        )

    async def bundle_rejected(self, reason: str, *, serial: int) -> None:
        await self._put(
            "bundle.rejected",
            severity="high",
            reason=reason.lower(),
            revision={"bundle_serial": serial},
        )

    async def engine(self, *, up: bool, name: str) -> None:
        await self._put(
            "engine.up" if up else "engine.down",
            severity="info" if up else "critical",
            engine={"name": name},
        )

    async def policy_state(self, state: str, *, age_s: int) -> None:
        severity = {"fresh": "info", "stale": "high"}.get(state, "critical")
        await self._put(
            "policy.state",
            severity=severity,
            revision={"policy_state": state, "bundle_age_s": age_s},
        )

    async def _put(self, kind: str, **fields: Any) -> None:
        record = Record(
            type=kind,
            tenant=NIL_TENANT,
            chain="system",
            at_us=micros(self.clock.now_ns()),
            fields=fields,
        )
        await self.outbox.put(record)
