"""Several proxies on one port, as processes: who keeps them running, and how they end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from services.proxy.transports.listener import bind, keep
from tests.fakes.children import ROOT
from tests.fakes.gateway import environment, until, until_true
from tests.fakes.installation import still_there


class Proxies:
    """A test's hand on them. Nobody decides anything here: there is no authorizer."""

    def __init__(self, state: Path, process: subprocess.Popen[bytes]) -> None:
        self.run_dir = state / "run"
        self.process = process

    def workers(self) -> list[int]:
        try:
            found: list[int] = orjson.loads((self.run_dir / "proxy-workers.json").read_bytes())[
                "workers"
            ]
        except FileNotFoundError:
            return []
        return found

    async def running(self, count: int = 2) -> list[int]:
        async def all_of_them() -> bool:
            return len(self.workers()) == count

        await until_true(all_of_them, seconds=20)
        return self.workers()


@contextmanager
def started(state: Path, **changes: str) -> Iterator[Proxies]:
    store = {"BEHAVRY_COUNTER_STORE_URL": f"unix://{state}/nobody.sock"}
    env = environment(state, **{"BEHAVRY_PROXY_WORKERS": "2", **store, **changes})
    process = subprocess.Popen(
        [sys.executable, "-m", "services.proxy"],
        cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Proxies(state, process)
    finally:
        process.kill()
        process.communicate()


def test_several_without_a_store_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    with started(tmp_path, BEHAVRY_COUNTER_STORE_URL="") as proxies:
        _, said = proxies.process.communicate(timeout=20)

    assert 2 == proxies.process.returncode
    assert b"BEHAVRY_PROXY_WORKERS='2' needs BEHAVRY_COUNTER_STORE_URL" in said


async def test_a_killed_worker_is_another_one_soon_and_a_signal_ends_all(tmp_path: Path) -> None:
    with started(tmp_path) as proxies:
        first, second = await proxies.running()
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in proxies.workers())
        left = await proxies.running()

        proxies.process.terminate()
        await asyncio.to_thread(proxies.process.wait, 20)

    assert second in left
    assert 0 == proxies.process.returncode
    assert not still_there({*left}, within_s=0)
    assert [] == proxies.workers()


async def test_workers_end_with_who_kept_them_running(tmp_path: Path) -> None:
    """Nobody would start them again."""
    with started(tmp_path) as proxies:
        workers = await proxies.running()
        proxies.process.kill()

        assert not still_there({*workers}, within_s=20)


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "among several"])
def test_a_port_that_a_stranger_listens_on_is_not_shared_with_it(shares: bool) -> None:
    stranger = socket.create_server(("127.0.0.1", 0), reuse_port=shares)
    with stranger, pytest.raises(OSError, match="in use"):
        keep(f"127.0.0.1:{stranger.getsockname()[1]}")


def test_a_port_that_is_kept_is_free_for_us_alone() -> None:
    kept, bound = keep("127.0.0.1:0")
    with kept:
        first, _ = bind(bound, among_several=True)
        second, _ = bind(bound, among_several=True)
        with first, second, pytest.raises(OSError, match="in use"):
            bind(bound)
