"""What a killed proxy's children left behind ends at the next start, and nothing else does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from services.proxy.backends import leftovers
from tests.fakes.installation import still_there

#: A leader that starts a helper of its own and tells its number, once it runs: before that it has
#: no environment by which it could be known.
LEADER = """
import subprocess, sys, time
runs = "import time; print(flush=True); time.sleep(60)"
helper = subprocess.Popen([sys.executable, "-c", runs], stdout=subprocess.PIPE)
helper.stdout.readline()
print(helper.pid, flush=True)
time.sleep(60)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell")


@contextmanager
def living(home: Path) -> Iterator[tuple[int, int]]:
    """(leader, helper), in a home and a group of their own."""
    home.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", LEADER],
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        helper = int(leader.stdout.readline())
        leftovers.note(home, leader.pid)
        try:
            yield leader.pid, helper
        finally:
            leader.kill()
            with suppress(ProcessLookupError):
                os.kill(helper, signal.SIGKILL)


def test_helpers_of_a_dead_child_end(tmp_path: Path) -> None:
    with living(tmp_path / "a") as (leader, helper):
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)

        assert 1 == leftovers.end_all(tmp_path)
        assert not still_there({helper})
        assert 0 == leftovers.end_all(tmp_path)


def test_a_child_that_lived_on_ends_with_its_helpers(tmp_path: Path) -> None:
    with living(tmp_path / "a") as (leader, helper):
        assert 2 == leftovers.end_all(tmp_path)
        assert not still_there({helper})
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1])


def test_another_process_under_the_same_number_lives(tmp_path: Path) -> None:
    with living(tmp_path / "a") as (leader, helper):
        (tmp_path / f"a{leftovers.NOTE}").write_text(f"{leader} 1\n")

        assert 0 == leftovers.end_all(tmp_path)
        os.kill(helper, 0)


def test_a_group_of_another_home_lives(tmp_path: Path) -> None:
    with living(tmp_path / "a") as (leader, helper):
        (tmp_path / "b").mkdir()
        (tmp_path / f"a{leftovers.NOTE}").rename(tmp_path / f"b{leftovers.NOTE}")
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)

        assert 0 == leftovers.end_all(tmp_path)
        os.kill(helper, 0)


@pytest.mark.parametrize("content", ["", "x y", "1", "1 2 3", "\0"])
def test_a_note_that_says_nothing_is_thrown_away(tmp_path: Path, content: str) -> None:
    note = tmp_path / f"a{leftovers.NOTE}"
    note.write_text(content)

    assert 0 == leftovers.end_all(tmp_path)
    assert not note.exists()
