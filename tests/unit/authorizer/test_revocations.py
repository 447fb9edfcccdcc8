"""Rights taken away stay away: over restarts, an older bundle, and a file that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.authorizer.kill_switch import FLEET, Switch
from services.authorizer.revocations import (
    SURE_AFTER_S,
    Revocation,
    Revocations,
    RevocationsLost,
)

STOP = Switch(scope="server", tenant="t", subject="files")
SECOND_NS = 1_000_000_000


def signal(name: str, min_serial: int) -> Revocation:
    return Revocation(
        signal_id=name,
        tenant="t",
        agents=frozenset({f"agent-{name}"}),
        sessions=frozenset({f"session-{name}"}),
        stops=frozenset({STOP}),
        min_serial=min_serial,
    )


def restored(path: Path) -> Revocations:
    made = Revocations(path)
    made.restore(now_ns=0)
    return made


def holds(revocations: Revocations, name: str) -> bool:
    agent = revocations.agent("t", f"agent-{name}")
    assert agent == revocations.session("t", f"session-{name}")
    return agent


async def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "revocations.json"
    before = restored(path)
    before.add(signal("a", 5), active_serial=4)
    await before.save()

    after = restored(path)
    after.settle(4)

    assert holds(after, "a")
    assert not holds(after, "b")
    assert {STOP} == after.stops()
    assert ["session-a"] == list(after.sessions_of("t"))
    assert 0o600 == path.stat().st_mode & 0o777
    assert [path] == list(tmp_path.iterdir())


async def test_the_bundle_that_knows_it_gives_back_and_no_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "revocations.json"
    revocations = restored(path)
    revocations.add(signal("a", 5), active_serial=4)
    revocations.add(signal("b", 6), active_serial=4)

    revocations.settle(5)

    assert (False, True) == (holds(revocations, "a"), holds(revocations, "b"))
    revocations.settle(6)
    assert not holds(revocations, "b")
    assert frozenset() == revocations.stops()


async def test_a_restart_that_falls_back_to_an_older_bundle_revokes_again(tmp_path: Path) -> None:
    path = tmp_path / "revocations.json"
    before = restored(path)
    before.add(signal("a", 5), active_serial=4)
    before.settle(5, oldest_serial=3)
    await before.save()
    assert not holds(before, "a")

    after = restored(path)
    after.settle(4, oldest_serial=3)

    assert holds(after, "a")
    after.settle(7, oldest_serial=5)
    await after.save()
    assert not holds(restored(path), "a")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version":2,"signals":[]}', b'{"version":1,"signals":[{}]}']
)
async def test_an_unreadable_file_stops_everything_until_control_has_surely_said_it_again(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "revocations.json"
    path.write_bytes(content)
    revocations = Revocations(path)
    with pytest.raises(RevocationsLost):
        revocations.restore(now_ns=SECOND_NS)

    assert {FLEET} == revocations.stops()
    assert not revocations.confirm(now_ns=SURE_AFTER_S * SECOND_NS)
    assert {FLEET} == revocations.stops()
    assert revocations.confirm(now_ns=(SURE_AFTER_S + 1) * SECOND_NS)
    assert frozenset() == revocations.stops()


async def test_another_restart_after_a_loss_waits_again(tmp_path: Path) -> None:
    path = tmp_path / "revocations.json"
    path.write_bytes(b"torn")
    first = Revocations(path)
    with pytest.raises(RevocationsLost):
        first.restore(now_ns=0)
    first.add(signal("a", 5), active_serial=4)
    await first.save()

    second = restored(path)

    assert FLEET in second.stops()
    assert holds(second, "a")
    second.confirm(now_ns=(SURE_AFTER_S + 1) * SECOND_NS)
    await second.save()
    assert FLEET not in restored(path).stops()


async def test_what_cannot_be_written_is_not_acknowledged_and_counts_all_the_same(
    tmp_path: Path,
) -> None:
    revocations = restored(tmp_path / "gone" / "revocations.json")
    revocations.add(signal("a", 5), active_serial=4)

    with pytest.raises(OSError, match="revocations"):
        await revocations.save()

    assert holds(revocations, "a")
