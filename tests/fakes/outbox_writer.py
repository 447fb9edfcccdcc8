"""A process that records calls until somebody kills it, for tests that then look at what it left.

    python -m tests.fakes.outbox_writer DIRECTORY [OPERATIONS...]

Without operations: one writer, killed from outside. With them: for each number N a child of its own
in DIRECTORY/N that kills itself before its Nth file operation. What was acknowledged is appended to
DIRECTORY.acknowledged, one line per record, with a single write.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from services.common.outbox.outbox import FileOutbox, Tuning
from tests.fakes.disk import ScriptedFiles
from tests.fakes.outbox import denied, intent, opened, outcome

TUNING = Tuning(segment_bytes=16_384)


def acknowledged(directory: Path) -> list[str]:
    lines = Path(f"{directory}.acknowledged")
    return lines.read_text().split() if lines.exists() else []


async def has_told(
    directory: Path, count: int, writer: subprocess.Popen[bytes], within_s: float = 20
) -> None:
    """Until the writer, another process, has acknowledged that many records."""
    async with asyncio.timeout(within_s):
        while len(acknowledged(directory)) < count:
            assert writer.poll() is None
            await asyncio.sleep(0.002)


async def record_for_ever(directory: Path, files: ScriptedFiles) -> None:
    lines = os.open(f"{directory}.acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def acknowledge(event_id: str) -> None:
        os.write(lines, f"{event_id}\n".encode())

    async def call(outbox: FileOutbox, size: int) -> None:
        event_id = await outbox.put(intent(text="i" * size))
        acknowledge(event_id)
        await outbox.put(outcome(event_id, text="o" * size), durable=False)

    async with opened(directory, files=files, tuning=TUNING) as outbox:
        while True:
            await call(outbox, 300)
            acknowledge(await outbox.put(denied(text="d" * 500)))
            async with asyncio.TaskGroup() as tasks:
                for size in (10, 2000, 70, 500):
                    tasks.create_task(call(outbox, size))


def die_before(number: int) -> ScriptedFiles:
    files = ScriptedFiles()

    def hook(_: str) -> None:
        if len(files.operations) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    files.hook = hook
    return files


def main() -> None:
    directory = Path(sys.argv[1])
    operations = [int(number) for number in sys.argv[2:]]
    if not operations:
        asyncio.run(record_for_ever(directory, ScriptedFiles()))
    for number in operations:
        child = os.fork()
        if child == 0:
            asyncio.run(record_for_ever(directory / str(number), die_before(number)))
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
