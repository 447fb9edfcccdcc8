"""One running installation per engine for all journeys of a module: starting it costs seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.stack import Stack, running
from tests.fakes.tool_server import ToolServer, serving

ENGINES = (
    pytest.param("embedded", marks=pytest.mark.needs_regorus),
    pytest.param("opa", marks=pytest.mark.needs_opa),
)


@pytest.fixture(scope="module", params=ENGINES)
def running_stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    state: Path = tmp_path_factory.mktemp("journey") / "state"
    with running(state, engine=request.param) as stack:
        yield stack


@pytest.fixture
def tool_server(tmp_path: Path) -> Iterator[ToolServer]:
    with serving(tmp_path / "tool-server") as server:
        yield server
