"""The proxy's side of the authorizer, in two kinds: the one that tests tell what to say, and the
real one on a real bundle.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.authorizer.app import running
from services.authorizer.settings import AuthorizerSettings
from services.common.clock import SystemClock
from services.common.rpc.client import Link, dial
from services.common.settings import load
from tests.fakes import authorizer as told
from tests.fakes.asks import Decider
from tests.fakes.control import AGENT, ENVIRONMENT, PLANE, SCHEMA_HASH, FakeControl, rows
from tests.fakes.peers import identity, make_peers


@dataclass(frozen=True, slots=True)
class Authorizer:
    """`read_file` is approved and granted, `delete_file` approved, nothing else known."""

    kind: str
    proxy: Link
    stranger: Link
    decider: Decider


@pytest.fixture(params=["told", pytest.param("real", marks=pytest.mark.needs_regorus)])
async def authorizer(request: pytest.FixtureRequest) -> AsyncIterator[Authorizer]:
    with tempfile.TemporaryDirectory(prefix="bvc-") as directory:
        state = Path(directory)
        peers = make_peers(state / "peers")
        (state / "run").mkdir()
        async with AsyncExitStack() as stack:
            serving = _told(state, peers) if request.param == "told" else _real(state)
            address = await stack.enter_async_context(serving)
            proxy = await stack.enter_async_context(dial(address, identity(peers, "proxy")))
            stranger = await stack.enter_async_context(dial(address, identity(peers, "control")))
            decider = await stack.enter_async_context(Decider(proxy))
            yield Authorizer(str(request.param), proxy, stranger, decider)


@asynccontextmanager
async def _told(state: Path, peers: Path) -> AsyncIterator[str]:
    agent: dict[str, Any] = {
        "name": "agent", "class": "default", "status": "active", "servers": ["files"],
    }  # fmt: skip
    snapshot = told.snapshot({"files": told.server_entry()})
    snapshot["tenants"][told.TENANT]["agents"] = {AGENT: agent}
    fake = told.FakeAuthorizer(snapshot, {"issuer": "x", "jwks": {"keys": []}, "fetched_at": 1})
    fake.rules.approved["files", "read_file"] = SCHEMA_HASH
    async with told.serving(fake, f"unix:{state}/run/authorizer.sock", peers) as address:
        yield address


@asynccontextmanager
async def _real(state: Path) -> AsyncIterator[str]:
    control = FakeControl(state)
    control.write_files()
    control.publish(rows(), now_s=SystemClock().now_ns() // 10**9)
    async with control.serving():
        env = {
            "BEHAVRY_STATE_DIR": str(state),
            "BEHAVRY_ENV": "development",
            "BEHAVRY_PLANE_ID": PLANE,
            "BEHAVRY_ENVIRONMENT": ENVIRONMENT,
            "BEHAVRY_CONTROL_PUBLIC_URL": control.url,
            "BEHAVRY_AUTHORIZER_ENGINE": "embedded",
        }
        async with running(load(AuthorizerSettings, env)) as serving:
            yield serving.address
