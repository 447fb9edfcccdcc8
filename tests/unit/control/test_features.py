"""What is believed of what entitlements says, and what is kept of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.ids import TenantId
from services.control import snapshots
from services.control.features import Entitlements, FeatureAnswer, Features, allows
from tests.fakes.children import ROOT
from tests.fakes.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def held(tenant: str, revision: int, mode: str = "on") -> Entitlements:
    answer = FeatureAnswer(
        key="context_gate", allowed=mode == "on", mode=mode, source="PLAN", required_plan="trial"
    )
    return Entitlements(
        tenant=TenantId(tenant), plan="trial", status="VALID", plan_expires_at_s=None,
        revision=revision, features=(answer,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "read", "write", "remove"),
    [
        ("on", True, True, True),
        ("frozen", True, False, True),
        ("tightened", True, False, True),
        ("kept", True, False, True),
        ("stopped", True, False, True),
        ("off", False, False, False),
        ("of another version", False, False, False),
    ],
)
def test_what_each_mode_allows(mode: str, read: bool, write: bool, remove: bool) -> None:
    assert (read, write, remove) == tuple(
        allows(mode, what) for what in ("read", "write", "remove")
    )


def test_the_holder_equals_the_service_wherever_the_stream_is_cut(clock: ManualClock) -> None:
    """Random changes, lists begun and cut, messages late or twice, restored databases."""
    chance = random.Random(612)
    features = Features(clock)
    epoch, revision, service = "e0", 0, dict[TenantId, Entitlements]()
    before = list[tuple[str, Entitlements]]()
    for step in range(3000):
        if chance.random() < 0.01:  # restored: an earlier state, in another epoch
            epoch, revision = f"e{step}", max(0, revision - 20)
            service = {one: held(one, min(now.revision, revision)) for one, now in service.items()}
            features.sync(epoch, revision, service)
        revision += 1
        tenant = TenantId(f"t{chance.randrange(12)}")
        if chance.random() < 0.1 and tenant in service:
            del service[tenant]
            deleted = True
        else:
            service[tenant] = held(tenant, revision, chance.choice(("on", "off", "frozen")))
            before.append((epoch, service[tenant]))
            deleted = False
        heard = chance.random()
        if heard < 0.5 and deleted:
            features.forget(tenant, revision)
        elif heard < 0.5:
            features.update(service[tenant])
        elif heard < 0.6:
            named, late = chance.choice(before)
            known = features.of(late.tenant)
            if known is not None and named == epoch:
                features.update(late)
                after = features.of(late.tenant)
                assert after is not None
                assert after.revision >= known.revision
        elif heard < 0.8:
            features.sync(epoch, revision, service)
            assert service == {one.tenant: one for one in features.kept().tenants}


def test_what_came_while_the_list_was_told_is_not_forgotten(clock: ManualClock) -> None:
    features = Features(clock)
    features.sync("e1", 5, {TenantId("a"): held("a", 5)})
    features.update(held("new", 7))
    features.sync("e1", 6, {TenantId("a"): held("a", 5)})

    assert {"a", "new"} == {one.tenant for one in features.kept().tenants}


def test_a_list_that_was_begun_before_does_not_bring_a_deleted_tenant_back(
    clock: ManualClock,
) -> None:
    features, tenant = Features(clock), TenantId("a")
    features.sync("e1", 5, {tenant: held("a", 5)})
    features.forget(tenant, 9)
    features.sync("e1", 6, {tenant: held("a", 6)})
    features.update(held("a", 8))
    assert features.of(tenant) is None

    features.update(held("a", 10))
    assert held("a", 10) == features.of(tenant)
    features.forget(tenant, 11)
    features.sync("e2", 3, {tenant: held("a", 2)})  # another life of the database
    assert held("a", 2) == features.of(tenant)


def test_a_copy_is_private_whole_and_read_as_it_was(tmp_path: Path, clock: ManualClock) -> None:
    features, file = Features(clock), tmp_path / "copy"
    features.sync("e1", 5, {TenantId("a"): held("a", 5, "kept")})
    features.catalogue = {"plans": [], "features": []}
    snapshots.write(file, features.kept())
    kept = snapshots.read(file)
    assert kept is not None
    restored = Features(clock)
    restored.restore(kept)

    assert 0o600 == file.stat().st_mode & 0o777
    assert features.kept() == restored.kept()
    assert (False, True) == (features.stale, restored.stale)
    # Within its epoch nothing lower is believed after a restart either.
    restored.sync("e1", 4, {TenantId("a"): held("a", 4)})
    assert held("a", 5, "kept") == restored.of(TenantId("a"))


@pytest.mark.parametrize("broken", [b"", b"behavry.entitlements/1\n\xff", b"another form"])
def test_a_copy_that_cannot_be_read_is_none(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "copy"
    assert snapshots.read(file) is None
    file.write_bytes(broken)

    assert snapshots.read(file) is None


def test_ten_thousand_tenants_are_held_and_read_again_quickly() -> None:
    """A holder's memory and time, with messages as the service makes them; all is read again, too,
    and takes no second place.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fakes.holder_child", "10000"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    told = json.loads(ran.stdout)
    sys.stderr.write(f"{told}\n")

    assert 10_000 == told["tenants"]
    assert 0 < told["grown_bytes"] <= told["again_bytes"] <= 64 * 1024 * 1024
    assert told["spent_s"] <= 6.0
