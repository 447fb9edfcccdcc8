"""kill -9 of a process that records: whatever it had acknowledged is there, and each call that it
had begun is ended exactly once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.outbox import numbers_are_gap_free, opened, stored_in
from tests.fakes.outbox_writer import TUNING, acknowledged, has_told

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}", "PATH": os.environ["PATH"]}
COMMAND = [sys.executable, "-m", "tests.fakes.outbox_writer"]


async def check(directory: Path) -> int:
    """Recovers the directory; answers how many records had been acknowledged."""
    told = acknowledged(directory)
    async with opened(directory, tuning=TUNING) as outbox:
        assert not outbox.open_intents
    stored = stored_in(directory)
    ids = [one.entry.event_id for one in stored]
    assert set(told) <= set(ids)
    assert len(ids) == len(set(ids))
    assert numbers_are_gap_free(stored)
    intents = [one.entry.event_id for one in stored if one.type == "call.intent"]
    ends = [one.body["decision"] for one in stored if one.type.startswith("call.outcome")]
    assert sorted(intents) == sorted(ends)
    assert [] == list(directory.glob("*.set-aside"))
    return len(told)


async def test_killed_before_each_file_operation(tmp_path: Path) -> None:
    operations = [*range(1, 40), *range(40, 160, 7)]
    subprocess.run(
        [*COMMAND, str(tmp_path), *map(str, operations)],
        cwd=ROOT, env=ENVIRONMENT, check=True, timeout=100,
    )  # fmt: skip

    counts = [await check(tmp_path / str(number)) for number in operations]

    assert max(counts) >= 40
    assert counts == sorted(counts)


@pytest.mark.parametrize("round_", range(6))
async def test_killed_at_a_random_moment_and_again(tmp_path: Path, round_: int) -> None:
    chosen = random.Random(round_)
    directory = tmp_path / "w0"
    told = 0
    for _ in range(2):  # the second writer begins with what the first one left
        writer = subprocess.Popen([*COMMAND, str(directory)], cwd=ROOT, env=ENVIRONMENT)
        try:
            await has_told(directory, told + chosen.randrange(1, 400), writer)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(timeout=5)
        told = len(acknowledged(directory))

    assert told == await check(directory)
    assert told > 0
