"""Opens control's parts in order and closes them in reverse. Tests use this same door.

What every step needs comes from the ones before it; nothing waits for another service.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import grpc
from joserfc.jwk import ECKey

from behavry.control.v1 import plane_link_pb2_grpc
from services.common.clock import Clock, SystemClock
from services.common.errors import BehavryError
from services.common.ids import TenantId, uuid7
from services.common.outbox.digests import Digester
from services.common.outbox.stamp import Origin
from services.common.outbox.table import TableOutbox
from services.common.outbox.transport import GrpcTransport
from services.common.postgres.health import tell_health
from services.common.postgres.pool import Pool, open_pool
from services.common.rpc.client import Link, dial
from services.common.rpc.peers import Identity, TokenPeers
from services.common.rpc.server import serve
from services.common.secret_refs import SecretFiles
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.common.telemetry.otel import exporting
from services.control import shared_counts, snapshots
from services.control.api import application, web
from services.control.api.context import Control
from services.control.api.verify_jobs import Verifications
from services.control.clients.audit import AuditReader
from services.control.clients.entitlements import Plans
from services.control.clients.entitlements_feed import RETRY_S, EntitlementsFeed
from services.control.features import Features
from services.control.keys import KeySet, SigningKey
from services.control.limits import Limits, Merging
from services.control.notifications import sending
from services.control.notifications.deliveries import Deliveries
from services.control.notifications.terms import TermNotices
from services.control.oidc import providers as openid
from services.control.other_replicas import OtherReplicas
from services.control.page_tokens import PageTokens
from services.control.passwords import Passwords
from services.control.planes import ControlPeers, Planes
from services.control.publishing import Publisher
from services.control.servicer import PlaneLinkServicer
from services.control.sessions import Origins
from services.control.settings import ControlSettings
from services.control.signals import Signals
from services.control.signed_decisions import DecisionKey
from services.control.store import first_start, tenants
from services.control.store.escalation_inbox import EscalationInbox
from services.control.store.sightings import ToolInbox
from services.control.store.tenants import Tenant
from services.control.tokens import Audiences, Issuer

#: How often everything that entitlements says is read again.
REREAD_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a caller may want to know of a running service."""

    #: `host:port` of the REST API, and the gRPC socket.
    http_address: str
    grpc_address: str
    tenant: Tenant
    counters: Counters
    control: Control = field(repr=False)
    tool_inbox: ToolInbox = field(repr=False)
    publisher: Publisher = field(repr=False)


