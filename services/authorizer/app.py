"""Opens the authorizer's parts in order and closes them in reverse."""

from __future__ import annotations

import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import grpc

from behavry.authorizer.v1 import authorizer_pb2, authorizer_pb2_grpc
from services.authorizer import bundles
from services.authorizer.active import ActivePolicy
from services.authorizer.approvals import Approvals
from services.authorizer.bundle_feed import BundleFeed
from services.authorizer.bundle_store import BundleStore
from services.authorizer.decide_streams import DecideStreams
from services.authorizer.engine.judge import EngineJudge
from services.authorizer.engine.opening import open_engine
from services.authorizer.engine.protocol import EngineState
from services.authorizer.escalation_notices import EscalationNotices
from services.authorizer.escalation_watch import EscalationWatch
from services.authorizer.escalations import Escalations
from services.authorizer.journal import Journal
from services.authorizer.judging import Judging
from services.authorizer.jwks_feed import JwksFeed
from services.authorizer.kill_file import KillFile
from services.authorizer.link import VERSION, PlaneLink
from services.authorizer.link_token import LinkTokens
from services.authorizer.policy_watch import PolicyWatch
from services.authorizer.rates import Rates
from services.authorizer.revocations import Revocations, RevocationsLost
from services.authorizer.servicer import AuthorizerServicer, SnapshotServicer
from services.authorizer.settings import AuthorizerSettings
from services.authorizer.stop_news import StopNews
from services.authorizer.stores import open_stores
from services.authorizer.wind_down import WindDownWatch
from services.common.clock import Clock, SystemClock
from services.common.outbox.digests import Digester
from services.common.outbox.outbox import Tuning
from services.common.outbox.running import OutboxOptions, running_outbox
from services.common.outbox.stamp import Origin
from services.common.outbox.transport import GrpcTransport
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity, TokenPeers
from services.common.rpc.server import Serving, serve
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.common.telemetry.otel import exporting


