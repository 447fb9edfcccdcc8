"""The one address that this program speaks to: requests to the gateway, and what it answers.

Decides when a request is sent again: while no connection could be made, and once with a new
credential. What was sent and got no answer is sent again only where its sender says that this is
harmless. Keeps the words about it short: away, and back.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from services.common.sse import EventParser, EventTooLong
from services.mcp_stdio.credential import Credential, CredentialRefused, Unavailable
from services.mcp_stdio.messages import MAX_LINE

#: Pauses between attempts to connect: a gateway that restarts is not noticed.
PAUSES_S: Final = (0.1, 0.2, 0.4, 0.8, 1.5)
PATIENCE_S: Final = 8.0
CONNECT_S: Final = 5.0
#: The gateway says something every 15 s, if only a comment.
SILENCE_S: Final = 75.0
UNTRUSTED: Final = "the gateway's certificate is not one that is trusted here (--ca FILE)"
_COMMON: Final = {
    "Accept": "application/json, text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "behavry-mcp-stdio",
}
#: Nothing has left this machine when one of these is raised.
_UNSENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_FAILED: Final = (aiohttp.ClientError, TimeoutError, OSError)

Say = Callable[[str], None]


class Away(Exception):
    """Nobody there. `sent`: bytes may have gone out; `lost`: nobody knows what became of them."""

    def __init__(
        self, words: str = "the gateway cannot be reached", *, sent: bool, lost: bool = False
    ) -> None:
        super().__init__(words)
        self.sent = sent
        self.lost = lost


class Broken(Exception):
    """It ended without an answer, or with something that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`harmless`: may be sent again when nobody knows what became of it."""

    verb: str
    headers: Mapping[str, str]
    body: bytes | None = None
    harmless: bool = False


def client_session(ca: Path | None) -> aiohttp.ClientSession:
    """No proxies of the environment, no cookies, as many connections as are needed."""
    tls = ssl.create_default_context(cafile=str(ca)) if ca else True
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        auto_decompress=False,
    )


class Gateway:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        credential: Credential,
        requester: str,
        say: Say,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._session = session
        self._pauses_s = pauses_s
        self._url = url
        self._credential = credential
        self._always = dict(_COMMON)
        if requester:
            self._always["X-Requester-Id"] = requester
        self._say = say
        self._away = ""

    @asynccontextmanager
    async def exchange(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response's head; its body by `contents` or `read`. Raises Away, Broken,
        CredentialRefused.
        """
        response = await self._answered(request)
        try:
            yield response
        finally:
            response.release()  # one that has not ended is closed: its stream is given up

    async def _answered(self, request: Request) -> aiohttp.ClientResponse:
        """1. the credential  2. the request, again while nobody is there  3. a refused credential
        is renewed once: nothing ran yet.
        """
        renewed = False
        while True:
            try:
                bearer = await self._credential.bearer()  # 1
                response = await self._patiently(request, bearer)  # 2
                if response.status != 401:
                    return response
                response.release()
                if renewed:
                    raise CredentialRefused("the gateway refused the credential")
                await self._credential.renew(bearer)  # 3
            except Unavailable:
                raise Away(sent=False) from None
            renewed = True

    async def _patiently(self, request: Request, bearer: str) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE_S
        for pause_s in (*self._pauses_s, None):
            try:
                response = await self._once(request, bearer)
            except Away as away:
                self._tell(str(away))
                again = request.harmless or not away.sent
                if pause_s is None or not again or loop.time() + pause_s > give_up:
                    raise
                await asyncio.sleep(pause_s)
            else:
                self._tell("")
                return response
        raise Away(sent=False)

    async def _once(self, request: Request, bearer: str) -> aiohttp.ClientResponse:
        headers = {**self._always, **request.headers, "Authorization": f"Bearer {bearer}"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = await self._session.request(
                request.verb,
                self._url,
                data=request.body,
                headers=headers,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorCertificateError:
            raise Away(UNTRUSTED, sent=False) from None
        except _UNSENT:
            raise Away(sent=False) from None
        except _FAILED:
            raise Away(sent=True, lost=True) from None
        if response.status in {502, 503, 504} and response.content_type != "application/json":
            response.release()
            raise Away(sent=True, lost=response.status != 503)  # which says: not even begun
        return response

    def _tell(self, away: str) -> None:
        """Once for each change; empty: it is there."""
        if away != self._away:
            self._away = away
            self._say(away or "the gateway is back")


async def contents(response: aiohttp.ClientResponse, events: EventParser) -> AsyncIterator[bytes]:
    """Each message of an answer: one of a JSON body, any number of an event stream. Raises Broken
    where it breaks off.
    """
    if response.content_type != "text/event-stream":
        raw = await read(response)
        if raw.strip():
            yield raw
        return
    events.again()
    try:
        async for chunk in response.content.iter_any():
            for data in events.feed(chunk):
                if data.strip():  # an event may be there for its id alone
                    yield data
    except (*_FAILED, EventTooLong):
        raise Broken from None


async def read(response: aiohttp.ClientResponse) -> bytes:
    """A body that is whole. Raises Broken."""
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > MAX_LINE:
                raise Broken
            parts.append(chunk)
    except _FAILED:
        raise Broken from None
    return b"".join(parts)
