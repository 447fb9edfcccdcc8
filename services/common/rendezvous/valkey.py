"""The rendezvous of a plane's processes at a Valkey or Redis: boxes are channels, so that letters
are kept nowhere and who sends learns whether anybody reads; values are hashes that expire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio import Redis

from services.common.rendezvous.protocol import RendezvousLost
from services.common.valkey import Valkey, ValkeyLost

#: A letter may be some megabytes.
BOUND_S: Final = 1.0


class ValkeyRendezvous:
    """`prefix` keeps planes apart that share a server."""

    def __init__(self, valkey: Valkey, *, prefix: str, bound_s: float = BOUND_S) -> None:
        self._valkey = valkey
        self._bound_s = bound_s
        self._prefix = f"{{{prefix}}}:meet:"

    async def send(self, box: str, letter: str) -> bool:
        channel = f"{self._prefix}box:{box}"
        try:
            readers = await self._valkey.call(
                lambda server: server.publish(channel, letter), bound_s=self._bound_s
            )
        except ValkeyLost as lost:
            raise RendezvousLost(str(lost)) from None
        return bool(readers)

    @asynccontextmanager
    async def reading(self, boxes: Sequence[str]) -> AsyncIterator[AsyncIterator[str]]:
        channels = [f"{self._prefix}box:{box}" for box in boxes]
        try:
            async with self._valkey.subscribed(channels) as published:
                yield _each(published)
        except ValkeyLost as lost:
            raise RendezvousLost(str(lost)) from None

    async def put(self, key: str, part: str, value: str, *, ttl_s: int) -> None:
        name = self._key_of(key)

        async def both(server: Redis) -> None:
            async with server.pipeline(transaction=True) as together:
                together.hset(name, part, value)
                together.pexpire(name, ttl_s * 1_000)
                await together.execute()

        try:
            await self._valkey.call(both, bound_s=self._bound_s)
        except ValkeyLost as lost:
            raise RendezvousLost(str(lost)) from None

    async def get(self, key: str) -> dict[str, str]:
        name = self._key_of(key)
        try:
            found = await self._valkey.call(
                lambda server: server.hgetall(name), bound_s=self._bound_s
            )
        except ValkeyLost as lost:
            raise RendezvousLost(str(lost)) from None
        return {str(part): str(value) for part, value in found.items()}

    async def drop(self, key: str, part: str = "") -> None:
        name = self._key_of(key)
        try:
            await self._valkey.call(
                lambda server: server.hdel(name, part) if part else server.delete(name),
                bound_s=self._bound_s,
            )
        except ValkeyLost as lost:
            raise RendezvousLost(str(lost)) from None

    def _key_of(self, key: str) -> str:
        return f"{self._prefix}kept:{key}"


async def _each(published: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for letter in published:
            yield letter
    except ValkeyLost as lost:
        raise RendezvousLost(str(lost)) from None
