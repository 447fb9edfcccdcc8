"""Opens the proxy's parts in order and closes them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec

from services.common.clock import Clock, SystemClock
from services.common.errors import BehavryError
from services.common.outbox.digests import Digester
from services.common.outbox.outbox import FileOutbox, Tuning
from services.common.outbox.record import Record
from services.common.outbox.running import OutboxOptions, running_outbox
from services.common.outbox.stamp import Origin
from services.common.outbox.transport import GrpcTransport
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity as PeerIdentity
from services.common.rpc.peers import TokenPeers
from services.common.rpc.server import Serving, serve
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, get_log
from services.common.telemetry.otel import exporting
from services.proxy import local, records, snapshot
from services.proxy.admission import edges
from services.proxy.backends.children import own_children
from services.proxy.backends.credentials import Credentials
from services.proxy.backends.hosted import HostedStdio
from services.proxy.backends.legacy_sse import LegacySseBackend
from services.proxy.backends.registry import Registry
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.stdio import StdioBackend
from services.proxy.backends.streamable import StreamableBackend
from services.proxy.bridge import VERSION
from services.proxy.calls import Visit
from services.proxy.catalog import Catalog, Listing, View
from services.proxy.clients.control import ControlClient
from services.proxy.clients.decide import DecideClient
from services.proxy.clients.snapshots import watch
from services.proxy.continuing import Carried
from services.proxy.endings import Endings
from services.proxy.failures import Failure, Failures
from services.proxy.holding import Holds
from services.proxy.identity import Identity
from services.proxy.pipeline import Pipeline
from services.proxy.replicas.post import Post
from services.proxy.seals import Seals
from services.proxy.sessions import Sessions
from services.proxy.settings import ProxySettings
from services.proxy.stores import open_stores
from services.proxy.streams.feeds import Feeds
from services.proxy.transports.entry import Entry
from services.proxy.transports.listener import bind, listening
from services.proxy.waiting import Waits
from services.proxy.worker import Worker

SWEEP_S: Final = 10.0
#: One of several listens when it is ready: until then others answer. Those who wait for a first one
#: are told after a while that it is not.
SOON_S: Final = 3.0
REPORT_TRIES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where the proxy listens, and which revision of the policy it knows."""

    http: str
    serving: Serving
    counters: Counters
    revision: Callable[[], str]
    #: How many calls wait for a person on an open request.
    waiting: Callable[[], int]
    #: How many streams agents have open to hear of changes.
    listening: Callable[[], int]
    #: Whether other proxies of the plane reach this one.
    reachable: Callable[[], bool]
    forget_catalog: Callable[[], None]
    forget_upstreams: Callable[[], None]


