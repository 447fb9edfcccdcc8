"""Proxies beside each other: a second one in front of the same tool servers, with the same keys and
the same authorizer, as behind a load balancer that sends each request wherever it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.clock import Clock
from services.common.rendezvous.memory import MemoryRendezvous
from services.common.rendezvous.protocol import Rendezvous
from services.common.settings import load
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.proxy.app import running
from services.proxy.replicas.post import Post
from services.proxy.seals import Seals
from services.proxy.settings import ProxySettings
from tests.fakes.gateway import Gateway, environment, gateway, until, until_ready
from tests.fakes.neighbour import http_client


def spawned(_: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    async def work() -> None:
        await run()

    return asyncio.get_running_loop().create_task(work())


def post(seals: Seals, clock: Clock, rendezvous: Rendezvous, *, alone: bool = False) -> Post:
    return Post(
        rendezvous=rendezvous,
        seals=seals,
        clock=clock,
        spawn=spawned,
        counters=Counters(),
        log=get_log("test"),
        alone=alone,
    )


def lone(seals: Seals, clock: Clock) -> Post:
    """Of a proxy that has no others beside it."""
    return post(seals, clock, MemoryRendezvous(clock), alone=True)


@dataclass(frozen=True, slots=True)
class Two:
    one: Gateway
    other: Gateway


@asynccontextmanager
async def beside(
    first: Gateway, state_dir: Path, *, seal_keys: str = "", **changes: str
) -> AsyncIterator[Gateway]:
    """Another proxy with an outbox of its own."""
    own = environment(
        state_dir,
        BEHAVRY_AUTHORIZER_ADDRESS=first.settings.authorizer_address,
        BEHAVRY_PEERS_DIR=str(first.settings.peers_dir),
        BEHAVRY_DIGEST_KEYS=str(first.settings.digest_keys),
        BEHAVRY_PROXY_SEAL_KEYS=seal_keys or str(first.settings.seal_keys),
        BEHAVRY_COUNTER_STORE_URL=first.settings.counter_store_url,
        BEHAVRY_HOLD_SECONDS=str(first.settings.hold_seconds),
        BEHAVRY_PROXY_DECISION_TIMEOUT_MS=str(first.settings.decision_timeout_ms),
        **changes,
    )
    settings = load(ProxySettings, own)
    async with running(settings) as proxy, http_client() as http:
        made = Gateway(
            running=proxy,
            authorizer=first.authorizer,
            issuer=first.issuer,
            http=http,
            state_dir=state_dir,
            settings=settings,
        )
        await until_ready(made)
        if settings.counter_store_url:
            await until(made.running.reachable)
        yield made


@asynccontextmanager
async def two(
    directory: Path, servers: dict[str, dict[str, Any]], url: str, **changes: str
) -> AsyncIterator[Two]:
    """What they share besides is at that Valkey. Both in one process, which may be busy."""
    shared = {
        "BEHAVRY_COUNTER_STORE_URL": url,
        "BEHAVRY_PROXY_DECISION_TIMEOUT_MS": "10000",
        **changes,
    }
    async with gateway(directory / "one", servers, **shared) as one:
        await until(one.running.reachable)
        async with beside(one, directory / "other") as other:
            yield Two(one, other)


@asynccontextmanager
async def alone(pair: Two) -> AsyncIterator[Gateway]:
    """A third one, that ends while the others go on."""
    async with beside(pair.one, pair.one.state_dir.parent / "third") as third:
        await third.modern("tools/list")
        yield third
