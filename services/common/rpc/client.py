"""Dials another service. The caller adds `metadata=link.metadata()` and a timeout to each call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc

from services.common.rpc.peers import Identity
from services.common.rpc.server import MAX_MESSAGE_BYTES

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long an attempt may take, whatever the name says: a busy machine needs more than 0.1 s.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each channel its own connection: a shared one would tie two streams' fates together.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Link:
    """A channel and the name under which this process calls through it."""

    channel: grpc.aio.Channel
    identity: Identity

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self.identity.metadata()


@asynccontextmanager
async def dial(address: str, identity: Identity) -> AsyncIterator[Link]:
    """Does not wait for the other side: a call finds out."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        yield Link(channel, identity)
