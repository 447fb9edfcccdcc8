"""Bundles and processes: a stock OPA takes our signed bundle and no other, revisions switch under
traffic, children that die are replaced, limits are told.
"""

import asyncio
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import Said
from services.authorizer.engine.embedded import MAX_POLICIES, MAX_TENANTS, Embedded, embedded_engine
from services.authorizer.engine.opa_feed import CONTENT_TYPE, RESOURCE, OpaFeed, serve_feed
from services.authorizer.engine.protocol import (
    Engine,
    EngineBundle,
    EngineCapacity,
    EngineRefused,
    EngineState,
    TenantPolicies,
)
from services.common.rego.names import PolicyRef
from services.common.telemetry.logging import get_log
from tests.fakes.bundle import Made, Policy, made, signing_key
from tests.fakes.envelopes import TENANT
from tests.fakes.opa import running_opa
from tests.promises import promise

KEY = signing_key()
ITEM = b'{"request":{"domain":"d","action":"read","tool":"t"},"agent":{"permissions":["d:read"]}}'


def says(code: str, serial: int) -> Made:
    verdict = f'{{"result": "deny", "code": "{code}", "reason": "r", "obligations": []}}'
    rego = f"verdicts contains {verdict}"
    return made({TENANT: [Policy("rule", rego)]}, serial=serial, key=KEY)


async def ask(engine: Engine, revision: str, item: bytes = ITEM) -> Said:
    deadline = asyncio.get_running_loop().time() + 5
    (said,) = await engine.evaluate(TENANT, revision, [item], deadline)
    return said


def code(said: Said) -> str:
    return said.decision.reason_code if isinstance(said, EngineAnswer) else said.code


@pytest_asyncio.fixture
async def embedded() -> AsyncIterator[Embedded]:
    async with embedded_engine(get_log("test")) as engine:
        yield engine


@pytest.mark.needs_opa
async def test_a_stock_opa_takes_our_bundle_with_its_own_signature_check(tmp_path: Path) -> None:
    bundle = says("first", 1)
    async with running_opa(tmp_path, KEY) as opa:
        await opa.engine.offer(bundle.bundle)

        assert "first" == code(await ask(opa.engine, bundle.bundle.revision))


@pytest.mark.needs_opa
async def test_opa_refuses_what_another_key_signed_or_somebody_altered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.authorizer.engine.opa.ACTIVATION_LIMIT_S", 1.0)
    good, later = says("first", 1), says("second", 2).bundle
    foreign = made({TENANT: []}, serial=3, key=signing_key()).bundle
    altered = EngineBundle(
        revision=later.revision,
        etag="altered",
        archive=_with_a_changed_policy(later.archive),
        modules=later.modules,
        tenants=later.tenants,
    )
    async with running_opa(tmp_path, KEY) as opa:
        await opa.engine.offer(good.bundle)
        for bad in (foreign, altered):
            with pytest.raises(EngineRefused):
                await opa.engine.offer(bad)

            assert "first" == code(await ask(opa.engine, good.bundle.revision))
        await opa.engine.offer(later)
        assert "second" == code(await ask(opa.engine, later.revision))


def _with_a_changed_policy(archive: bytes) -> bytes:
    changed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as old,
        tarfile.open(fileobj=changed, mode="w:gz") as new,
    ):
        for entry in old:
            body = old.extractfile(entry)
            content = (body.read() if body else b"").replace(b'"deny", "code"', b'"allow","code"')
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    return changed.getvalue()


@pytest.mark.needs_opa
@promise("failure:engine")
async def test_an_opa_that_was_killed_denies_until_it_is_back(tmp_path: Path) -> None:
    bundle = says("first", 1)
    states: list[EngineState] = []
    down = asyncio.Event()
    async with running_opa(tmp_path, KEY) as opa:
        await opa.engine.offer(bundle.bundle)
        opa.engine.on_state(states.append)
        opa.engine.on_state(lambda state: down.set() if state is EngineState.DOWN else None)
        opa.process.send_signal(signal.SIGKILL)
        await opa.process.wait()

        assert "policy_unavailable" == code(await ask(opa.engine, bundle.bundle.revision))
        await asyncio.wait_for(down.wait(), 5)


@pytest.mark.parametrize(
    "engine_name", ["embedded", pytest.param("opa", marks=pytest.mark.needs_opa)]
)
async def test_every_decision_over_switches_is_of_the_revision_that_was_asked(
    engine_name: str, tmp_path: Path
) -> None:
    """core-revision in small: under traffic, ten switches, no decision of another revision."""
    if engine_name == "embedded":
        async with embedded_engine(get_log("test")) as engine:
            await _switching(engine)
    else:
        async with running_opa(tmp_path, KEY) as opa:
            await _switching(opa.engine)


async def _switching(engine: Engine) -> None:
    first = says("serial_1", 1)
    await engine.offer(first.bundle)
    active, stopping = [first.bundle.revision], asyncio.Event()
    seen: list[tuple[str, str]] = []

    async def traffic() -> None:
        while not stopping.is_set():
            revision = active[0]
            seen.append((revision, code(await ask(engine, revision))))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(traffic())
        for serial in range(2, 12):
            bundle = says(f"serial_{serial}", serial).bundle
            await engine.offer(bundle)
            active[0] = bundle.revision
            seen += [(bundle.revision, code(await ask(engine, bundle.revision))) for _ in range(10)]
        stopping.set()

    decided = [(revision, said) for revision, said in seen if said != "revision_mismatch"]
    for revision, said in decided:
        assert f"serial_{revision.partition('-')[0]}" == said
    assert len(decided) > 100
    assert len(seen) - len(decided) < 0.2 * len(seen)  # asked again by the caller, once


