"""What the tests of bundles and links share: a plane's token and open link, a plan, the next
bundle.
"""

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from joserfc import jws, jwt
from joserfc.jwk import ECKey

from behavry.control.v1 import plane_link_pb2 as wire
from behavry.control.v1 import plane_link_pb2_grpc
from services.common.rpc.client import OPTIONS
from services.control.features import Entitlements, FeatureAnswer
from tests.integration.control import neighbour
from tests.integration.control.conftest import PUBLIC, Answered, Rest

BUNDLE: Final = "/api/v1/policy/bundle"
PLANE: Final = "dp-local"
PROMPT_S: Final = 5.0


def plan(rest: Rest, *, mode: str = "on", revision: int = 1) -> None:
    """Entitlements said what the tenant's plan holds: from now on bundles can be built."""
    context_gate = FeatureAnswer(
        key="context_gate", allowed=mode == "on", mode=mode, source="plan", required_plan="trial"
    )
    neighbour.has_a_plan(rest.running.control.features)
    rest.running.control.features.update(
        Entitlements(
            tenant=rest.running.tenant.id, plan="trial", status="ACTIVE", plan_expires_at_s=None,
            revision=revision, features=(context_gate,),
        )
    )  # fmt: skip


def plane_token(rest: Rest, *, key: ECKey | None = None, kid: str = PLANE, **claims: Any) -> str:
    now_s = rest.clock.now_ns() // 10**9
    key = key or ECKey.import_key((rest.state / "keys" / "link.pem").read_bytes())
    said = {"iss": PLANE, "sub": PLANE, "aud": PUBLIC, "iat": now_s, "exp": now_s + 300, **claims}
    return jwt.encode({"alg": "ES256", "kid": kid}, said, key, algorithms=["ES256"])


async def fetch(rest: Rest, token: str | None = None, **headers: str) -> Answered:
    token = plane_token(rest) if token is None else token
    sent = {"authorization": f"Bearer {token}", **headers}
    return await rest.get(BUNDLE, key=None, headers=sent)


async def until_serial(rest: Rest, serial: int) -> None:
    """Waits until a bundle of that serial is stored."""
    signals = rest.running.control.signals
    heard = signals.listen()
    try:
        async with asyncio.timeout(PROMPT_S):
            while signals.serial < serial:
                heard.clear()
                await heard.wait()
    finally:
        signals.forget(heard)


def opened(archive: bytes) -> dict[str, bytes]:
    """The files of a bundle."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        read = {entry.name: tar.extractfile(entry) for entry in tar.getmembers()}
        return {name: file.read() for name, file in read.items() if file is not None}


def tenant_state(rest: Rest, archive: bytes) -> dict[str, Any]:
    state = json.loads(opened(archive)["data.json"])["behavry"]["state"]
    entry: dict[str, Any] = state["tenants"][rest.running.tenant.id]
    return entry


@dataclass(slots=True)
class Plane:
    """One end of an open link."""

    stream: Any
    up: asyncio.Queue[wire.OpenRequest] = field(default_factory=asyncio.Queue)

    async def read(self) -> Any:
        """The next message. It is the plane's, of whichever tenant; the second one has nothing that
        is due.
        """
        message = await self.stream.read()
        neighbour.unseen("the link", str(message))
        if message.WhichOneof("message") == "escalation_decision":
            signed = jws.extract_compact(message.escalation_decision.jws.encode())
            neighbour.unseen("a decision", signed.payload)
        return message

    async def next(self, kind: str) -> Any:
        """The next message of that kind."""
        async with asyncio.timeout(PROMPT_S):
            while True:
                message = await self.read()
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)

    async def hears_no(self, kind: str, *, before: str) -> None:
        """None of that kind comes until the first of the other."""
        async with asyncio.timeout(PROMPT_S):
            while True:
                came = (await self.read()).WhichOneof("message")
                assert came != kind
                if came == before:
                    return


@asynccontextmanager
async def linked(rest: Rest, token: str | None = None, peer: str = "plane") -> AsyncIterator[Plane]:
    token = plane_token(rest) if token is None else token
    metadata = (("behavry-peer", peer), ("authorization", f"Bearer {token}"))
    async with grpc.aio.insecure_channel(rest.running.grpc_address, options=OPTIONS) as channel:
        plane = Plane(None)

        async def outgoing() -> AsyncIterator[wire.OpenRequest]:
            yield wire.OpenRequest(hello=wire.Hello(plane_id=PLANE, instance="i-1"))
            while True:
                yield await plane.up.get()

        stub = plane_link_pb2_grpc.PlaneLinkServiceStub(channel)
        plane.stream = stub.Open(outgoing(), metadata=metadata)
        try:
            yield plane
        finally:
            plane.stream.cancel()
