"""The processes of a standalone installation: command, environment, readiness of each, in the order
of their start.

Environments hold paths, addresses and choices, never a secret's value. What a process needs beyond
its defaults is said here once; `children.py` runs what this file lists.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from services.authorizer.engine import opa_feed
from services.cli import wire
from services.cli.children import CannotStart, Program
from services.cli.engines import Engine, find_opa
from services.cli.output import CommandFailed, Exit
from services.cli.secrets_made import bundle_keys
from services.cli.state import Remembered, State, proxy_workers, write_text
from services.common.postgres import embedded

SERVICES = ("audit", "entitlements", "control", "authorizer", "proxy")
# What a process inherits from the caller beside its own settings.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "PYTHONPATH", "SSL_CERT_FILE")
HEALTH_TIMEOUT_S = 2.0
LICENSE = "BEHAVRY_LICENSE"
WORKERS = "BEHAVRY_PROXY_WORKERS"
STDIO_HOST = "BEHAVRY_PROXY_STDIO_HOST"
COUNTER_STORE = "BEHAVRY_COUNTER_STORE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one `up` decided."""

    state: State
    remembered: Remembered
    run_dir: Path
    engine: Engine
    production: bool
    caller: Mapping[str, str]

    @property
    def proxy_url(self) -> str:
        return f"http://127.0.0.1:{self.remembered.proxy_port}"

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.remembered.control_port}"

    @property
    def feed_address(self) -> str:
        return f"127.0.0.1:{self.remembered.feed_port}"

    @property
    def environment(self) -> str:
        """Part of the scope that a bundle's signature names; the services' own default."""
        return self.caller.get("BEHAVRY_ENVIRONMENT") or "local"

    @property
    def opa_socket(self) -> Path:
        return self.run_dir / "opa.sock"

    @property
    def stdio_socket(self) -> Path:
        return self.run_dir / "stdio.sock"

    @property
    def hosts_stdio(self) -> bool:
        """Whether stdio servers have a process of their own: where several workers share them, and
        the caller named no host that runs already.
        """
        return several_proxies(self.caller) and not self.caller.get(STDIO_HOST)


def several_proxies(caller: Mapping[str, str]) -> bool:
    """Whether the caller wants more than one. Raises CommandFailed where they could not agree."""
    workers = caller.get(WORKERS, "")
    if not workers.isdecimal() or int(workers) < 2:
        return False
    if not caller.get(COUNTER_STORE):
        raise CommandFailed(
            f"{WORKERS}={workers!r} needs {COUNTER_STORE}: redis://host:port/db, "
            "rediss://host:port/db or unix:///path, which the proxies share.",
            status=Exit.USAGE,
        )
    return True


def postgres(plan: Plan, cluster: embedded.Cluster) -> Program:
    """The embedded server; a start waits until an old one is gone."""

    async def ready(pid: int) -> bool:
        return embedded.is_ready(cluster, pid=pid)

    async def before() -> None:
        try:
            await embedded.await_previous_end(cluster)
        except embedded.EmbeddedUnavailable as why:
            raise CannotStart(str(why)) from why

    return Program(
        name="postgres",
        argv=cluster.argv(),
        env={**_inherited(plan), "LC_ALL": "C"},
        log=plan.state.log_of("postgres"),
        ready=ready,
        stop_signal=embedded.STOP_SIGNAL,
        before=before,
        identity=cluster.spawn_identity(),
    )


def opa(plan: Plan) -> Program:
    """OPA on a unix socket. It polls the authorizer's feed for bundles and checks their signatures
    itself, against the same trust root.
    """
    binary = find_opa()
    if binary is None:
        raise CommandFailed("the opa binary is gone")
    config = plan.run_dir / "opa.json"
    write_text(
        config,
        opa_feed.opa_config(
            feed_url=f"http://{plan.feed_address}",
            token_file=plan.state.peers / "opa.token",
            scope=f"behavry/{plan.environment}/{plan.remembered.plane_id}",
            public_keys=bundle_keys(plan.state.trust),
        ),
    )

    async def before() -> None:
        plan.opa_socket.unlink(missing_ok=True)

    async def ready(_: int) -> bool:
        return await asyncio.to_thread(_opa_answers, plan.opa_socket)

    return Program(
        name="opa",
        argv=[binary, *opa_feed.opa_arguments(socket=plan.opa_socket, config=config)],
        env={**_inherited(plan), **opa_feed.ENVIRONMENT},
        log=plan.state.log_of("opa"),
        ready=ready,
        before=before,
    )


def _opa_answers(opa_socket: Path) -> bool:
    try:
        answer = wire.send("GET", "http://localhost/health", unix_socket=opa_socket, timeout_s=1)
    except wire.Unreachable:
        return False
    return answer.status == 200


