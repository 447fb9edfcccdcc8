"""What handlers work with: the opened resources (Control) and one admitted request (Call).

Decides how a change is made: one transaction in the caller's tenant that holds the rows and the
records of the change; listeners hear of it after the commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from starlette.requests import Request

from services.common.clock import Clock
from services.common.ids import NIL_TENANT, EventId, TenantId, uuid7
from services.common.outbox.record import Record
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool, tenant_tx
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.control import audit_records
from services.control.clients.audit import AuditReader
from services.control.clients.entitlements import Plans
from services.control.escalations import is_stepped_up
from services.control.features import Checks, Features, checks_of
from services.control.keys import KeySet
from services.control.limits import Limits, Merging
from services.control.notifications.sending import Sender
from services.control.oidc.providers import Providers
from services.control.page_tokens import PageTokens
from services.control.passwords import Passwords
from services.control.planes import Planes
from services.control.principals import Principal
from services.control.sessions import Origins
from services.control.settings import ControlSettings
from services.control.signals import Signals
from services.control.signed_decisions import DecisionKey
from services.control.store.moments import moment
from services.control.tokens import Audiences, Issuer


class Recorder(Protocol):
    """The table outbox: takes records into the transaction of their change."""

    async def put(self, connection: Connection, record: Record) -> EventId: ...

    def wake(self) -> None:
        """A transaction with records has committed."""


class VerifyJobs(Protocol):
    """Follows verifications that audit runs."""

    def follow(self, tenant: TenantId, job_id: str, verify_id: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    settings: ControlSettings
    clock: Clock
    log: Log
    pool: Pool
    recorder: Recorder
    passwords: Passwords
    pages: PageTokens
    decision_key: DecisionKey
    key_set: KeySet
    issuer: Issuer
    audiences: Audiences
    origins: Origins
    limits: Limits
    failures: Merging
    features: Features
    planes: Planes
    signals: Signals
    audit: AuditReader
    plans: Plans
    counters: Counters
    verify_jobs: VerifyJobs
    sender: Sender
    #: Of what goes on after an answer.
    supervisor: Supervisor
    #: Of people's identity, where a tenant has one.
    providers: Providers
    #: Tells entitlements of a tenant, until it has heard.
    new_tenant: Callable[[TenantId, str], None]

    def new_id(self) -> str:
        return uuid7(self.clock.now_ns())


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An open transaction in one tenant, and the records that will be committed with it."""

    connection: Connection
    tenant: TenantId
    came: audit_records.Circumstances
    recorder: Recorder

    async def put(self, type: str, **fields: Any) -> None:
        """A record of another family than `admin`, in the admin chain."""
        record = audit_records.other(type, self.tenant, self.came, **fields)
        await self.recorder.put(self.connection, record)

    async def record(
        self,
        type: str,
        *,
        resource: str,
        resource_id: str,
        changes: Sequence[Mapping[str, Any]] = (),
        reason: str | None = None,
        step_up: bool | None = None,
    ) -> None:
        record = audit_records.admin(
            type,
            self.tenant,
            self.came,
            resource=resource,
            resource_id=resource_id,
            changes=changes,
            reason=reason,
            step_up=step_up,
        )
        await self.recorder.put(self.connection, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A request that nobody had to sign in for."""

    control: Control
    request: Request

    @property
    def address(self) -> str:
        """Who is at the other end of the connection; never a header's word."""
        return self.request.client.host if self.request.client else ""

    @property
    def now(self) -> datetime:
        return moment(self.control.clock.now_ns())

    def came(self, actor: Mapping[str, Any]) -> audit_records.Circumstances:
        return audit_records.Circumstances(
            actor=actor,
            route=f"{self.request.method} {self.request.scope['route'].path}",
            request_id=self.request.state.request_id,
            client_ip=self.address,
            now_ns=self.control.clock.now_ns(),
        )

    async def record_failure(
        self,
        tenant: TenantId | None,
        actor: Mapping[str, Any],
        reason: str,
        *,
        type: str = "user.signin_failed",
    ) -> None:
        """A failed try to get in, unless told. Beyond ten per address, reason and minute they are
        counted, and the count rides on the next record.
        """
        control = self.control
        count = control.failures.admit((tenant, self.address, reason))
        if count == 0:
            return
        record = audit_records.user(type, tenant, self.came(actor), reason=reason, count=count)
        async with tenant_tx(control.pool, tenant or NIL_TENANT) as connection:
            await control.recorder.put(connection, record)
        control.recorder.wake()

    @asynccontextmanager
    async def change_in(
        self, tenant: TenantId, actor: Mapping[str, Any], *, desired: bool
    ) -> AsyncIterator[Change]:
        """`desired`: planes must hear of it, because it changes what they enforce."""
        async with tenant_tx(self.control.pool, tenant) as connection:
            yield Change(
                connection=connection,
                tenant=tenant,
                came=self.came(actor),
                recorder=self.control.recorder,
            )
        self.control.recorder.wake()
        if desired:
            self.control.signals.touch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Visit):
    """A request whose sender is known and whose role suffices."""

    principal: Principal

    @property
    def tenant(self) -> TenantId:
        return self.principal.tenant

    @property
    def plan(self) -> Checks:
        """What the tenant's plan gives, at one revision however long the request takes."""
        return checks_of(self.request.scope["state"], self.control.features, self.tenant)

    @property
    def stepped_up(self) -> bool:
        """Whether the sender is a person who gave their password within the last minutes."""
        return is_stepped_up(self.principal.proven_at, self.now)

    @asynccontextmanager
    async def change(self, *, desired: bool = True) -> AsyncIterator[Change]:
        actor = self.principal.actor()
        async with self.change_in(self.tenant, actor, desired=desired) as change:
            yield change

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        async with tenant_tx(self.control.pool, self.tenant) as connection:
            yield connection


def control_of(request: Request) -> Control:
    control: Control = request.app.state.control
    return control
