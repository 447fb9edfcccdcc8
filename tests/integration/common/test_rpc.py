"""What every call passes, over a real server: deadline, errors, health, counters, a left socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import CapturingLogger

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from behavry.common.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from services.common.errors import BehavryError
from services.common.rpc.client import Link, dial
from services.common.rpc.errors import known
from services.common.rpc.peers import TokenPeers, peer_of
from services.common.rpc.server import MAX_MESSAGE_BYTES, Serving, serve
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, get_log
from tests.fakes.peers import identity, make_peers

PROMPT_S = 5.0
PLANTED = "planted-payload-Zk3vQ9"
States = health_pb2.HealthCheckResponse


class Odd(authorizer_pb2_grpc.AuthorizerServiceServicer):
    """Does as the request's server says: answers, refuses, breaks, waits."""

    def __init__(self) -> None:
        self.callers: list[str] = []

    async def View(self, request: wire.ViewRequest, context: Any) -> wire.ViewResponse:
        self.callers.append(peer_of(context))
        await self._do(request.server)
        return wire.ViewResponse()

    async def ReportTools(
        self, request: wire.ReportToolsRequest, context: Any
    ) -> wire.ReportToolsResponse:
        return wire.ReportToolsResponse()

    async def CancelEscalation(
        self, request: wire.CancelEscalationRequest, context: Any
    ) -> wire.CancelEscalationResponse:
        return wire.CancelEscalationResponse()

    async def Decide(
        self, request_iterator: AsyncIterator[wire.DecideRequest], context: Any
    ) -> AsyncIterator[wire.DecideResponse]:
        async for request in request_iterator:
            await self._do(request.hello.worker)
            yield wire.DecideResponse()

    async def _do(self, wanted: str) -> None:
        match wanted:
            case "refuse":
                raise BehavryError("TENANT_UNKNOWN", "no such tenant", tenant="t-1")
            case "break":
                raise KeyError(PLANTED)
            case "break-deep":
                try:
                    raise ValueError(PLANTED)
                except ValueError as inner:
                    raise RuntimeError(PLANTED) from inner
            case "hang":
                await asyncio.Event().wait()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def odd() -> Odd:
    return Odd()


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    return make_peers(tmp_path / "peers")


@pytest.fixture
def logged() -> CapturingLogger:
    return CapturingLogger()


@asynccontextmanager
async def opened(
    listen: str, peers: Path, odd: Odd, counters: Counters, log: Log | None = None
) -> AsyncIterator[Serving]:
    async with serve(
        listen=listen,
        register=lambda server: authorizer_pb2_grpc.add_AuthorizerServiceServicer_to_server(
            odd, server
        ),
        authenticator=TokenPeers(peers),
        counters=counters,
        log=log or get_log("test"),
    ) as serving:
        yield serving


@pytest.fixture
async def serving(
    tmp_path: Path, peers: Path, odd: Odd, counters: Counters, logged: CapturingLogger
) -> AsyncIterator[Serving]:
    log: Log = structlog.wrap_logger(logged, processors=[])
    async with opened(f"unix:{tmp_path}/s.sock", peers, odd, counters, log) as one:
        yield one


@pytest.fixture
async def proxy(serving: Serving, peers: Path) -> AsyncIterator[Link]:
    async with dial(serving.address, identity(peers, "proxy")) as link:
        yield link


async def view(link: Link, server: str = "", **options: Any) -> grpc.aio.AioRpcError | None:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(link.channel)
    options = {"metadata": link.metadata(), "timeout": PROMPT_S, **options}
    try:
        await stub.View(wire.ViewRequest(server=server), **options)
    except grpc.aio.AioRpcError as refused:
        return refused
    return None


async def decide(link: Link, worker: str) -> grpc.aio.AioRpcError | None:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(link.channel)
    stream = stub.Decide(
        iter([wire.DecideRequest(hello=wire.Hello(worker=worker))]),
        metadata=link.metadata(),
        timeout=PROMPT_S,
    )
    try:
        async for _ in stream:
            pass
    except grpc.aio.AioRpcError as refused:
        return refused
    return None


async def test_a_unary_call_needs_a_deadline(proxy: Link, odd: Odd) -> None:
    refused = await view(proxy, timeout=None)
    assert refused is not None
    assert (grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED") == (
        refused.code(),
        known(refused).reason,
    )
    assert [] == odd.callers

    assert await view(proxy) is None
    assert ["proxy"] == odd.callers


async def test_a_stream_lives_without_one(proxy: Link) -> None:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(proxy.channel)
    stream = stub.Decide(iter([wire.DecideRequest()]), metadata=proxy.metadata())

    async with asyncio.timeout(PROMPT_S):
        assert [wire.DecideResponse()] == [answer async for answer in stream]


async def test_a_stranger_learns_no_more_than_that(proxy: Link) -> None:
    """The name is proven before the deadline is looked at."""
    refused = await view(proxy, metadata=(), timeout=None)

    assert refused is not None
    assert "PEER_UNAUTHENTICATED" == known(refused).reason


@pytest.mark.parametrize("ask", [view, decide])
async def test_a_reason_reaches_the_caller_with_its_metadata(proxy: Link, ask: Any) -> None:
    refused = await ask(proxy, "refuse")
    error = known(refused)

    assert grpc.StatusCode.NOT_FOUND is refused.code()
    assert ("TENANT_UNKNOWN", {"tenant": "t-1"}) == (error.reason, error.metadata)
    assert await ask(proxy, "answer") is None


