"""One running installation per engine for all journeys: starting it costs seconds."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.fakes.stack import Stack, running
from tests.fakes.tool_server import ToolServer, serving

ENGINES = (
    pytest.param("embedded", marks=pytest.mark.needs_regorus),
    pytest.param("opa", marks=pytest.mark.needs_opa),
)
PLANTED = f"planted{uuid4().hex}"


@pytest.fixture(scope="session", params=ENGINES)
def running_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """With a value that a search for secrets must find: in each environment by a variable that all
    inherit, in arguments and logs by the name of the state directory, which is handed on as a path
    and logged as a setting. The paths are short: sockets lie below them.
    """
    with tempfile.TemporaryDirectory(prefix="bvj-") as scratch:
        temporary = Path(scratch) / f"tmp-{PLANTED}"
        temporary.mkdir()
        # Calls that wait for a person are held briefly: some tests wait for the end of it.
        environment = {"TMPDIR": str(temporary), "BEHAVRY_HOLD_SECONDS": "2"}
        state = Path(scratch) / PLANTED
        with running(state, engine=request.param, env=environment, beside_neighbour=True) as stack:
            yield stack


@pytest.fixture
def tool_server(tmp_path: Path) -> Iterator[ToolServer]:
    with serving(tmp_path / "tool-server") as server:
        yield server
