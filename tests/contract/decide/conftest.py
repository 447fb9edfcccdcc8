"""The proxy's side of the authorizer, in two kinds: the one that tests tell what to say, and the
real one on a real bundle.
"""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
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
from tests.fakes.control import (
    AGENT,
    ENVIRONMENT,
    PLANE,
    SCHEMA_HASH,
    TENANT,
    FakeControl,
    policy,
    rows,
)
from tests.fakes.peers import identity, make_peers
from tests.fakes.plane_desk import PlaneDesk

ASK_FIRST = """verdicts contains {"result": "intercept", "code": "ask_first", "reason": "ask",
\t"obligations": []} if input.request.tool == "hold_file"
"""


Settle = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Authorizer:
    """`read_file` is approved and granted, `hold_file` waits for people, `delete_file` approved,
    nothing else known. `settle` is what people make of an escalation: approved or denied.
    """

    kind: str
    proxy: Link
    stranger: Link
    decider: Decider
    settle: Settle


@pytest.fixture(params=["told", pytest.param("real", marks=pytest.mark.needs_regorus)])
async def authorizer(request: pytest.FixtureRequest) -> AsyncIterator[Authorizer]:
    with tempfile.TemporaryDirectory(prefix="bvc-") as directory:
        state = Path(directory)
        peers = make_peers(state / "peers")
        (state / "run").mkdir()
        async with AsyncExitStack() as stack:
            serving = _told(state, peers) if request.param == "told" else _real(state)
            address, settle = await stack.enter_async_context(serving)
            proxy = await stack.enter_async_context(dial(address, identity(peers, "proxy")))
            stranger = await stack.enter_async_context(dial(address, identity(peers, "control")))
            decider = await stack.enter_async_context(Decider(proxy))
            yield Authorizer(str(request.param), proxy, stranger, decider, settle)


@asynccontextmanager
async def _told(state: Path, peers: Path) -> AsyncIterator[tuple[str, Settle]]:
    agent: dict[str, Any] = {
        "name": "agent", "class": "default", "status": "active", "servers": ["files"],
    }  # fmt: skip
    snapshot = told.snapshot({"files": told.server_entry()})
    snapshot["tenants"][told.TENANT]["agents"] = {AGENT: agent}
    fake = told.FakeAuthorizer(snapshot, {"issuer": "x", "jwks": {"keys": []}, "fetched_at": 1})
    fake.rules.approved["files", "read_file"] = SCHEMA_HASH
    fake.rules.approved["files", "hold_file"] = SCHEMA_HASH
    fake.rules.verdicts["files", "hold_file"] = ("intercept", "ask_first")

    async def settle(escalation: str, state: str) -> None:
        fake.settle(escalation, state)

    async with told.serving(fake, f"unix:{state}/run/authorizer.sock", peers) as address:
        yield address, settle


@asynccontextmanager
async def _real(state: Path) -> AsyncIterator[tuple[str, Settle]]:
    control = FakeControl(state)
    control.write_files()
    clock, desk = SystemClock(), PlaneDesk()
    tools = rows().tools["files"]
    held = policy(TENANT, "ask_first", ASK_FIRST)
    with_one_held = {"files": {**tools, "hold_file": tools["read_file"]}}
    control.publish(rows(tools=with_one_held, policies=[held]), now_s=clock.now_ns() // 10**9)

    async def settle(escalation: str, state: str) -> None:
        while escalation not in desk.opened:
            await desk.until_opened(len(desk.opened) + 1)
        verdict = {"approved": "approve", "denied": "deny"}[state]
        now_ms = clock.now_ns() // 10**6
        desk.send(control.decide(desk.opened[escalation], verdict, now_ms=now_ms))

    async with control.serving(), desk.serving(state / "run" / "control.sock"):
        env = {
            "BEHAVRY_STATE_DIR": str(state),
            "BEHAVRY_ENV": "development",
            "BEHAVRY_PLANE_ID": PLANE,
            "BEHAVRY_ENVIRONMENT": ENVIRONMENT,
            "BEHAVRY_CONTROL_PUBLIC_URL": control.url,
            "BEHAVRY_AUTHORIZER_ENGINE": "embedded",
        }
        async with running(load(AuthorizerSettings, env)) as serving:
            yield serving.address, settle
