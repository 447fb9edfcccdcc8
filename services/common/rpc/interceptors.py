"""What every call passes before its servicer, in this order: counted, peer, deadline, errors.

One of the two places that may catch everything (style rule 21): an unexpected exception reaches
the caller as INTERNAL without its text.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from services.common.errors import BehavryError
from services.common.rpc import peers
from services.common.rpc.errors import Status
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, describe

_INTERNAL = BehavryError("INTERNAL", "internal error")


class Guard(grpc.aio.ServerInterceptor):
    def __init__(self, authenticator: peers.Authenticator, counters: Counters, log: Log) -> None:
        self._authenticator = authenticator
        self._calls = counters.counter("rpc.calls")
        self._refused = counters.counter("rpc.refused")
        self._log = log

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # an unknown method: grpc answers UNIMPLEMENTED by itself
            return handler
        service = handler_call_details.method.split("/")[1]
        if handler.response_streaming:
            return self._streaming(handler, service)
        return self._single(handler, service)

    def _single(self, handler: Any, service: str) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def guarded(request: Any, context: Any) -> Any:
            try:
                self._admit(service, context, deadline=not handler.request_streaming)
                return await behaviour(request, context)
            except BehavryError as refusal:
                await self._refuse(context, refusal)
            except Exception as failure:  # the outermost handler
                if isinstance(failure, grpc.aio.AbortError):
                    raise
                await self._fail(context, service, failure)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _streaming(self, handler: Any, service: str) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )

        async def written(request: Any, context: Any) -> None:
            try:
                self._admit(service, context, deadline=False)
                await behaviour(request, context)
            except BehavryError as refusal:
                await self._refuse(context, refusal)
            except Exception as failure:  # the outermost handler
                if isinstance(failure, grpc.aio.AbortError):
                    raise
                await self._fail(context, service, failure)

        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                self._admit(service, context, deadline=False)
                async for answer in behaviour(request, context):
                    yield answer
            except BehavryError as refusal:
                await self._refuse(context, refusal)
            except Exception as failure:  # the outermost handler
                if isinstance(failure, grpc.aio.AbortError):
                    raise
                await self._fail(context, service, failure)

        # A behaviour yields its answers; grpc's own health service writes them to the context.
        chosen = guarded if inspect.isasyncgenfunction(behaviour) else written
        return make(chosen, handler.request_deserializer, handler.response_serializer)

    def _admit(self, service: str, context: Any, *, deadline: bool) -> None:
        self._calls.value += 1
        peers.admit(service, context.invocation_metadata(), self._authenticator)
        if deadline and service not in peers.OPEN and context.time_remaining() is None:
            raise BehavryError("DEADLINE_REQUIRED", "a unary call needs a deadline")

    async def _refuse(self, context: Any, refusal: BehavryError) -> None:
        self._refused.value += 1
        await context.abort_with_status(Status(refusal))

    async def _fail(self, context: Any, service: str, failure: Exception) -> None:
        self._refused.value += 1
        self._log.error("rpc_failed", rpc_service=service, error=describe(failure))
        await context.abort_with_status(Status(_INTERNAL))
