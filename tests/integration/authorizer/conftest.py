"""A running authorizer with a bendable control plane, a manual clock and the embedded engine."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.authorizer.app import running
from services.authorizer.settings import AuthorizerSettings
from services.common.rpc.client import Link, dial
from services.common.settings import load
from tests.fakes.asks import Decider
from tests.fakes.clock import ManualClock
from tests.fakes.control import ENVIRONMENT, PLANE, FakeControl
from tests.fakes.peers import identity, make_peers


@dataclass(frozen=True, slots=True)
class RunningAuthorizer:
    address: str
    proxy: Link
    operator: Link
    decider: Decider


#: Keyword arguments are settings beside the usual ones.
Start = Callable[..., AbstractAsyncContextManager[RunningAuthorizer]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short: a socket's path has a limit."""
    with tempfile.TemporaryDirectory(prefix="bvauth-") as directory:
        yield Path(directory)


@pytest.fixture
async def control(state_dir: Path) -> AsyncIterator[FakeControl]:
    fake = FakeControl(state_dir)
    fake.write_files()
    async with fake.serving():
        yield fake


@pytest.fixture
def environment(state_dir: Path, control: FakeControl) -> dict[str, str]:
    """The usual settings, over one state directory."""
    return {
        "BEHAVRY_STATE_DIR": str(state_dir),
        "BEHAVRY_ENV": "development",
        "BEHAVRY_PLANE_ID": PLANE,
        "BEHAVRY_ENVIRONMENT": ENVIRONMENT,
        "BEHAVRY_CONTROL_PUBLIC_URL": control.url,
        "BEHAVRY_AUTHORIZER_POLL_SECONDS": "1",
        "BEHAVRY_AUTHORIZER_ENGINE": "embedded",
    }


@pytest.fixture
def start(state_dir: Path, environment: dict[str, str], clock: ManualClock) -> Start:
    """Starts the service over the same state directory, as often as a test likes."""
    peers = make_peers(state_dir / "peers")
    (state_dir / "run").mkdir(exist_ok=True)

    @asynccontextmanager
    async def started(**settings: str) -> AsyncIterator[RunningAuthorizer]:
        async with (
            running(load(AuthorizerSettings, environment | settings), clock=clock) as serving,
            dial(serving.address, identity(peers, "proxy")) as proxy,
            dial(serving.address, identity(peers, "operator")) as operator,
            Decider(proxy) as decider,
        ):
            yield RunningAuthorizer(serving.address, proxy, operator, decider)

    return started