async def test_a_child_that_dies_is_replaced_and_nobody_is_denied(embedded: Embedded) -> None:
    bundle = says("first", 1)
    await embedded.offer(bundle.bundle)
    for _ in range(4):
        assert "first" == code(await ask(embedded, bundle.bundle.revision))
        os.kill(embedded.pids[0], signal.SIGKILL)

        assert "first" == code(await ask(embedded, bundle.bundle.revision))


async def test_a_bundle_that_does_not_compile_keeps_the_one_before(embedded: Embedded) -> None:
    good = says("first", 1)
    bad = made({TENANT: []}, serial=2, key=KEY).bundle
    broken = EngineBundle(
        revision=bad.revision,
        etag="",
        archive=b"",
        modules={**bad.modules, "behavry/x.rego": "package behavry.x\n\ny := {"},
        tenants=bad.tenants,
    )
    await embedded.offer(good.bundle)
    with pytest.raises(EngineRefused):
        await embedded.offer(broken)

    assert "first" == code(await ask(embedded, good.bundle.revision))
    assert "revision_mismatch" == code(await ask(embedded, broken.revision))


async def test_a_policy_without_its_entry_is_refused(embedded: Embedded) -> None:
    bundle = made({TENANT: [Policy("rule", "helper := 1")]}, serial=1, key=KEY)

    with pytest.raises(EngineRefused):
        await embedded.offer(bundle.bundle)


async def test_beyond_its_capacity_the_embedded_engine_refuses(embedded: Embedded) -> None:
    def bundle(tenants: int, policies: int) -> EngineBundle:
        part = TenantPolicies(
            policies=tuple(PolicyRef(key=f"p{n}", package=f"p{n}") for n in range(policies))
        )
        numbered = {f"0192f5c0-0000-7000-8000-{n:012d}": part for n in range(tenants)}
        return EngineBundle(revision="1-x", etag="", archive=b"", modules={}, tenants=numbered)

    for too_much in (bundle(MAX_TENANTS + 1, 1), bundle(1, MAX_POLICIES + 1)):
        with pytest.raises(EngineCapacity) as refused:
            await embedded.offer(too_much)

        assert "ENGINE_CAPACITY" == refused.value.reason
    with pytest.raises(EngineRefused) as other:  # at its capacity it is only the missing modules
        await embedded.offer(bundle(MAX_TENANTS, MAX_POLICIES))
    assert "ENGINE_CAPACITY" != other.value.reason


@promise("failure:engine")
async def test_a_stopped_child_is_down_by_the_canary_and_up_again(embedded: Embedded) -> None:
    bundle = says("first", 1)
    await embedded.offer(bundle.bundle)
    changed: asyncio.Queue[EngineState] = asyncio.Queue()
    embedded.on_state(changed.put_nowait)
    stopping = True

    def stop() -> None:
        for pid in embedded.pids if stopping else ():
            os.kill(pid, signal.SIGSTOP)
        if stopping:
            asyncio.get_running_loop().call_later(0.02, stop)

    stop()

    assert EngineState.DOWN is await asyncio.wait_for(changed.get(), 5)
    stopping = False
    for pid in embedded.pids:
        os.kill(pid, signal.SIGKILL)
    assert EngineState.UP is await asyncio.wait_for(changed.get(), 5)
    assert "first" == code(await ask(embedded, bundle.bundle.revision))


async def test_nothing_is_left_running_when_the_engine_closes() -> None:
    async with embedded_engine(get_log("test")) as engine:
        await engine.offer(says("first", 1).bundle)
        await ask(engine, "")
        pids = engine.pids
        assert pids

    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_the_feed_is_for_who_knows_its_token() -> None:
    feed = OpaFeed("right")
    async with serve_feed(feed, port=0) as url, aiohttp.ClientSession() as http:
        target = f"{url}/{RESOURCE}"
        good = {"Authorization": "Bearer right"}
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
            assert 401 == (await http.get(target, headers=wrong)).status
        assert 404 == (await http.get(target, headers=good)).status
        feed.publish("sha256:1", b"archive")
        got = await http.get(target, headers=good)

        assert (200, b"archive", '"sha256:1"') == (
            got.status,
            await got.read(),
            got.headers["ETag"],
        )
        assert CONTENT_TYPE == got.headers["Content-Type"]
        known = {**good, "If-None-Match": '"sha256:1"'}
        assert 304 == (await http.get(target, headers=known)).status
        waiting = asyncio.gather(
            http.get(target, headers={**known, "Prefer": "modes=snapshot;wait=10"})
        )
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        feed.publish("sha256:2", b"newer")
        (changed,) = await asyncio.wait_for(waiting, 5)
        assert b"newer" == await changed.read()


async def test_asking_before_any_bundle_denies(embedded: Embedded) -> None:
    deadline = asyncio.get_running_loop().time() + 0.05
    (said,) = await embedded.evaluate(TENANT, "1-x", [ITEM], deadline)

    assert isinstance(said, EngineFailure)
    assert "policy_unavailable" == said.code
    assert embedded.state is EngineState.DOWN
