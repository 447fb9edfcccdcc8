"""An authorizer as a process of its own, for tests that kill it, and a Decide stream to it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.rpc.client import dial
from tests.fakes.asks import Decider
from tests.fakes.children import ROOT
from tests.fakes.peers import identity

READY_S = 30


@dataclass(frozen=True, slots=True)
class AuthorizerProcess:
    process: asyncio.subprocess.Process
    decider: Decider

    async def kill(self) -> None:
        """With SIGKILL; returns when it is gone."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def authorizer_process(
    environment: Mapping[str, str], state_dir: Path, *, name: str = "authorizer"
) -> AsyncIterator[AuthorizerProcess]:
    """Serving once entered. Replicas of one plane have names of their own."""
    socket = state_dir / "run" / f"{name}.sock"
    own = {
        "BEHAVRY_AUTHORIZER_GRPC_LISTEN": f"unix:{socket}",
        "BEHAVRY_AUTHORIZER_BUNDLE_DIR": str(state_dir / f"bundles-{name}"),
        "BEHAVRY_OUTBOX_DIR": str(state_dir / f"outbox-{name}"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.authorizer",
        cwd=ROOT,
        env={**environment, **own},
        stdout=subprocess.PIPE,
    )
    try:
        await _serving(process)
        async with (
            dial(f"unix:{socket}", identity(state_dir / "peers", "proxy")) as link,
            Decider(link) as decider,
        ):
            yield AuthorizerProcess(process, decider)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serving(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(READY_S):
        while line := await process.stdout.readline():
            if b'"serving"' in line:
                return
    raise RuntimeError("the authorizer ended before it was ready")