@asynccontextmanager
async def running(
    settings: ControlSettings, *, clock: Clock | None = None
) -> AsyncIterator[Running]:
    """1. keys  2. the database  3. first tenant and admin  4. other services  5. the outbox
    6. what follows changes  7. the doors  8. health.
    """
    clock = clock or SystemClock()
    log = get_log("control")
    counters = Counters()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exporting(settings, "control", counters))
        signing_key = SigningKey.from_file(settings.token_key)  # 1
        page_tokens = PageTokens.from_file(settings.page_key)
        bundle_key = ECKey.import_key(settings.bundle_key.read_bytes())
        decision_key = DecisionKey.from_file(settings.decision_key)
        planes = Planes.from_file(settings.plane_keys, audience=settings.public_url, clock=clock)
        pool = await stack.enter_async_context(  # 2
            open_pool(settings.db_url, max_size=20, application_name="behavry-control")
        )
        counters.watch("postgres.statements", lambda: pool.counters.statements)
        counters.watch("postgres.connections", lambda: pool.counters.connections)
        passwords = Passwords()
        tenant = await first_start.ensure(  # 3
            pool,
            clock,
            passwords,
            password_file=settings.admin_password_file,
            api_key_file=settings.admin_api_key_file,
        )
        supervisor = await stack.enter_async_context(Supervisor(log))
        us = Identity("control", settings.peer_token)  # 4
        audit_link = await stack.enter_async_context(dial(settings.audit_address, us))
        plans_link = await stack.enter_async_context(dial(settings.entitlements_address, us))
        plans = _plans(settings, plans_link, clock, counters, supervisor)
        features = plans.features

        def tell_of(id: TenantId, slug: str) -> None:
            supervisor.once(f"put-tenant-{id}", partial(_put_tenant, plans, id, slug, clock))

        await _each_tenant(pool, tell_of)
        recorder = TableOutbox(  # 5
            schema="control",
            origin=Origin(
                kind="control",
                plane=settings.plane_id,
                version=importlib.metadata.version("behavry"),
            ),
            clock=clock,
            counters=counters,
            log=log,
            digester=Digester.load(settings.digest_keys),
        )
        transport = GrpcTransport(audit_link)
        supervisor.spawn("outbox", partial(recorder.run, settings.db_url, transport))
        signals = Signals(clock=clock)  # 6
        features.listen(lambda _: signals.touch())
        publisher = Publisher(
            pool=pool,
            signals=signals,
            modes=partial(_modes, features),
            plane_id=settings.plane_id,
            environment=settings.environment,
            key=bundle_key,
            kid=bundle_key.thumbprint(),
            clock=clock,
            log=log,
        )
        await publisher.resume()
        supervisor.spawn("publisher", publisher.run)
        audit = AuditReader(audit_link)
        verifications = Verifications(pool, clock, audit, supervisor)
        supervisor.spawn("verifications", verifications.resume)
        sender = await stack.enter_async_context(
            sending.opened(SecretFiles(settings.secrets_dir), clock)
        )
        providers = await stack.enter_async_context(
            openid.opened(SecretFiles(settings.secrets_dir), clock)
        )
        supervisor.spawn(
            "notifications",
            Deliveries(
                pool=pool,
                db_url=settings.db_url,
                clock=clock,
                sender=sender,
                recorder=recorder,
                supervisor=supervisor,
                counters=counters,
                log=log,
                public_url=settings.public_url,
            ).run,
        )
        supervisor.spawn(
            "license-terms",
            TermNotices(pool=pool, features=features, clock=clock, recorder=recorder, log=log).run,
        )
        supervisor.spawn(
            "other-replicas", OtherReplicas(db_url=settings.db_url, signals=signals).run
        )
        control = Control(
            settings=settings,
            clock=clock,
            log=log,
            pool=pool,
            recorder=recorder,
            passwords=passwords,
            pages=page_tokens,
            decision_key=decision_key,
            key_set=KeySet.of(signing_key),
            issuer=Issuer(settings.public_url, signing_key),
            audiences=Audiences(
                plane_id=settings.plane_id, proxy_public_url=settings.proxy_public_url
            ),
            origins=Origins(settings.public_url),
            limits=Limits(
                clock, await stack.enter_async_context(shared_counts.opened(settings, log))
            ),
            failures=Merging(clock),
            features=features,
            planes=planes,
            signals=signals,
            audit=audit,
            plans=plans,
            counters=counters,
            verify_jobs=verifications,
            sender=sender,
            supervisor=supervisor,
            providers=providers,
            new_tenant=tell_of,
        )
        tool_inbox = ToolInbox(pool, clock, signals, recorder, log)
        peers = ControlPeers(TokenPeers(settings.peers_dir), planes)
        link = PlaneLinkServicer(
            signals=signals,
            tools=tool_inbox,
            escalations=EscalationInbox(
                pool=pool, clock=clock, signals=signals, plane=settings.plane_id, log=log
            ),
            plane_of=peers.plane_of,
            issuer=settings.public_url,
            supervisor=supervisor,
            log=log,
        )
        grpc_serving = await stack.enter_async_context(  # 7
            serve(
                listen=settings.grpc_listen,
                register=partial(_register, link),
                authenticator=peers,
                counters=counters,
                log=log,
            )
        )
        http_address = await stack.enter_async_context(
            web.serving(application.build(control), settings.http_listen, supervisor)
        )
        supervisor.spawn("ping", partial(tell_health, grpc_serving, pool))  # 8
        await grpc_serving.set_health("", serving=True)
        yield Running(
            http_address=http_address,
            grpc_address=grpc_serving.address,
            tenant=tenant,
            counters=counters,
            control=control,
            tool_inbox=tool_inbox,
            publisher=publisher,
        )


def _register(link: PlaneLinkServicer, server: grpc.aio.Server) -> None:
    """Control's own gRPC door; health and diagnostics are there already."""
    plane_link_pb2_grpc.add_PlaneLinkServiceServicer_to_server(link, server)


async def _each_tenant(pool: Pool, do: Callable[[TenantId, str], None]) -> None:
    async with pool.acquire() as connection:
        for known in await tenants.every(connection):
            do(known.id, known.slug)


def _plans(
    settings: ControlSettings,
    link: Link,
    clock: Clock,
    counters: Counters,
    supervisor: Supervisor,
) -> Plans:
    """What entitlements last said, at first by the copy on disk; then it is listened to."""
    features = Features(clock)
    kept = snapshots.read(settings.entitlements_copy)
    if kept is not None:
        features.restore(kept)
    disk_copy = snapshots.DiskCopy(settings.entitlements_copy, features, get_log("control"))
    plans = Plans(link, features, counters)
    feed = EntitlementsFeed(link, features, plans)
    supervisor.spawn("entitlements-copy", disk_copy.run)
    supervisor.spawn("entitlements", partial(_watch_for_ever, feed))
    supervisor.spawn("entitlements-again", partial(_reread_for_ever, feed))
    return plans


def _modes(features: Features, tenant: TenantId) -> dict[str, str] | None:
    held = features.of(tenant)
    return held.modes() if held else None


async def _put_tenant(plans: Plans, id: TenantId, slug: str, clock: Clock) -> None:
    """Until entitlements knows the tenant."""
    while True:
        try:
            await plans.put_tenant(id, slug, uuid7(clock.now_ns()))
        except BehavryError:
            await asyncio.sleep(RETRY_S)
        else:
            return


async def _watch_for_ever(feed: EntitlementsFeed) -> None:
    """Entitlements may be away for as long as it likes: what it said last goes on."""
    while True:
        with contextlib.suppress(BehavryError, TimeoutError):
            await feed.watch()
        await asyncio.sleep(RETRY_S)


async def _reread_for_ever(feed: EntitlementsFeed) -> None:
    while True:
        await asyncio.sleep(REREAD_S)
        with contextlib.suppress(BehavryError, TimeoutError):
            await feed.reread()