@pytest.mark.parametrize("ask", [view, decide])
@pytest.mark.parametrize("wanted", ["break", "break-deep"])
async def test_an_exceptions_text_reaches_nobody(
    proxy: Link, ask: Any, wanted: str, logged: CapturingLogger, caplog: pytest.LogCaptureFixture
) -> None:
    refused = await ask(proxy, wanted)
    said = [refused.details(), refused.debug_error_string(), str(refused.trailing_metadata())]
    [line] = logged.calls

    assert (grpc.StatusCode.INTERNAL, "INTERNAL") == (refused.code(), known(refused).reason)
    assert PLANTED not in "".join(said)
    assert PLANTED not in f"{line} {caplog.text}"
    assert ("rpc_failed", "behavry.authorizer.v1.AuthorizerService") == (
        line.kwargs["event"], line.kwargs["rpc_service"],
    )  # fmt: skip
    assert "at test_rpc.py:" in line.kwargs["error"]


async def test_a_caller_out_of_time_is_told_so(proxy: Link) -> None:
    refused = await view(proxy, "hang", timeout=0.05)

    assert refused is not None
    assert "NO_TIME_LEFT" == known(refused).reason


async def test_a_server_that_is_away_is_a_dependency_that_is_away(
    tmp_path: Path, peers: Path
) -> None:
    async with dial(f"unix:{tmp_path}/nobody.sock", identity(peers, "proxy")) as link:
        refused = await view(link)

    assert refused is not None
    assert ("DEPENDENCY_UNAVAILABLE", {"status": "UNAVAILABLE"}) == (
        known(refused).reason,
        known(refused).metadata,
    )


@pytest.mark.parametrize(
    "method",
    [
        "/behavry.authorizer.v1.AuthorizerService/Rewrite",
        "/behavry.authorizer.v1.NoService/View",
        "/x/y",
    ],
)
async def test_an_unknown_method_is_unimplemented(proxy: Link, method: str) -> None:
    ask: Any = proxy.channel.unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(b"", metadata=proxy.metadata(), timeout=PROMPT_S)

    assert grpc.StatusCode.UNIMPLEMENTED is refused.value.code()


async def test_calls_and_refusals_are_counted(proxy: Link, counters: Counters) -> None:
    await view(proxy)
    await view(proxy, "refuse")
    await view(proxy, "break")
    await view(proxy, metadata=())

    assert {"rpc.calls": 4, "rpc.refused": 3} == counters.read()


async def test_the_operator_reads_the_counters_and_nobody_else(
    serving: Serving, peers: Path, counters: Counters
) -> None:
    counters.counter("proxy.calls").value = 7
    counters.watch("outbox.pending", lambda: 2)

    async def read(peer: str) -> dict[str, int] | str:
        async with dial(serving.address, identity(peers, peer)) as link:
            stub = diagnostics_pb2_grpc.DiagnosticsServiceStub(link.channel)
            request = diagnostics_pb2.ReadCountersRequest()
            try:
                answer = await stub.ReadCounters(
                    request, metadata=link.metadata(), timeout=PROMPT_S
                )
            except grpc.aio.AioRpcError as refused:
                return known(refused).reason
            return dict(answer.counters)

    told = await read("operator")
    assert isinstance(told, dict)
    assert (7, 2) == (told["proxy.calls"], told["outbox.pending"])
    others = ("proxy", "authorizer", "audit", "control", "entitlements")
    assert {"PEER_NOT_ALLOWED"} == {str(await read(peer)) for peer in others}


async def test_health_tells_what_it_was_told_and_watchers_hear_it(
    serving: Serving, proxy: Link
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(proxy.channel)  # its stub is typed without methods
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    async with asyncio.timeout(PROMPT_S):
        first = await watch.read()
        await serving.set_health("", serving=True)
        second = await watch.read()
        await serving.set_health("dep.postgres", serving=False)
        dependency = await stub.Check(health_pb2.HealthCheckRequest(service="dep.postgres"))
    watch.cancel()

    assert [States.NOT_SERVING, States.SERVING, States.NOT_SERVING] == [
        first.status, second.status, dependency.status,
    ]  # fmt: skip


async def test_a_socket_left_by_a_killed_process_is_taken_over(
    tmp_path: Path, peers: Path, odd: Odd, counters: Counters
) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left.sock"))
    left.close()

    async with (
        opened(f"unix:{tmp_path}/left.sock", peers, odd, counters) as serving,
        dial(serving.address, identity(peers, "proxy")) as link,
    ):
        assert await view(link) is None


async def test_a_file_in_the_sockets_place_is_not_removed(
    tmp_path: Path, peers: Path, odd: Odd, counters: Counters
) -> None:
    (tmp_path / "kept.sock").write_text("somebody's work")
    with pytest.raises(RuntimeError):
        async with opened(f"unix:{tmp_path}/kept.sock", peers, odd, counters):
            pass

    assert "somebody's work" == (tmp_path / "kept.sock").read_text()


async def test_a_free_port_is_told(peers: Path, odd: Odd, counters: Counters) -> None:
    async with (
        opened("127.0.0.1:0", peers, odd, counters) as serving,
        dial(serving.address, identity(peers, "proxy")) as link,
    ):
        assert not serving.address.endswith(":0")
        assert await view(link) is None


async def test_a_message_over_the_cap_is_refused(proxy: Link) -> None:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(proxy.channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.View(
            wire.ViewRequest(server="x" * (MAX_MESSAGE_BYTES + 1)),
            metadata=proxy.metadata(),
            timeout=PROMPT_S,
        )

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is refused.value.code()
