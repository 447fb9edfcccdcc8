"""What starting the command costs (C-CLI). The figures are printed; what is asserted needs no
clock: which modules were loaded.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

_LOADED = """
import json, sys
from services.cli import __main__ as command
try:
    command.main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
#: Slow to import, and of no use to those who only want to read or to ask control.
_SLOW = {"asyncio", "asyncpg", "cryptography", "grpc", "msgspec", "rich", "structlog"}
_COMMANDS = {"services.cli.up", "services.cli.story", "services.cli.doctor.running"}


def _loaded(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=dict(os.environ),
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_loads_no_command(tmp_path: Path) -> None:
    loaded = _loaded("--help")

    assert set() == ((_SLOW | _COMMANDS) - {"rich"}) & loaded
    assert not [name for name in loaded if name.startswith("services.cli.commands.")]


@pytest.mark.parametrize(
    "arguments", [("traces",), ("agents", "list"), ("escalations", "list"), ("whoami",)]
)
def test_a_command_loads_itself_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    loaded = _loaded(*arguments, "--state", str(tmp_path / "none"))

    assert set() == (_SLOW | _COMMANDS) & loaded


def test_the_figures_are_printed(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "none"))
    bare = _cpu_s(tmp_path, "-c", "pass")
    for arguments in (("--help",), ("whoami", *state)):
        ratio = _cpu_s(tmp_path, "-m", "services.cli", *arguments) / bare
        print(f"behavry {arguments[0]}: {ratio:.1f} x the CPU of a bare interpreter")

    assert bare > 0


def _cpu_s(cache: Path, *arguments: str) -> float:
    """The best of three: what others do on the machine only adds. Compiled files are kept, as they
    are after an installation's first start.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            check=False,
            timeout=30,
            env=environment,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(costs)