def service(plan: Plan, name: str, dsns: Mapping[str, str]) -> Program:
    """One of the five."""
    return Program(
        name=name,
        # The -X value means nothing to Python: it tells whoever lists processes whose this one is.
        argv=[sys.executable, "-X", f"behavry={plan.state.root}", "-m", f"services.{name}"],
        env={**_inherited(plan), **_settings(plan), **own_settings(plan, name, dsns)},
        log=plan.state.log_of(name),
        ready=_serving(plan.run_dir / f"{name}.sock"),
        workers=partial(proxy_workers, plan.run_dir) if name == "proxy" else None,
    )


def stdio_host(plan: Plan) -> Program:
    """The proxy in its other role: the one process that hosts stdio servers for its workers."""
    name = "stdio-host"
    own = {**own_settings(plan, "proxy", {}), "BEHAVRY_PROXY_ROLE": "stdio_host"}
    return Program(
        name=name,
        argv=[sys.executable, "-X", f"behavry={plan.state.root}", "-m", "services.proxy"],
        env={**_inherited(plan), **_settings(plan), **own},
        log=plan.state.log_of(name),
        ready=_serving(plan.run_dir / f"{name}.sock"),
    )


def _inherited(plan: Plan) -> dict[str, str]:
    kept = {name: plan.caller[name] for name in INHERITED if name in plan.caller}
    return {**kept, "BEHAVRY_STATE_DIR": str(plan.state.root)}


def _settings(plan: Plan) -> dict[str, str]:
    """What all five are told; what the caller set of our own settings comes first and may be
    overruled.
    """
    given = {
        name: value
        for name, value in plan.caller.items()
        if name.startswith("BEHAVRY_") and name not in {"BEHAVRY_DB_URL", LICENSE}
    }
    keys = plan.state.keys
    return given | {
        "BEHAVRY_STATE_DIR": str(plan.state.root),
        "BEHAVRY_RUN_DIR": str(plan.run_dir),
        "BEHAVRY_ENV": "production" if plan.production else "development",
        "BEHAVRY_MODE": "standalone",
        "BEHAVRY_PLANE_ID": plan.remembered.plane_id,
        "BEHAVRY_CONTROL_PUBLIC_URL": plan.control_url,
        "BEHAVRY_PROXY_PUBLIC_URL": plan.proxy_url,
        "BEHAVRY_DIGEST_KEYS": str(keys / "digest.keys"),
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # services start programs, they never fork themselves
        "GRPC_VERBOSITY": "ERROR",  # what it says below that is no JSON, and no news
    }


def own_settings(plan: Plan, name: str, dsns: Mapping[str, str]) -> dict[str, str]:
    keys = plan.state.keys
    match name:
        case "audit":
            return {
                "BEHAVRY_AUDIT_WRITER_DB_URL": dsns["behavry_audit_writer"],
                "BEHAVRY_AUDIT_READER_DB_URL": dsns["behavry_audit_reader"],
            }
        case "entitlements":
            own = {"BEHAVRY_ENTITLEMENTS_DB_URL": dsns["behavry_entitlements"]}
            if LICENSE in plan.caller:  # nobody else needs to hold it
                own[LICENSE] = plan.caller[LICENSE]
            return own
        case "control":
            return {
                "BEHAVRY_CONTROL_DB_URL": dsns["behavry_control"],
                "BEHAVRY_CONTROL_HTTP_LISTEN": f"127.0.0.1:{plan.remembered.control_port}",
                "BEHAVRY_CONTROL_TOKEN_KEY": str(keys / "jwt.pem"),
                "BEHAVRY_CONTROL_BUNDLE_KEY": str(keys / "bundle.pem"),
                "BEHAVRY_CONTROL_DECISION_KEY": str(keys / "decision.pem"),
                "BEHAVRY_CONTROL_PLANE_KEYS": str(plan.state.plane_keys),
            }
        case "authorizer":
            own = {
                "BEHAVRY_AUTHORIZER_ENGINE": plan.engine.setting,
                "BEHAVRY_AUTHORIZER_LINK_KEY": str(keys / "link.pem"),
                "BEHAVRY_AUTHORIZER_TRUST_FILE": str(plan.state.trust),
                "BEHAVRY_AUTHORIZER_OPA_FEED_LISTEN": plan.feed_address,
            }
            if plan.engine is Engine.OPA_CHILD:
                own["BEHAVRY_OPA_URL"] = f"unix:{plan.opa_socket}"
            return own
        case "proxy":
            return {
                "BEHAVRY_PROXY_ROLE": "proxy",
                **({STDIO_HOST: f"unix:{plan.stdio_socket}"} if plan.hosts_stdio else {}),
                "BEHAVRY_PROXY_HTTP_LISTEN": f"127.0.0.1:{plan.remembered.proxy_port}",
                "BEHAVRY_PROXY_SEAL_KEYS": str(keys / "seal.keys"),
                "BEHAVRY_PROXY_STDIO_FILE": str(plan.state.stdio),
                "BEHAVRY_SECRETS_DIR": str(plan.state.secrets),
            }
        case _:
            raise ValueError(name)


def _serving(address: Path) -> Callable[[int], Awaitable[bool]]:
    """grpc.health.v1 on the process's own socket: SERVING, and nothing else, is ready."""

    async def ready(_: int) -> bool:
        if not address.exists():
            return False
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ready
