"""Serves the verified bundle to OPA by its stock Bundle API, and writes OPA's configuration.

OPA checks the bundle's signature by itself; this end only hands out what the authorizer took.
Loopback, bearer token from a 0600 file, long polling: a new bundle is fetched at once.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web

BUNDLE_NAME: Final = "behavry"
CONTENT_TYPE: Final = "application/vnd.openpolicyagent.bundles"
LONG_POLL_S: Final = 30
#: For whoever starts OPA: its heap is small and short-lived, and the default collects it so often
#: that a decision costs half as much again.
ENVIRONMENT: Final[Mapping[str, str]] = {"GOGC": "400"}
RESOURCE: Final = "bundle.tar.gz"
_WAIT: Final = re.compile(r"(?:^|[;, ])wait=(\d{1,4})")


class OpaFeed:
    """The one bundle on offer."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._current: tuple[str, bytes] | None = None
        self._changed = asyncio.Event()

    @property
    def current(self) -> tuple[str, bytes] | None:
        """(etag, archive)"""
        return self._current

    def publish(self, etag: str, archive: bytes) -> None:
        self._current = (etag, archive)
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._expected):
            return web.Response(status=401)
        wait = _WAIT.search(request.headers.get("Prefer", ""))
        known = request.headers.get("If-None-Match", "").strip('"')
        if wait and (self._current is None or self._current[0] == known):
            await self._change_within(min(int(wait[1]), LONG_POLL_S))
        if self._current is None:
            return web.Response(status=404)
        etag, archive = self._current
        headers = {"ETag": f'"{etag}"', "Content-Type": CONTENT_TYPE}
        if etag == known:
            return web.Response(status=304, headers=headers)
        return web.Response(body=archive, headers=headers)

    async def _change_within(self, seconds: int) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return


@asynccontextmanager
async def serve_feed(feed: OpaFeed, *, host: str = "127.0.0.1", port: int) -> AsyncIterator[str]:
    """Yields the feed's URL. The port is fixed by who also starts OPA; 0 takes a free one."""
    application = web.Application()
    application.router.add_get(f"/{RESOURCE}", feed.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0][1]
        yield f"http://{host}:{bound}"
    finally:
        await runner.cleanup()


def opa_config(
    *, feed_url: str, token_file: Path, scope: str, public_keys: Mapping[str, str]
) -> str:
    """OPA's configuration file (JSON, which is YAML). `public_keys`: key id -> ES256 PEM.

    The scope is pinned and the key id never: OPA prefers a pinned one over the signature's own,
    which blocks rotation (deployment.md 3.3).
    """
    document: dict[str, Any] = {
        "services": {
            "authorizer": {
                "url": feed_url,
                "credentials": {"bearer": {"token_path": str(token_file)}},
                "response_header_timeout_seconds": LONG_POLL_S + 10,
            }
        },
        "bundles": {
            BUNDLE_NAME: {
                "service": "authorizer",
                "resource": RESOURCE,
                "persist": False,
                "polling": {
                    "long_polling_timeout_seconds": LONG_POLL_S,
                    "min_delay_seconds": 1,
                    "max_delay_seconds": 2,
                },
                "signing": {"scope": scope},
            }
        },
        "keys": {
            kid: {"algorithm": "ES256", "key": pem} for kid, pem in sorted(public_keys.items())
        },
    }
    return json.dumps(document, indent=2) + "\n"


def opa_arguments(*, socket: Path, config: Path) -> list[str]:
    """What follows `opa`: a server on a unix socket that logs failures alone."""
    return [
        "run",
        "--server",
        f"--addr=unix://{socket}",
        f"--config-file={config}",
        "--log-level=error",
        "--skip-version-check",
        "--unix-socket-perm=600",
    ]
