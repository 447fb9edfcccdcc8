"""`SnapshotService.Watch`: whole parts of the active bundle, as they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import grpc

from behavry.authorizer.v1 import authorizer_pb2, authorizer_pb2_grpc
from services.common.rpc.client import Link
from services.common.telemetry.logging import Log

DELAY_S: Final = 0.2

#: Takes (revision, bytes); raises ValueError for what it cannot use.
Take = Callable[[str, bytes], None]


async def watch(link: Link, part: str, take: Take, log: Log) -> None:
    """Runs as long as the process; the last good snapshot stays while the authorizer is away."""
    stub = authorizer_pb2_grpc.SnapshotServiceStub(link.channel)
    while True:
        try:
            call = stub.Watch(
                authorizer_pb2.WatchRequest(part=part),
                metadata=link.metadata(),
                wait_for_ready=True,
            )
            async for response in call:
                try:
                    take(response.revision, response.snapshot)
                except ValueError:
                    log.error("snapshot_invalid", part=part)
        except (grpc.aio.AioRpcError, OSError) as failure:
            code = failure.code().name if isinstance(failure, grpc.aio.AioRpcError) else "token"
            log.warning("snapshot_stream_ended", part=part, code=code)
        await asyncio.sleep(DELAY_S)
