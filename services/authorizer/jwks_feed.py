"""The keys that verify agents' tokens: fetched from control, kept on disk, streamed to the proxy,
which has no link to control (deployment.md 4). An old set serves while control is away.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from services.authorizer.active import ActivePolicy
from services.common.clock import Clock
from services.common.telemetry.logging import Log

#: 80 % of the 300 s that a set counts as fresh.
REFRESH_S: Final = 240.0
RETRY_S: Final = 2.0
MAX_BYTES: Final = 256 << 10


@dataclass(slots=True, kw_only=True)
class JwksFeed:
    url: str
    issuer: str
    http: aiohttp.ClientSession
    path: Path
    active: ActivePolicy
    clock: Clock
    log: Log
    part: bytes = b""
    _etag: str = ""
    _poke: asyncio.Event = field(default_factory=asyncio.Event)

    def restore(self) -> None:
        try:
            self._publish(json.loads(self.path.read_bytes()))
        except (OSError, ValueError):
            return

    def poke(self) -> None:
        self._poke.set()

    async def run(self) -> None:
        while True:
            self._poke.clear()
            pause_s = REFRESH_S
            try:
                await self._fetch()
            except (aiohttp.ClientError, TimeoutError, ValueError) as away:
                self.log.warning("jwks_fetch_failed", error=type(away).__name__)
                pause_s = RETRY_S
            try:
                await asyncio.wait_for(self._poke.wait(), pause_s)
            except TimeoutError:
                continue

    async def _fetch(self) -> None:
        headers = {"If-None-Match": self._etag} if self._etag else {}
        timeout = aiohttp.ClientTimeout(total=10)
        async with self.http.get(
            self.url, headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            if answer.status == 304:
                return
            if answer.status != 200:
                raise ValueError(answer.status)
            body = await answer.content.read(MAX_BYTES)
            keys = json.loads(body)
            self._etag = answer.headers.get("ETag", "")
        self._publish(keys)
        self._keep(body)

    def _publish(self, keys: Any) -> None:
        if not isinstance(keys, dict) or not isinstance(keys.get("keys"), list):
            raise ValueError  # noqa: TRY004  # a wrong document, not a wrong argument
        document = {
            "issuer": self.issuer,
            "jwks": {"keys": keys["keys"]},
            "fetched_at": self.clock.now_ns() // 1_000_000_000,
        }
        self.part = json.dumps(document, separators=(",", ":")).encode()
        self.active.changed()

    def _keep(self, body: bytes) -> None:
        temporary = self.path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