@asynccontextmanager
async def running(
    settings: ProxySettings, *, clock: Clock | None = None, worker: Worker | None = None
) -> AsyncIterator[Running]:
    """SERVING once the authorizer sent who may do what and whose tokens count. `worker`: it is one
    of several, and gets no connection before.
    """
    clock = clock or SystemClock()
    counters, log = Counters(), get_log("proxy")
    digester = Digester.load(settings.digest_keys)
    seals = Seals.load(settings.seal_keys, clock)
    me = PeerIdentity("proxy", settings.peers_dir / "proxy.token")
    options = OutboxOptions(
        root=settings.outbox_dir,
        origin=Origin(kind="proxy", plane=settings.plane_id, version=VERSION),
        max_bytes=settings.outbox_max_bytes,
        tuning=Tuning(durability=settings.outbox_durability),
    )
    async with (
        exporting(settings, "proxy", counters) as spans,
        dial(settings.audit_address, me) as audit,
        running_outbox(
            options,
            GrpcTransport(audit),
            clock=clock,
            counters=counters,
            log=log,
            digester=digester,
        ) as outbox,
        dial(settings.authorizer_address, me) as authorizer,
        aiohttp.ClientSession(auto_decompress=False) as http,
        open_stores(settings, clock, log) as stores,
        Supervisor(log) as supervisor,
    ):
        holds = Holds()
        post = Post(
            rendezvous=stores.rendezvous,
            seals=seals,
            clock=clock,
            spawn=supervisor.once,
            counters=counters,
            log=log,
            alone=not settings.counter_store_url,
        )
        decide = DecideClient(
            authorizer,
            holds=holds,
            worker=f"{settings.plane_id}/{outbox.source}",
            timeout_ms=settings.decision_timeout_ms,
            counters=counters,
            log=log,
        )
        control = ControlClient(http, settings.control_url, counters)
        identity = Identity(
            issuer=settings.control_public_url,
            plane_audience=f"behavry:dp:{settings.plane_id}",
            trader=control,
            clock=clock,
            spawn=supervisor.once,
            grace_s=settings.token_grace_s,
        )
        backends = _backends(settings, clock, counters, supervisor, log)
        notes = _Notes(outbox, decide, supervisor, clock, log)
        catalog = Catalog(decider=decide, clock=clock, report=notes.report, served=notes.served)
        sessions = Sessions(seals, clock, Endings(clock, log, stores.counts), post)
        failures = Failures(clock, notes.auth_failed)
        carried = Carried(seals, clock)
        waits = Waits(
            holds=holds,
            escalations=decide,
            carried=carried,
            post=post,
            hold_s=settings.hold_seconds,
            page_url=settings.control_public_url.rstrip("/"),
            log=log,
        )
        pipeline = Pipeline(
            identity=identity,
            decider=decide,
            recorder=outbox,
            backends=backends,
            catalog=catalog,
            sessions=sessions,
            seals=seals,
            carried=carried,
            waits=waits,
            post=post,
            spawn=supervisor.once,
            digester=digester,
            failures=failures,
            counters=counters,
            clock=clock,
            log=log,
            spans=spans,
        )
        holds.when_revoked = pipeline.steps.feeds.revoked
        holds.when_reconnected = pipeline.steps.feeds.reconsider
        sessions.when_ended = pipeline.steps.feeds.session_ended

        async with serve(
            listen=settings.grpc_listen,
            register=lambda _: None,  # health and diagnostics are all that others may ask
            authenticator=TokenPeers(settings.peers_dir),
            counters=counters,
            log=log,
        ) as serving:
            ready = _Readiness(pipeline, identity, outbox, serving, worker)

            def take_proxy(_: str, raw: bytes) -> None:
                pipeline.snapshot = snapshot.decode(raw)
                catalog.forget_views()
                pipeline.steps.feeds.policy_changed()
                ready.changed()

            def take_jwks(_: str, raw: bytes) -> None:
                part = msgspec.json.decode(raw)
                identity.set_keys(str(part.get("issuer") or ""), part.get("jwks") or {})
                ready.changed()

            supervisor.spawn("decide", decide.run)
            supervisor.spawn("post", post.run)
            supervisor.spawn("snapshot", lambda: watch(authorizer, "proxy", take_proxy, log))
            supervisor.spawn("jwks", lambda: watch(authorizer, "jwks", take_jwks, log))
            listener, bound = await _bound(settings, worker, ready)
            entry = Entry(
                pipeline=pipeline,
                control=control,
                edges=edges(
                    public_url=settings.public_url.replace(settings.http_listen, bound),
                    issuer=settings.control_public_url,
                    allowed_hosts=settings.allowed_hosts,
                    cors_origins=settings.cors_origins,
                ),
                ready=lambda: ready.now,
                counters=counters,
                log=log,
            )
            supervisor.spawn("sweep", lambda: _sweep(backends, sessions, failures, pipeline))
            try:
                async with listening(entry, listener), _letting_go(holds, pipeline.steps.feeds):
                    supervisor.spawn("readiness", ready.run)
                    yield Running(
                        http=f"http://{bound}",
                        serving=serving,
                        counters=counters,
                        revision=lambda: pipeline.snapshot.revision,
                        waiting=lambda: len(holds),
                        listening=lambda: len(pipeline.steps.feeds),
                        reachable=post.reading.is_set,
                        forget_catalog=catalog.forget,
                        forget_upstreams=backends.forget,
                    )
            finally:
                failures.sweep(everything=True)
                await backends.shut()


def _backends(
    settings: ProxySettings, clock: Clock, counters: Counters, supervisor: Supervisor, log: Log
) -> Registry:
    secrets = Secrets(settings.secrets_dir)
    private = settings.egress_private == "allow"
    streamable = StreamableBackend(
        credentials=Credentials(
            secrets=secrets, clock=clock, counters=counters, log=log, private=private
        ),
        clock=clock,
        counters=counters,
        spawn=supervisor.once,
        private=private,
    )
    legacy_sse = LegacySseBackend(
        http=streamable.plain, clock=clock, counters=counters, spawn=supervisor.once
    )
    stdio = _stdio(settings, clock, counters, supervisor)
    return Registry(streamable, legacy_sse, stdio)


