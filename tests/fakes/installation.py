"""A whole installation for tests: `behavry up --json` on a state directory of its own, as a person
would start it, with what its processes show to the machine.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.moved_in import left_alone, move_in
from tests.fakes.neighbour import unseen

START_TIMEOUT_S = 90
COMMAND = (sys.executable, "-m", "services.cli")


@dataclass(kw_only=True)
class Installation:
    """A running `up`."""

    state_dir: Path
    process: subprocess.Popen[str]
    document: dict[str, Any]
    environment: Mapping[str, str] = field(repr=False)

    def cli(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Another shell's command on the same installation; it tells of one tenant alone."""
        ended = subprocess.run(
            [*COMMAND, *arguments, "--state", str(self.state_dir)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=dict(self.environment),
            check=False,
        )
        unseen(ended.stdout, ended.stderr)
        return ended

    def json(self, *arguments: str) -> Any:
        """The value that a command prints with --json."""
        answered = self.cli(*arguments, "--json")
        assert answered.returncode == 0, answered.stderr
        return json.loads(answered.stdout)

    def lines(self, *arguments: str) -> list[Any]:
        """The values that a command prints one per line with --json."""
        answered = self.cli(*arguments, "--json")
        assert answered.returncode == 0, answered.stderr
        return [json.loads(line) for line in answered.stdout.splitlines()]

    def pids(self) -> dict[str, list[int]]:
        return {name: list(pids) for name, pids in self.document["pids"].items()}

    def everything(self) -> set[int]:
        """`up`, its processes and all that these started."""
        return descendants(self.process.pid) | {self.process.pid}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal; the exit status when it is gone."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def descendants(root: int) -> set[int]:
    """Every process below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    grown = {root}
    while grown:
        grown = {pid for pid, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


def still_there(pids: set[int], *, within_s: float = 5) -> set[int]:
    """Those that did not end in time; the kernel tells when one does."""
    left = set()
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([descriptor], [], [], within_s)[0]:
                left.add(pid)
        finally:
            os.close(descriptor)
    return left


@contextmanager
def starting(
    state_dir: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Installation]:
    """Run `up` until the block ends; what is left of it then is killed. A second tenant is there,
    and is left alone.
    """
    env = {**os.environ, **(environment or {})}
    errors = state_dir.with_suffix(".stderr")
    with errors.open("ab") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "up", "--json", "--state", str(state_dir), *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
            start_new_session=True,
        )
    try:
        document = json.loads(_first_object(process, errors))
        named = options[options.index("--db-url") + 1] if "--db-url" in options else None
        move_in(state_dir, named=named)
        yield Installation(state_dir=state_dir, process=process, document=document, environment=env)
        if process.poll() is None:  # and so is its database
            left_alone(state_dir, named=named)
    finally:
        below = descendants(process.pid)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in still_there(below):
            os.kill(pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def _first_object(process: subprocess.Popen[str], errors: Path) -> str:
    """The object that `up` prints when all is ready; it ends with a brace on its own line."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    read = b""
    while select.select([descriptor], [], [], START_TIMEOUT_S)[0]:
        more = os.read(descriptor, 65536)
        read += more
        if not more:
            break
        if read.endswith(b"\n}\n"):
            return read.decode()
    raise AssertionError(f"up did not become ready: {errors.read_text()[-4000:]}")
