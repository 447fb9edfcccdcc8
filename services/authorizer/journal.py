"""The authorizer's own records (audit.md 1.1): the bundles it runs or refused, its engine,
what became of escalations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.authorizer.bundles import VerifiedBundle
from services.authorizer.kill_switch import Switch
from services.authorizer.tickets.ticket import State, Ticket
from services.common.clock import Clock, micros
from services.common.ids import NIL_TENANT, TenantId, is_uuid
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

    async def escalation(self, ticket: Ticket) -> None:
        """One more in the story of the agent; `uses_left` where a grant was used once."""
        state = State.CONSUMED if ticket.used else ticket.state
        await self._put(
            "escalation.opened" if state is State.PENDING else f"escalation.{state.value}",
            tenant=ticket.tenant,
            chain=f"agent:{ticket.agent}",
            at_us=ticket.changed_at_ms * 1000,
            severity="medium" if state in {State.DENIED, State.EXPIRED} else "info",
            actor={
                "kind": "agent",
                "id": ticket.agent,
                "name": ticket.agent_name,
                "class": ticket.agent_class,
            },
            server=ticket.server,
            tool=ticket.tool or None,
            method=ticket.method,
            action=ticket.action,
            category=ticket.category or None,
            resource=ticket.resource or None,
            resource_kind=ticket.resource_kind,
            schema_hash=ticket.schema_hash or None,
            approval={"escalation": ticket.id, "codes": list(ticket.codes)},
            revision={"policy_revision": ticket.policy_revision},
            escalation={
                "state": ticket.state.value,
                "version": ticket.version,
                "binding": ticket.binding,
                "quorum": ticket.quorum,
                "tier": ticket.tier,
                "decide_by": ticket.decide_by_ms * 1000,
                "execute_by": ticket.execute_by_ms * 1000 or None,
                "uses_left": ticket.uses_left,
            },
        )

    async def escalation_refused(self, reason: str, *, tenant: str, escalation: str) -> None:
        """Something that looked like people's decision was none; who sent it is not known."""
        await self._put(
            "escalation.refused",
            severity="high",
            reason=reason,
            escalation={"claimed": escalation[:64], "tenant": tenant[:64]},
        )

    async def kill_switch(self, switch: Switch, *, on: bool, source: str) -> None:
        """In the tenant's chain where it holds in one tenant alone."""
        known = is_uuid(switch.tenant)
        await self._put(
            "kill.on" if on else "kill.off",
            tenant=TenantId(switch.tenant) if known else NIL_TENANT,
            chain="tenant" if known else "system",
            severity="critical" if on else "high",
            kill={
                "scope": switch.scope,
                "tenant": (switch.tenant or None) if not known else None,
                "subject": switch.subject or None,
                "source": source,
            },
        )

    async def _put(
        self,
        kind: str,
        *,
        tenant: TenantId = NIL_TENANT,
        chain: str = "system",
        at_us: int | None = None,
        **fields: Any,
    ) -> None:
        record = Record(
            type=kind,
            tenant=tenant,
            chain=chain,
            at_us=micros(self.clock.now_ns()) if at_us is None else at_us,
            fields=fields,
        )
        await self.outbox.put(record)
