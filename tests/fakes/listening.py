"""An agent's open streams, read event by event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.fakes.gateway import Gateway, modern_request

#: Many streams may share a busy machine.
PATIENCE_S = 15


@dataclass
class Event:
    message: Any
    id: str = ""


@dataclass
class Stream:
    """One answer as it comes; nothing has come yet when this is made."""

    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    async def opened(self) -> int:
        """The status, when there is one."""
        async with asyncio.timeout(PATIENCE_S):
            await self.begun.wait()
        return self.status

    async def leave(self) -> None:
        """The agent's end of the connection is closed."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,))

    async def next(self, method: str = "") -> Event:
        """The next event, or the next of this method."""
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.events.get()) is not None:
                if not method or (event.message or {}).get("method") == method:
                    return event
        raise AssertionError("the stream ended")

    async def rest(self) -> list[Event]:
        """What comes until it ends."""
        found = []
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.events.get()) is not None:
                found.append(event)
        return found

    def now(self) -> list[Any]:
        """The messages that have come and were not asked for."""
        found = []
        while not self.events.empty():
            event = self.events.get_nowait()
            found.append(event.message if event else None)
        return found

    async def read(self, answer: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> None:
        event_id, data = "", b""
        try:
            async with answer as response:
                self.status = response.status
                self.headers = {name.lower(): value for name, value in response.headers.items()}
                self.begun.set()
                if response.content_type != "text/event-stream":
                    whole = await response.read()
                    self.events.put_nowait(Event(orjson.loads(whole or b"null")))
                async for line in response.content:
                    text = line.rstrip(b"\n")
                    if text.startswith(b"id:"):
                        event_id = text[3:].strip().decode()
                    elif text.startswith(b"data:"):
                        data = text[5:].strip() or b"null"
                    elif not text and data:
                        self.events.put_nowait(Event(orjson.loads(data), event_id))
                        event_id, data = "", b""
        except aiohttp.ClientError:
            pass
        finally:
            self.events.put_nowait(None)


@asynccontextmanager
async def reading(
    answer: AbstractAsyncContextManager[aiohttp.ClientResponse],
) -> AsyncIterator[Stream]:
    stream = Stream()
    stream.task = asyncio.ensure_future(stream.read(answer))
    try:
        yield stream
    finally:
        await stream.leave()


def got(
    proxy: Gateway, headers: dict[str, str], *, token: str | None = None, last: str = ""
) -> AbstractAsyncContextManager[Stream]:
    """GET of a legacy session."""
    sent = {
        "authorization": f"Bearer {token or proxy.issuer.token()}",
        "accept": "text/event-stream",
        **headers,
        **({"last-event-id": last} if last else {}),
    }
    return reading(proxy.http.get(proxy.mcp(), headers=sent))


def listening(
    proxy: Gateway, notifications: Any, *, id: Any = "sub-1", token: str | None = None
) -> AbstractAsyncContextManager[Stream]:
    """`subscriptions/listen` of a modern agent."""
    body, sent = modern_request("subscriptions/listen", {"notifications": notifications}, {}, {})
    return reading(proxy.sending({**body, "id": id}, headers=sent, token=token))


def calling(
    proxy: Gateway, body: Any, headers: dict[str, str], **options: Any
) -> AbstractAsyncContextManager[Stream]:
    """Any request, whatever its answer is."""
    return reading(proxy.sending(body, headers=headers, **options))
