"""The proxy as it runs in an installation, alone: its own process, one worker, records synced; the
authorizer beside it is one that says yes at once, and nobody collects the records.

    python -m tests.perf.relay_alone --upstream http://127.0.0.1:N/mcp
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final

import aiohttp
import orjson

from services.common.settings import load
from services.proxy.settings import ProxySettings
from tests.fakes.authorizer import FakeAuthorizer, serving, snapshot
from tests.fakes.children import ROOT
from tests.fakes.gateway import (
    BOTH,
    Issuer,
    environment,
    http_server,
    modern_request,
    until_true,
)
from tests.perf.subjects import SLUG, TOOL

LIFE_S: Final = 6 * 3600
START_TIMEOUT_S: Final = 30.0


class Forgetful(list[object]):
    """The fake keeps what it is asked; in an hour that would be all there is."""

    def extend(self, _: object) -> None:
        pass


async def approved(fake: FakeAuthorizer, url: str, token: str) -> None:
    """The tool has been listed, pinned, and may be called."""

    async def asked(method: str, params: dict[str, object]) -> bool:
        body, headers = modern_request(method, params, {}, {})
        sent = {"authorization": f"Bearer {token}", "accept": BOTH, **headers}
        async with aiohttp.ClientSession() as http:
            try:
                async with http.post(url, json=body, headers=sent) as response:
                    answer = orjson.loads(await response.read() or b"{}")
            except aiohttp.ClientConnectionError:
                return False
        result = answer.get("result", {})
        return "tools" in result or result.get("isError") is False

    call: dict[str, object] = {
        "name": TOOL,
        "arguments": {"call": "first", "kind": "bench", "text": "x"},
    }
    await until_true(lambda: asked("tools/list", {}), seconds=START_TIMEOUT_S)
    await fake.approve(SLUG, TOOL)
    await until_true(lambda: asked("tools/call", call), seconds=START_TIMEOUT_S)


async def serve(upstream: str, state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = environment(
        state,
        BEHAVRY_PROXY_HTTP_LISTEN=f"127.0.0.1:{port}",
        BEHAVRY_OUTBOX_DURABILITY="power",
    )
    settings = load(ProxySettings, env)
    issuer = Issuer()
    fake = FakeAuthorizer(snapshot({SLUG: http_server(upstream, domain=SLUG)}), issuer.jwks())
    fake.asks = Forgetful()  # type: ignore[assignment]  # nobody reads them here
    url = f"http://127.0.0.1:{port}/mcp/v1/{SLUG}"
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(fake, settings.authorizer_address, settings.peers_dir):
        with (state / "proxy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.proxy",
                cwd=ROOT, env={**os.environ, **env}, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            now_s = issuer.jwks()["fetched_at"]
            token = issuer.token(exp=now_s + LIFE_S)
            try:
                await approved(fake, url, token)
            except TimeoutError:
                sys.stderr.write((state / "proxy.log").read_text()[-2000:])
                raise
            ready = {"url": url, "token": token, "pid": process.pid}
            sys.stdout.buffer.write(orjson.dumps(ready) + b"\n")
            sys.stdout.buffer.flush()
            await stop.wait()
        finally:
            process.terminate()
            await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.perf.relay_alone")
    parser.add_argument("--upstream", required=True)
    with tempfile.TemporaryDirectory(prefix="bhv-relay-") as scratch:
        asyncio.run(serve(parser.parse_args().upstream, Path(scratch) / "s"))


if __name__ == "__main__":
    main()
