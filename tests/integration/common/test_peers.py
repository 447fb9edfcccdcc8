"""Who may call what, over a real server: every gRPC service, every method, every peer.

The expected matrix is written out here, so that a change of the one that is enforced is noticed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from behavry.audit.v1 import audit_pb2
from behavry.authorizer.v1 import authorizer_pb2
from behavry.common.v1 import diagnostics_pb2
from behavry.control.v1 import plane_link_pb2
from behavry.entitlements.v1 import entitlements_pb2
from services.common.rpc.client import Link, dial
from services.common.rpc.errors import known
from services.common.rpc.peers import ALLOWED, OPEN, Identity, TokenPeers
from services.common.rpc.server import serve
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log

PROMPT_S = 5.0
FILES = (audit_pb2, authorizer_pb2, diagnostics_pb2, plane_link_pb2, entitlements_pb2)
SERVICES: list[ServiceDescriptor] = [
    service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
PEERS = ("proxy", "authorizer", "audit", "control", "entitlements", "operator", "plane", "stranger")
EXPECTED = {
    ("AuthorizerService", "proxy"),
    ("SnapshotService", "proxy"),
    ("SnapshotService", "audit"),
    ("AuditWriterService", "proxy"),
    ("AuditWriterService", "authorizer"),
    ("AuditWriterService", "control"),
    ("AuditReaderService", "control"),
    ("AuditReaderService", "operator"),
    ("PlaneLinkService", "plane"),
    ("EntitlementsReaderService", "control"),
    ("EntitlementsAdminService", "control"),
    ("DiagnosticsService", "operator"),
}


def message(descriptor: Any) -> Any:
    return message_factory.GetMessageClass(descriptor)


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def willing(method: MethodDescriptor, reached: list[str]) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that answers anything with one empty message."""
    answer = message(method.output_type)

    async def one(_: Any, __: Any) -> Any:
        reached.append(path(method))
        return answer()

    async def many(_: Any, __: Any) -> AsyncIterator[Any]:
        reached.append(path(method))
        yield answer()

    makers: dict[tuple[bool, bool], tuple[Callable[..., Any], Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, one),
        (False, True): (grpc.unary_stream_rpc_method_handler, many),
        (True, False): (grpc.stream_unary_rpc_method_handler, one),
        (True, True): (grpc.stream_stream_rpc_method_handler, many),
    }
    make, behaviour = makers[method.client_streaming, method.server_streaming]
    handler: grpc.RpcMethodHandler[Any, Any] = make(
        behaviour, message(method.input_type).FromString, answer.SerializeToString
    )
    return handler


@pytest.fixture
def reached() -> list[str]:
    """Methods whose handler ran."""
    return []


@pytest.fixture
def peers_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "peers"
    directory.mkdir()
    for peer in PEERS:
        (directory / f"{peer}.token").write_text(f"{peer}-" + "t" * 40 + "\n")
    return directory


@pytest.fixture
async def address(tmp_path: Path, peers_dir: Path, reached: list[str]) -> AsyncIterator[str]:
    def register(server: grpc.aio.Server) -> None:
        for service in SERVICES:
            if service.name != "DiagnosticsService":  # each server has its own
                handlers = {method.name: willing(method, reached) for method in service.methods}
                generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
                server.add_generic_rpc_handlers((generic,))

    async with serve(
        listen=f"unix:{tmp_path}/s.sock",
        register=register,
        authenticator=TokenPeers(peers_dir),
        counters=Counters(),
        log=get_log("test"),
    ) as serving:
        yield serving.address


async def ask(link: Link, method: MethodDescriptor, metadata: Any) -> str:
    """The reason of the refusal; empty when the call was answered."""
    kind = ("stream" if method.client_streaming else "unary") + (
        "_stream" if method.server_streaming else "_unary"
    )
    request = message(method.input_type)
    call = getattr(link.channel, kind)(
        path(method),
        request_serializer=request.SerializeToString,
        response_deserializer=message(method.output_type).FromString,
    )
    for _ in range(5):  # a stream that is refused while it is written may look like a lost one
        given = iter([request()]) if method.client_streaming else request()
        running = call(given, metadata=metadata, timeout=PROMPT_S)
        try:
            if method.server_streaming:
                assert [message(method.output_type)()] == [answer async for answer in running]
            else:
                await running
        except grpc.aio.AioRpcError as refused:
            reason = known(refused).reason
            if reason != "DEPENDENCY_UNAVAILABLE":
                return reason
        else:
            return ""
    return "DEPENDENCY_UNAVAILABLE"


async def test_only_the_matrix_is_allowed_and_the_rest_is_refused(
    address: str, peers_dir: Path, reached: list[str]
) -> None:
    outcomes: dict[tuple[str, str], set[str]] = {}
    for peer in PEERS:
        async with dial(address, Identity(peer, peers_dir / f"{peer}.token")) as link:
            for method in METHODS:
                outcome = outcomes.setdefault((method.containing_service.name, peer), set())
                outcome.add(await ask(link, method, link.metadata()))

    assert EXPECTED == {pair for pair, reasons in outcomes.items() if reasons == {""}}
    assert {"PEER_NOT_ALLOWED"} == set().union(
        *(reasons for pair, reasons in outcomes.items() if pair not in EXPECTED)
    )
    assert len(SERVICES) * len(PEERS) == len(outcomes)
    served = {path(method) for method in METHODS if "Diagnostics" not in path(method)}
    assert served == set(reached)


def test_every_service_of_the_contracts_is_in_the_matrix_and_no_other() -> None:
    assert {service.full_name for service in SERVICES} == set(ALLOWED)
    assert {"grpc.health.v1.Health"} == OPEN


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("behavry-peer", "proxy"),),
        (("authorization", "Bearer proxy-" + "t" * 40),),
        (("behavry-peer", "proxy"), ("authorization", "Bearer ")),
        (("behavry-peer", "proxy"), ("authorization", "Bearer proxy-" + "t" * 39)),
        (("behavry-peer", "proxy"), ("authorization", "Bearer audit-" + "t" * 40)),
        (("behavry-peer", "unknown"), ("authorization", "Bearer proxy-" + "t" * 40)),
        (("behavry-peer", "../peers/proxy"), ("authorization", "Bearer proxy-" + "t" * 40)),
        (("behavry-peer", "short"), ("authorization", "Bearer short")),
        (("behavry-peer", "empty"), ("authorization", "Bearer ")),
        (("behavry-peer-bin", b"proxy"), ("authorization", "Bearer proxy-" + "t" * 40)),
    ],
)
async def test_who_does_not_prove_a_name_is_refused_everywhere(
    address: str, peers_dir: Path, reached: list[str], metadata: Any
) -> None:
    (peers_dir / "short.token").write_text("short")  # too weak to be anybody's
    (peers_dir / "empty.token").write_text("")
    async with dial(address, Identity("proxy", peers_dir / "proxy.token")) as link:
        reasons = {await ask(link, method, metadata) for method in METHODS}

    assert {"PEER_UNAUTHENTICATED"} == reasons
    assert [] == reached


async def test_health_is_open_to_all(address: str, peers_dir: Path) -> None:
    async with dial(address, Identity("proxy", peers_dir / "proxy.token")) as link:
        stub: Any = health_pb2_grpc.HealthStub(link.channel)  # its stub is typed without methods
        answer = await stub.Check(health_pb2.HealthCheckRequest())

    assert health_pb2.HealthCheckResponse.NOT_SERVING == answer.status