@asynccontextmanager
async def running(
    settings: AuthorizerSettings, *, clock: Clock | None = None
) -> AsyncIterator[Serving]:
    """Yields the bound server; SERVING once a bundle is active."""
    clock = clock or SystemClock()
    counters, log = Counters(), get_log("authorizer")
    trust = bundles.trust_from(
        settings.trust_file.read_bytes(),
        plane_id=settings.plane_id,
        environment=settings.environment,
    )
    tokens = LinkTokens.from_file(
        settings.link_key,
        plane_id=settings.plane_id,
        audience=settings.control_public_url,
        clock=clock,
    )
    active = ActivePolicy(
        clock=clock,
        expire_after_s=settings.expire_after_s,
        revocations=Revocations(settings.bundle_dir / "revocations.json"),
    )
    origin = Origin(kind="authorizer", plane=settings.plane_id, version=VERSION)
    options = OutboxOptions(
        root=settings.outbox_dir,
        origin=origin,
        max_bytes=settings.outbox_max_bytes,
        tuning=Tuning(durability=settings.outbox_durability),
    )
    me = Identity("authorizer", settings.peers_dir / "authorizer.token")
    digester = Digester.load(settings.digest_keys)
    async with (
        exporting(settings, "authorizer", counters),
        dial(settings.audit_address, me) as audit,
        running_outbox(
            options,
            GrpcTransport(audit),
            clock=clock,
            counters=counters,
            log=log,
            digester=digester,
        ) as outbox,
        open_stores(settings, clock, log) as stores,
        open_engine(
            opa_url=settings.opa_url if settings.engine != "embedded" else "",
            feed_listen=settings.opa_feed_listen,
            feed_token=settings.opa_feed_token,
            log=log,
        ) as engine,
        aiohttp.ClientSession() as http,
        Supervisor(log) as supervisor,
    ):
        journal, tickets = Journal(outbox=outbox, clock=clock), stores.tickets
        judge = EngineJudge(engine, supervisor, counters)
        feed = BundleFeed(
            url=settings.bundle_url,
            http=http,
            tokens=tokens,
            trust=trust,
            store=BundleStore(settings.bundle_dir),
            judge=judge,
            active=active,
            journal=journal,
            clock=clock,
            poll_s=settings.poll_s,
            counters=counters,
            log=log,
        )
        jwks = JwksFeed(
            url=f"{settings.control_url}/.well-known/jwks.json",
            issuer=settings.control_public_url,
            http=http,
            path=settings.bundle_dir / "jwks.json",
            active=active,
            clock=clock,
            log=log,
        )
        streams = DecideStreams[authorizer_pb2.Verdict]()
        notices = EscalationNotices(tickets)
        approvals = Approvals(
            store=tickets,
            keys=trust.decision_keys,
            plane_id=settings.plane_id,
            journal=journal,
            clock=clock,
            counters=counters,
            log=log,
        )
        escalation_watch = EscalationWatch(
            store=tickets,
            active=active,
            proxies=streams,
            notices=notices,
            journal=journal,
            clock=clock,
            counters=counters,
            log=log,
        )
        link = PlaneLink(
            address=settings.control_address,
            tokens=tokens,
            plane_id=settings.plane_id,
            instance=sockets.gethostname(),
            active=active,
            feed=feed,
            jwks=jwks,
            proxies=streams,
            notices=notices,
            approvals=approvals,
            log=log,
        )

        def engine_changed(state: EngineState) -> None:
            up = state is EngineState.UP
            link.engine_up = up
            log.warning("engine_state", engine=engine.name, up=up)
            supervisor.once("engine_record", lambda: journal.engine(up=up, name=engine.name))

        engine.on_state(engine_changed)
        link.engine_up = engine.state is EngineState.UP
        escalations = Escalations(
            store=tickets,
            digester=digester,
            active=active,
            clock=clock,
            verifiable=bool(trust.decision_keys),
        )
        rates = Rates(store=stores.counts, clock=clock, log=log, replicas=settings.replicas)
        judging = Judging(
            active=active,
            judge=judge,
            rates=rates,
            escalations=escalations,
            clock=clock,
            counters=counters,
        )

        stop_news = StopNews(active=active, proxies=streams, journal=journal, log=log)
        active.kill_switch.listen(stop_news.changed)
        wind_downs = WindDownWatch(active=active, proxies=streams, clock=clock)
        kill_file = KillFile(path=settings.kill_file, tell=active.stopped_here)

        def register(server: grpc.aio.Server) -> None:
            authorizer_pb2_grpc.add_AuthorizerServiceServicer_to_server(
                AuthorizerServicer(
                    judging=judging,
                    active=active,
                    escalations=escalations,
                    streams=streams,
                    link=link,
                    supervisor=supervisor,
                    counters=counters,
                ),
                server,
            )
            authorizer_pb2_grpc.add_SnapshotServiceServicer_to_server(
                SnapshotServicer(active=active, jwks=jwks), server
            )

        async with serve(
            listen=settings.grpc_listen,
            register=register,
            authenticator=TokenPeers(settings.peers_dir),
            counters=counters,
            log=log,
        ) as serving:
            jwks.restore()
            kill_file.look()
            try:
                active.revocations.restore(now_ns=clock.monotonic_ns())
            except RevocationsLost:
                log.error("revocations_lost", alert="critical")
            active.changed()
            await feed.restore()
            watch = PolicyWatch(active=active, serving=serving, proxies=streams, journal=journal)
            for name, run in (
                ("bundle_feed", feed.run),
                ("jwks_feed", jwks.run),
                ("control_link", link.run),
                ("revocations_kept", link.run_acknowledgements),
                ("policy_watch", watch.run),
                ("kill_file", kill_file.run),
                ("kill_switch_records", stop_news.run),
                ("wind_downs", wind_downs.run),
                ("escalation_clocks", escalation_watch.run_clocks),
                ("escalation_policies", escalation_watch.run_policies),
                ("escalation_records", escalation_watch.run_records),
                ("escalation_again", escalation_watch.run_again),
                ("escalation_notices", notices.run),
                ("escalation_decisions", approvals.run),
            ):
                supervisor.spawn(name, run)
            yield serving
