"""Processes of a test's own: started with `python -m`, ready when their first line says so, ended.

Decides nothing about what runs in them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

ROOT: Final = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S: Final = 10


@contextmanager
def child(
    module: str, *arguments: str, env: Mapping[str, str] | None = None, tree: Path = ROOT
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Runs `python -m module`, gives what it printed as its first line, ends it on leaving. `tree`:
    another checkout, with an environment of its own.
    """
    python = sys.executable if tree == ROOT else str(tree / ".venv" / "bin" / "python")
    process = subprocess.Popen(
        [python, "-m", module, *arguments],
        cwd=tree,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            message = f"{module} ended with {process.wait(STOP_TIMEOUT_S)} before it was ready"
            raise RuntimeError(message)
        yield process, orjson.loads(first)
    finally:
        end(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def end(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> int:
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(timeout_s)
