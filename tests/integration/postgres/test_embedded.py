"""The embedded server's life: made once, closed to strangers, back after the worst."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.common.postgres import embedded
from tests.fakes.postgres import Server, start_server, stop_server


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, because a socket's path has a limit."""
    made = Path(tempfile.mkdtemp(prefix="bvpg-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    running = start_server(directory, durable=True)
    yield running
    stop_server(running)


async def _fetch(server: Server, query: str) -> object:
    connection = await asyncpg.connect(server.cluster.dsn(database="postgres"), timeout=5)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_the_only_door_is_a_socket_that_asks_for_a_password(server: Server) -> None:
    addresses = await _fetch(server, "SHOW listen_addresses")
    wrong = server.directory / "wrong"
    embedded.write_secret(wrong, f"*:*:*:{embedded.SUPERUSER}:guessed\n")
    dsn = server.cluster.dsn(database="postgres")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn.replace(str(server.cluster.passfile), str(wrong)))

    assert not addresses
    assert 0o700 == stat.S_IMODE(server.cluster.data.stat().st_mode)
    assert 0o600 == stat.S_IMODE(server.cluster.passfile.stat().st_mode)


async def test_it_writes_through(server: Server) -> None:
    settings = [
        await _fetch(server, f"SHOW {name}")
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
    ]

    assert ["on"] * 4 == settings


async def test_its_log_holds_neither_statements_nor_values(server: Server) -> None:
    connection = await asyncpg.connect(server.cluster.dsn(database="postgres"))
    await connection.execute("CREATE TABLE t (v text PRIMARY KEY)")
    await connection.execute("INSERT INTO t VALUES ('planted-value')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO t VALUES ('planted-value')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO t VALUES ($1)", "planted-value")
    await connection.close()
    log = (server.directory / "postgres.log").read_text()

    assert "duplicate key" in log
    assert "planted-value" not in log


async def test_a_committed_row_outlives_kill_9(directory: Path) -> None:
    first = await asyncio.to_thread(start_server, directory, durable=True)
    await _fetch(first, "CREATE TABLE t AS SELECT 42 AS v")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    await embedded.await_previous_end(first.cluster)
    second = await asyncio.to_thread(start_server, directory, durable=True)
    try:
        survived = await _fetch(second, "SELECT v FROM t")
    finally:
        stop_server(second)

    assert 42 == survived


async def test_a_new_start_waits_for_the_old_server_then_ends_it(directory: Path) -> None:
    old = await asyncio.to_thread(start_server, directory, durable=True)
    reaping = asyncio.create_task(asyncio.to_thread(old.process.wait))

    await embedded.await_previous_end(old.cluster, timeout_s=5)

    assert embedded.running_pid(old.cluster) is None
    assert 0 == await reaping


async def test_a_lock_file_whose_number_was_given_away_does_not_stop_a_start(
    directory: Path,
) -> None:
    first = await asyncio.to_thread(start_server, directory, durable=True)
    stop_server(first)
    (first.cluster.data / "postmaster.pid").write_text(f"{os.getpid()}\n")
    await embedded.await_previous_end(first.cluster)
    second = await asyncio.to_thread(start_server, directory, durable=True)
    stop_server(second)

    assert second.process.returncode == 0


def test_an_interrupted_first_start_is_made_again(directory: Path) -> None:
    half = directory / "db.making"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server = start_server(directory, durable=True)
    stop_server(server)

    assert not half.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes to another account")
def test_where_namespaces_are_forbidden_it_runs_under_an_unprivileged_account(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(tempfile.mkdtemp(prefix="bvpg-"))
    monkeypatch.setattr(embedded, "ACCOUNT_ROOT", root / "behavry")
    root.chmod(0o711)
    umask = os.umask(0o077)
    monkeypatch.setattr(embedded, "choose_isolation", lambda: embedded.Isolation.ACCOUNT)
    try:
        server = start_server(directory, durable=True)
        owner = Path(f"/proc/{server.process.pid}").stat().st_uid
        answered = asyncio.run(_fetch(server, "SELECT 1"))
        stop_server(server)
    finally:
        os.umask(umask)
        shutil.rmtree(root, ignore_errors=True)

    assert (embedded.unprivileged_uid(), 1) == (owner, answered)


def test_nothing_of_the_server_is_left_after_a_stop(directory: Path) -> None:
    server = start_server(directory, durable=True)
    stop_server(server)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)

    assert str(directory) not in listed.stdout
