"""What proves the agent: its key, or tokens that its secret is traded for (core.md 2).

Decides when a token is renewed: at 80 % of its life, and once when the gateway refuses it. Holds
secrets in memory alone and names none in what it raises.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import msgspec

from services.common.clock import Clock

RENEW_AT: Final = 0.8
#: A renewal that did not come about is tried again after this, while the old token lives.
AGAIN_NS: Final = 10_000_000_000
_NS: Final = 1_000_000_000


class CredentialRefused(Exception):
    """Nobody gets in with it; the process ends with status 3."""


class Credential(Protocol):
    async def bearer(self) -> str:
        """What to send. Raises CredentialRefused, and what the token endpoint's asker raises."""

    async def renew(self, refused: str, /) -> None:
        """The gateway did not take `refused`. Raises like `bearer`."""


class AgentKey:
    """The gateway trades it for tokens itself; when one of those has ended, it trades anew."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def bearer(self) -> str:
        return self._key

    async def renew(self, _: str) -> None:
        return


class TokenAnswer(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int = 0
    session_id: str = ""


class Unavailable(Exception):
    """The token endpoint cannot be asked now."""


class Asker(Protocol):
    async def __call__(self, session: str, /) -> TokenAnswer:
        """A token, of that agent session unless it is empty. Raises CredentialRefused,
        SessionEnded, Unavailable.
        """


class SessionEnded(Exception):
    """A token of that agent session is not given any more; of a new one it may be."""


class Tokens:
    """One token at a time; callers that come together wait for one trade."""

    def __init__(self, ask: Asker, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token = ""
        self._session = ""
        self._renew_at_ns = 0
        self._ends_at_ns = 0

    async def bearer(self) -> str:
        async with self._lock:
            now_ns = self._clock.now_ns()
            if not self._token or now_ns >= self._renew_at_ns:
                try:
                    await self._trade()
                except Unavailable:
                    if not self._token or now_ns >= self._ends_at_ns:
                        raise
                    self._renew_at_ns = now_ns + AGAIN_NS
            return self._token

    async def renew(self, refused: str) -> None:
        async with self._lock:
            if self._token == refused:
                self._token = ""
                await self._trade()

    async def _trade(self) -> None:
        try:
            got = await self._ask(self._session)
        except SessionEnded:
            self._session = ""
            got = await self._ask("")
        now_ns = self._clock.now_ns()
        self._token, self._session = got.access_token, got.session_id
        self._renew_at_ns = now_ns + int(got.expires_in * RENEW_AT * _NS)
        self._ends_at_ns = now_ns + got.expires_in * _NS
