"""Several proxies on one port, as processes: who keeps them running, and how they end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
import pytest

from tests.fakes.children import ROOT
from tests.fakes.gateway import environment, until, until_true
from tests.fakes.installation import still_there
from tests.fakes.ports import free_port


class Proxies:
    """A test's hand on them. Nobody decides anything here: there is no authorizer."""

    def __init__(self, state: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.run_dir = state / "run"
        self.process = process
        self.port = port

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
    port = free_port()
    listen = {"BEHAVRY_PROXY_HTTP_LISTEN": f"127.0.0.1:{port}"}
    env = environment(state, **{"BEHAVRY_PROXY_WORKERS": "2", **store, **listen, **changes})
    process = subprocess.Popen(
        [sys.executable, "-m", "services.proxy"],
        cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    made = Proxies(state, process, port)
    try:
        yield made
    finally:
        process.kill()
        for worker in made.workers():  # they would end by themselves, when they have started
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
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


async def test_nobody_else_of_our_user_can_listen_beside_them(tmp_path: Path) -> None:
    """A tool server that could would be given agents' tokens."""
    with started(tmp_path) as proxies:
        await proxies.running()
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                stranger.bind(("127.0.0.1", proxies.port))
