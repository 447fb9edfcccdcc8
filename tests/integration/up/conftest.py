"""One installation for the module's tests: starting it costs seconds."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.installation import Installation, starting

PLANTED = "planted-where-it-may-be-seen"


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    """Short, because sockets lie in it; its name is what the leak scan must find."""
    root = Path(tempfile.mkdtemp(prefix="bvup-"))
    yield root / PLANTED
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def up(state_dir: Path) -> Iterator[Installation]:
    with starting(state_dir, "--port-base", "0") as running:
        yield running
