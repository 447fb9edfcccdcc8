"""The proxy's one route to control: `auth/token` and `enroll`, relayed or asked for a key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_plus

import aiohttp
import msgspec

from services.common.telemetry.counters import Counters
from services.proxy.identity import ControlAway, Traded, Unauthenticated

TIMEOUT_S: Final = 10.0
#: Whether it is there is asked so long, and known for so long.
LOOK_S: Final = 2.0
KNOWN_S: Final = 5.0
MAX_BODY: Final = 64 * 1024
#: What of control's answer travels back.
_RETURNED: Final = frozenset({"content-type", "retry-after", "cache-control", "www-authenticate"})
_FORM: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Relayed:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class _Token(msgspec.Struct):
    access_token: str
    expires_in: int = 0


class ControlClient:
    def __init__(self, session: aiohttp.ClientSession, url: str, counters: Counters) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._requests = counters.counter("proxy.control.requests")
        self._looking = asyncio.Lock()
        self._is_away = False
        self._known_until = 0.0

    async def away(self) -> bool:
        """Whether nobody answers there."""
        async with self._looking:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._known_until:
                self._is_away = not await self._answers()
                self._known_until = loop.time() + KNOWN_S
            return self._is_away

    async def _answers(self) -> bool:
        self._requests.value += 1
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        try:
            async with self._session.get(
                f"{self._url}/healthz", allow_redirects=False, timeout=timeout
            ) as response:
                return response.status < 500
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def relay(self, path: str, body: bytes, headers: dict[str, str]) -> Relayed:
        """Raises ControlAway."""
        self._requests.value += 1
        try:
            async with self._session.post(
                f"{self._url}{path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as response:
                content = await _read(response.content)
                kept = tuple(
                    (name.lower().encode(), value.encode("latin-1"))
                    for name, value in response.headers.items()
                    if name.lower() in _RETURNED
                )
                return Relayed(response.status, kept, content)
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise ControlAway from None

    async def trade(self, client_id: str, client_secret: str, session: str | None) -> Traded | None:
        """None: refused. Raises ControlAway, Unauthenticated (rate limited)."""
        fields = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        if session is not None:
            fields["session"] = session
        body = "&".join(f"{name}={quote_plus(value)}" for name, value in fields.items()).encode()
        answer = await self.relay("/api/v1/auth/token", body, {"content-type": _FORM})
        if answer.status == 429 or answer.status >= 500:
            raise ControlAway
        if answer.status != 200:
            return None
        try:
            token = msgspec.json.decode(answer.body, type=_Token)
        except msgspec.DecodeError:
            raise Unauthenticated("invalid_client") from None
        return Traded(token.access_token, token.expires_in)


async def _read(content: aiohttp.StreamReader) -> bytes:
    """All of it, up to the limit: it may come in pieces."""
    found = bytearray()
    while len(found) < MAX_BODY and (piece := await content.read(MAX_BODY - len(found))):
        found += piece
    return bytes(found)
