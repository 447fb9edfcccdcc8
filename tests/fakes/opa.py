"""A real OPA process that fetches its bundle from a feed, with its own signature check on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from joserfc.jwk import ECKey

from services.authorizer.engine.opa import Opa, opa_engine
from services.authorizer.engine.opa_feed import (
    ENVIRONMENT,
    OpaFeed,
    opa_arguments,
    opa_config,
    serve_feed,
)
from services.common.telemetry.logging import get_log
from tests.fakes.bundle import KID, SCOPE
from tests.house import tool

TOKEN = "feed-token-of-the-test"


@dataclass(slots=True)
class RunningOpa:
    engine: Opa
    feed: OpaFeed
    process: asyncio.subprocess.Process
    socket: Path


async def start_opa(directory: Path, feed_url: str, key: ECKey) -> asyncio.subprocess.Process:
    token_file = directory / "feed.token"
    token_file.write_text(TOKEN)
    config = directory / "opa.yaml"
    public = key.as_pem(private=False).decode()
    config.write_text(
        opa_config(feed_url=feed_url, token_file=token_file, scope=SCOPE, public_keys={KID: public})
    )
    binary = tool("opa")
    assert binary is not None
    with (directory / "opa.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            binary,
            *opa_arguments(socket=directory / "opa.sock", config=config),
            stdout=log,
            stderr=log,
            env=dict(ENVIRONMENT),
        )


@asynccontextmanager
async def running_opa(directory: Path, key: ECKey) -> AsyncIterator[RunningOpa]:
    feed = OpaFeed(TOKEN)
    socket = directory / "opa.sock"
    async with serve_feed(feed, port=0) as feed_url:
        process = await start_opa(directory, feed_url, key)
        try:
            await until_listening(socket)
            async with opa_engine(f"unix:{socket}", feed, get_log("test")) as engine:
                yield RunningOpa(engine, feed, process, socket)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def until_listening(socket: Path) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(socket)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return
