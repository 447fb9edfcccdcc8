"""The connection to a real Valkey or Redis: its address, its password, its death."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.common.counter_store.protocol import Bucket, CounterStoreLost
from services.common.counter_store.valkey import BOUND_S, ValkeyCounterStore
from services.common.telemetry.logging import get_log
from services.common.valkey import PasswordInAddress, ValkeyLost, check_url, open_valkey
from tests.fakes.valkey import ValkeyServer, running_valkey

pytestmark = pytest.mark.needs_valkey
LOG = get_log("test")
BUCKET = Bucket(key="a", per_minute=60, burst=1)


async def until_found(call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await call()
            except CounterStoreLost:
                await _turn()
            else:
                return


async def _turn() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, done.set)
    await done.wait()


async def lost_after_s(store: ValkeyCounterStore) -> float:
    began = time.monotonic()
    with pytest.raises(CounterStoreLost):
        await store.take([BUCKET])
    return time.monotonic() - began


async def test_a_killed_server_is_lost_at_once_and_found_again() -> None:
    with running_valkey() as server:
        async with open_valkey(server.url, LOG) as valkey:
            store = ValkeyCounterStore(valkey, prefix="plane")
            assert (await store.take([BUCKET])).allowed

            server.kill()
            for call in (store.known("k"), store.remember("k", 1), store.take([BUCKET])):
                with pytest.raises(CounterStoreLost):
                    await call

            server.started()
            await until_found(lambda: store.known("k"))
            assert not (await store.take([BUCKET])).allowed  # what was counted counts


async def test_a_silent_server_costs_its_bound_once() -> None:
    with running_valkey(keeps="no") as server:
        async with open_valkey(server.url, LOG) as valkey:
            store = ValkeyCounterStore(valkey, prefix="plane")
            await store.take([BUCKET])

            server.pause()
            assert BOUND_S <= await lost_after_s(store) < 10 * BOUND_S
            assert min([await lost_after_s(store) for _ in range(5)]) < BOUND_S / 5
            server.resume()

            await until_found(lambda: store.known("k"))


async def test_a_server_that_is_not_there_yet_stops_no_start(tmp_path: Path) -> None:
    with running_valkey(keeps="no") as server:
        server.kill()
        async with open_valkey(server.url, LOG) as valkey:
            store = ValkeyCounterStore(valkey, prefix="plane")
            with pytest.raises(CounterStoreLost):
                await store.known("k")
            server.started()
            await until_found(lambda: store.known("k"))


async def test_the_password_is_read_from_its_file(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("s3cret\n")
    wrong.write_text("guess\n")
    with running_valkey(keeps="no", password="s3cret") as server:
        async with open_valkey(server.url, LOG, password_file=right) as valkey:
            assert await valkey.call(lambda it: it.ping(), bound_s=1)
        for refused in (wrong, tmp_path / "none", None):
            async with open_valkey(server.url, LOG, password_file=refused) as valkey:
                with pytest.raises(ValkeyLost) as lost:
                    await valkey.call(lambda it: it.ping(), bound_s=1)
                assert "guess" not in str(lost.value)


async def test_planes_do_not_see_each_others_counts(valkey: ValkeyServer) -> None:
    async with open_valkey(valkey.url, LOG) as connection:
        one, two = (ValkeyCounterStore(connection, prefix=name) for name in ("p1", "p2"))
        assert (await one.take([BUCKET])).allowed
        assert (await two.take([BUCKET])).allowed
        assert not (await one.take([BUCKET])).allowed


async def test_a_wrong_answer_of_the_server_is_a_loss(valkey: ValkeyServer) -> None:
    async with open_valkey(valkey.url, LOG) as connection:
        store = ValkeyCounterStore(connection, prefix="spoilt")
        await connection.call(lambda server: server.hset("{spoilt}:count:a", "x", "y"), bound_s=1)

        with pytest.raises(CounterStoreLost):
            await store.take([BUCKET])


@pytest.mark.parametrize(
    "url", ["redis://cache:6379/0", "rediss://cache:6379", "unix:///run/valkey.sock"]
)
def test_an_address_names_a_server(url: str) -> None:
    assert url == check_url(url)


@pytest.mark.parametrize("url", ["", "cache:6379", "http://cache", "redis://", "file:///x"])
def test_what_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="counter store"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["redis://:s3cret@cache", "redis://u:s3cret@cache/0", "unix:///x?password=s3cret"]
)
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(PasswordInAddress) as refused:
        check_url(url)

    assert "s3cret" not in str(refused.value)
