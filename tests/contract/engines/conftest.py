"""Both engines, real ones, for the whole suite: each test runs once on either."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from joserfc.jwk import ECKey

from services.authorizer.engine.embedded import embedded_engine
from services.authorizer.engine.protocol import Engine
from services.common.telemetry.logging import get_log
from tests.fakes.bundle import Made, Policy, made, signing_key
from tests.fakes.opa import running_opa


@dataclass(slots=True)
class Bench:
    """An engine, and the bundles that a test offers to it."""

    engine: Engine
    key: ECKey
    serials: itertools.count[int]

    async def offer(self, tenants: Mapping[str, Sequence[Policy]]) -> Made:
        bundle = made(tenants, serial=next(self.serials), key=self.key)
        await self.engine.offer(bundle.bundle)
        return bundle


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param("embedded", marks=pytest.mark.needs_regorus),
        pytest.param("opa", marks=[pytest.mark.needs_opa, pytest.mark.needs_regorus]),
    ],
)
async def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    key = signing_key()
    async with _engine(request.param, tmp_path_factory.mktemp("opa"), key) as engine:
        yield Bench(engine, key, itertools.count(1))


def _engine(name: str, directory: Path, key: ECKey) -> AbstractAsyncContextManager[Engine]:
    return embedded_engine(get_log("test")) if name == "embedded" else _opa(directory, key)


@asynccontextmanager
async def _opa(directory: Path, key: ECKey) -> AsyncIterator[Engine]:
    async with running_opa(directory, key) as running:
        yield running.engine
