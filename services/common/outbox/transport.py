"""`AuditWriterService.Append` over gRPC, for the shipper. Moves bytes and maps errors, no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import grpc

from behavry.audit.v1 import audit_pb2
from services.common.outbox.shipper import AppendStream, TransportLost
from services.common.rpc.client import Link

_METHOD: Final = "/behavry.audit.v1.AuditWriterService/Append"


class GrpcTransport:
    """Through a dialled link. Requests are handed over as the bytes that were stored."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._call = link.channel.stream_stream(
            _METHOD,
            request_serializer=_as_is,
            response_deserializer=audit_pb2.AppendResponse.FromString,
        )

    @asynccontextmanager
    async def append(self) -> AsyncIterator[AppendStream]:
        call = cast("Any", self._call(metadata=self._link.metadata()))
        try:
            yield _GrpcStream(call)
        finally:
            call.cancel()


class _GrpcStream:
    def __init__(self, call: Any) -> None:  # grpc.aio has no public type for a bidirectional call
        self._call = call

    async def send(self, request: bytes) -> None:
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as lost:
            raise TransportLost(lost.code().name) from None
        except asyncio.InvalidStateError:
            raise TransportLost("ended") from None

    async def receive(self) -> audit_pb2.AppendResponse:
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as lost:
            raise TransportLost(lost.code().name) from None
        if answer is grpc.aio.EOF:
            raise TransportLost("ended")
        return cast("audit_pb2.AppendResponse", answer)


def _as_is(request: bytes) -> bytes:
    return request
