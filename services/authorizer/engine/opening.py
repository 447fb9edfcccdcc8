"""Which engine this process uses: OPA where its address is set, else the embedded child."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.authorizer.engine.embedded import embedded_engine
from services.authorizer.engine.opa import opa_engine
from services.authorizer.engine.opa_feed import OpaFeed, serve_feed
from services.authorizer.engine.protocol import Engine
from services.common.telemetry.logging import Log


@asynccontextmanager
async def open_engine(
    *, opa_url: str, feed_listen: str, feed_token: Path, log: Log
) -> AsyncIterator[Engine]:
    """`opa_url` empty: embedded. `feed_listen` is where OPA fetches the bundle, `host:port`."""
    if not opa_url:
        async with embedded_engine(log) as embedded:
            yield embedded
        return
    host, _, port = feed_listen.rpartition(":")
    feed = OpaFeed(feed_token.read_text().strip())  # noqa: ASYNC240  # once, at start
    async with (
        serve_feed(feed, host=host, port=int(port)),
        opa_engine(opa_url, feed, log) as opa,
    ):
        yield opa