def _stdio(
    settings: ProxySettings, clock: Clock, counters: Counters, supervisor: Supervisor
) -> StdioBackend | HostedStdio | None:
    """Children have one host: this process if it is the only one, else a process of their own."""
    spawn = supervisor.once
    if settings.stdio_host:
        path = settings.stdio_socket
        return HostedStdio(socket=path, clock=clock, counters=counters, spawn=spawn)
    if settings.workers > 1:
        return None
    return own_children(settings, clock, counters, spawn)


async def _bound(
    settings: ProxySettings, worker: Worker | None, ready: _Readiness
) -> tuple[socket.socket, str]:
    if worker is None:
        return bind(settings.http_listen)
    await ready.soon()
    return worker.listener, worker.address(settings.http_listen)


class _Readiness:
    """Ready: a snapshot, keys, and an outbox that takes calls."""

    def __init__(
        self,
        pipeline: Pipeline,
        identity: Identity,
        outbox: FileOutbox,
        serving: Serving,
        worker: Worker | None,
    ) -> None:
        self._pipeline = pipeline
        self._identity = identity
        self._outbox = outbox
        self._serving = serving
        self._worker = worker
        self._news = asyncio.Event()
        self._told = False

    @property
    def now(self) -> bool:
        return bool(self._pipeline.snapshot.revision) and self._identity.ready

    def changed(self) -> None:
        self._news.set()

    async def soon(self) -> None:
        """Until there is a snapshot and keys, or no hope of them for now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SOON_S):
                while not self.now:
                    self._news.clear()
                    await self._news.wait()

    async def run(self) -> None:
        """Keeps the health service's word."""
        while True:
            ready = self.now and self._outbox.accepts_calls
            if ready != self._told:
                self._told = ready
                await self._serving.set_health("", serving=ready)
                if self._worker is not None:
                    self._worker.tell(ready=ready)
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), 1.0)
            except TimeoutError:
                continue


class _Notes:
    """What is told to others without anybody waiting: records and reports."""

    def __init__(
        self,
        outbox: FileOutbox,
        decide: DecideClient,
        supervisor: Supervisor,
        clock: Clock,
        log: Log,
    ) -> None:
        self._outbox = outbox
        self._decide = decide
        self._supervisor = supervisor
        self._clock = clock
        self._log = log

    def report(self, visit: Visit, listing: Listing) -> None:
        tenant, slug = visit.caller.tenant, visit.slug
        tools = [(t.name, t.schema_hash, t.definition) for t in listing.tools.values()]

        async def tell() -> None:
            for attempt in range(REPORT_TRIES):
                try:
                    await self._decide.report(tenant, slug, tools)
                except BehavryError:
                    await asyncio.sleep(0.25 * 2**attempt)
                else:
                    return
            self._log.warning("tools_not_reported", server=slug)

        self._supervisor.once("report tools", tell)

    def served(self, visit: Visit, view: View, listing: Listing) -> None:
        self._put(
            records.served(
                visit,
                visible=len(view.names),
                offered=len(listing.tools),
                digest=view.digest,
                clock=self._clock,
            )
        )

    def auth_failed(self, failure: Failure, count: int) -> None:
        self._put(
            records.auth_failed(
                tenant=failure.tenant,
                agent=failure.agent,
                reason=failure.reason,
                server=failure.server,
                client_ip=failure.address,
                count=count,
                clock=self._clock,
            )
        )

    def _put(self, record: Record) -> None:
        async def put() -> None:
            try:
                await self._outbox.put(record)
            except BehavryError as failure:
                self._log.error("not_recorded", reason=failure.code)

        self._supervisor.once("record", put)


@asynccontextmanager
async def _letting_go(holds: Holds, feeds: Feeds) -> AsyncIterator[None]:
    """What waits for a person, or for news, ends before the listener waits for answers."""
    try:
        yield
    finally:
        holds.close()
        feeds.close()


async def _sweep(
    backends: Registry, sessions: Sessions, failures: Failures, pipeline: Pipeline
) -> None:
    """What time ends: idle sessions, children, merged failures, tasks."""
    while True:
        await asyncio.sleep(SWEEP_S)
        failures.sweep()
        pipeline.steps.tasks.sweep()
        await pipeline.steps.feeds.touch()
        await backends.sweep()
        for visit, session in await sessions.sweep():
            upstream = local.upstream_session(session)
            if upstream is not None:
                await backends.of(visit.server).close(visit, upstream)
