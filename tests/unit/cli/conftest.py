"""Commands run inside the test's process, against a control that answers what it is told."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.cli import __main__ as command
from tests.fakes.rest import RestControl, installed, serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a command left: its status, its data, its words."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def rest_server() -> Iterator[RestControl]:
    with serving() as running:
        yield running


@pytest.fixture
def control(rest_server: RestControl) -> RestControl:
    rest_server.answers.clear()
    rest_server.seen.clear()
    return rest_server


@pytest.fixture
def state_dir(tmp_path: Path, control: RestControl) -> Path:
    return installed(tmp_path / "state", control_port=control.port)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state_dir: Path
) -> Run:
    monkeypatch.setenv("BEHAVRY_STATE_DIR", str(state_dir))

    def ran(*arguments: str) -> Ran:
        status = 0
        try:
            command.main(arguments)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        told = capsys.readouterr()
        return Ran(status=status, out=told.out, err=told.err)

    return ran
