"""Processes under supervision: restarted, reported, ended in reverse, never left behind."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.cli import children
from services.cli.children import Children, NotReady, Program
from services.common.postgres.embedded import command_line

SLEEP = "import time; time.sleep(60)"


async def _at_once(_: int) -> bool:
    return True


async def _never(_: int) -> bool:
    return False


def _program(
    tmp_path: Path,
    name: str,
    code: str,
    *,
    ready: Callable[[int], Awaitable[bool]] = _at_once,
) -> Program:
    return Program(
        name=name,
        argv=[sys.executable, "-c", code],
        env={"PATH": os.defpath},
        log=tmp_path / f"{name}.log",
        ready=ready,
    )


class _Turns:
    """Wakes a test whenever a process came or went."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


async def test_a_process_that_ends_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = _Turns()
    async with Children(changed=turns.changed.set) as running:
        child = running.start(_program(tmp_path, "a", SLEEP))
        await turns.until(lambda: child.is_ready)
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await turns.until(lambda: child.is_ready and child.starts == 2)

    assert first != child.pid
    assert "a ended (signal SIGKILL)" in capsys.readouterr().err


async def test_one_that_keeps_ending_is_reported_with_its_log_and_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(children, "LONGEST_DELAY_S", 0.02)
    monkeypatch.setattr(children, "FLAPPING_DELAY_S", 0.2)
    turns = _Turns()
    async with Children(changed=turns.changed.set) as running:
        steady = running.start(_program(tmp_path, "steady", SLEEP))
        flapping = running.start(_program(tmp_path, "flapping", "print('last words'); exit(1)"))
        await turns.until(lambda: flapping.starts >= 6)
        told = capsys.readouterr().err

        assert steady.is_ready
        assert 1 == steady.starts
    assert 1 == told.count("flapping ended 5 times")
    assert "last words" in told


async def test_they_end_in_reverse(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    code = (
        "import signal,sys,time\n"
        "def end(*_):\n open({ends!r},'a').write({name!r}); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nopen({ready!r},'w').close()\ntime.sleep(60)"
    )
    async with Children(changed=lambda: None) as running:
        for name in "abc":
            ready = tmp_path / f"{name}.ready"

            async def is_ready(_: int, ready: Path = ready) -> bool:
                return ready.exists()

            text = code.format(ends=str(ends), name=name, ready=str(ready))
            running.start(_program(tmp_path, name, text, ready=is_ready))
        await running.until_ready(timeout_s=10)

    assert "cba" == ends.read_text()


async def test_one_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "STOP_GRACE_S", 0.2)
    marker = tmp_path / "deaf"

    async def is_deaf(_: int) -> bool:
        return marker.exists()

    code = (
        "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(marker)!r},'w').close(); time.sleep(60)"
    )
    async with Children(changed=lambda: None) as running:
        child = running.start(_program(tmp_path, "deaf", code, ready=is_deaf))
        await child.until_ready(timeout_s=10)
        pid = child.pid
        assert pid is not None

    assert [] == command_line(pid)


async def test_what_a_process_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    code = (
        "import subprocess,sys,time\n"
        f"p=subprocess.Popen([sys.executable,'-c',{SLEEP!r}])\n"
        f"open({str(note)!r},'w').write(str(p.pid))\ntime.sleep(60)"
    )

    async def noted(_: int) -> bool:
        return note.exists() and note.read_text() != ""

    async with Children(changed=lambda: None) as running:
        child = running.start(_program(tmp_path, "parent", code, ready=noted))
        await child.until_ready(timeout_s=10)
        grandchild = int(note.read_text())

    assert _has_ended(grandchild)


def _has_ended(pid: int) -> bool:
    """Within 5 s; the kernel tells."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 5)[0])
    finally:
        os.close(descriptor)


async def test_a_refused_setting_ends_the_wait_at_once_with_the_log(tmp_path: Path) -> None:
    async with Children(changed=lambda: None) as running:
        refusing = running.start(
            _program(tmp_path, "x", "print('BEHAVRY_X=1 cannot be used'); exit(2)", ready=_never)
        )
        with pytest.raises(NotReady, match="BEHAVRY_X=1 cannot be used"):
            await refusing.until_ready(timeout_s=10)


async def test_one_that_is_never_ready_is_named_with_its_log(tmp_path: Path) -> None:
    async with Children(changed=lambda: None) as running:
        slow = running.start(_program(tmp_path, "slow", SLEEP, ready=_never))
        with pytest.raises(NotReady, match=r"slow is not ready after 0 s"):
            await slow.until_ready(timeout_s=0.1)


async def test_a_program_that_is_not_there_is_told_not_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Program(
        name="gone",
        argv=[str(tmp_path / "gone")],
        env={},
        log=tmp_path / "gone.log",
        ready=_never,
    )
    async with Children(changed=lambda: None) as running:
        child = running.start(program)
        with pytest.raises(NotReady):
            await child.until_ready(timeout_s=0.3)

    assert "gone cannot start" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels tell a child nothing")
def test_children_of_a_killed_parent_end(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from services.cli.children import Children, Program
async def at_once(_): return True
async def main():
    async with Children(changed=lambda: None) as running:
        child = running.start(Program(name="a", argv=[sys.executable, "-c", {SLEEP!r}], env={{}},
                                      log=Path({str(tmp_path / "a.log")!r}), ready=at_once))
        await child.until_ready(timeout_s=10)
        print(child.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()

    assert _has_ended(child)
