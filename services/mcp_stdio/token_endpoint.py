"""Asks the token endpoint (RFC 6749 4.4): the gateway's own, which relays to control.

Decides what its answers mean: a refusal, a session that ended, or nobody to ask.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlencode

import aiohttp
import msgspec

from services.mcp_stdio.credential import (
    CredentialRefused,
    SessionEnded,
    TokenAnswer,
    Unavailable,
)
from services.mcp_stdio.gateway import Broken, read

TIMEOUT_S: Final = 15.0
PAUSES_S: Final = (0.1, 0.2, 0.4, 0.8, 1.5)


class _Refusal(msgspec.Struct):
    error: str = ""


class TokenEndpoint:
    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, client_id: str, client_secret: str
    ) -> None:
        self._session = session
        self._url = url
        self._client_id = client_id
        self._client_secret = client_secret

    async def __call__(self, session: str) -> TokenAnswer:
        """Asking twice does no harm: it is done again while nobody answers."""
        for pause_s in PAUSES_S:
            try:
                return await self._once(session)
            except Unavailable:
                await asyncio.sleep(pause_s)
        return await self._once(session)

    async def _once(self, session: str) -> TokenAnswer:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "client_secret": self._client_secret,
        }
        if session:
            form["session"] = session
        try:
            async with self._session.post(
                self._url,
                data=urlencode(form).encode(),
                headers={
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as response:
                status, raw = response.status, await read(response)
        except (aiohttp.ClientError, TimeoutError, OSError, Broken):
            raise Unavailable from None
        return _token(status, raw, session)


def _token(status: int, raw: bytes, session: str) -> TokenAnswer:
    try:
        if status == 200:
            return msgspec.json.decode(raw, type=TokenAnswer)
        why = msgspec.json.decode(raw, type=_Refusal).error
    except msgspec.DecodeError:
        why = ""
    if status in {408, 429} or status >= 500:
        raise Unavailable
    if session and why == "invalid_grant":
        raise SessionEnded
    raise CredentialRefused("the token endpoint refused the credential")
