"""Nothing runs unrecorded and nothing recorded is lost, whatever process is killed under traffic.

Compares three witnesses that share nothing: the tool server's own ledger, what the agents were
told, and the chain. Each process is killed twice, often in the long form; everything heals without
a hand.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.stack import Stack, until
from tests.journeys.traffic import Told, answered
from tests.journeys.witnesses import AGENTS, compare_all, under_traffic
from tests.promises import promise

pytestmark = pytest.mark.chaos

LONG = os.environ.get("BEHAVRY_CHAOS") == "long"
KILLS = 17 if LONG else 2  # six processes: a hundred kills and two
AWAY_S = 60 if LONG else 5
#: Whoever ends five times within a minute has to wait for half a minute.
HEALS_WITHIN_S = 45
Figure = Callable[[str, object], None]
ENGINES = {"embedded": pytest.mark.needs_regorus, "opa": pytest.mark.needs_opa}
DECIDING = ("authorizer", "engine")
#: What knows nothing of the engine is killed under one of them; under both in the long form.
OTHERS = ("proxy", "audit", "control", "postgres")
ONE_ENGINE = [
    pytest.param(engine, marks=mark)
    for engine, mark in ENGINES.items()
    if LONG or engine == "embedded"
]


@pytest.mark.parametrize("name", DECIDING)
@promise("failure:authorizer")
def test_kills_of_what_decides_lose_nothing_and_double_nothing(
    running_stack: Stack, tmp_path: Path, record_property: Figure, name: str
) -> None:
    for figure, value in killed(running_stack, name, tmp_path / "ledger").items():
        record_property(figure, value)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("running_stack", ONE_ENGINE, indirect=True)
@promise("failure:authorizer")
def test_kills_under_traffic_lose_nothing_and_double_nothing(
    running_stack: Stack, tmp_path: Path, record_property: Figure, name: str
) -> None:
    for figure, value in killed(running_stack, name, tmp_path / "ledger").items():
        record_property(figure, value)


def killed(stack: Stack, name: str, ledger: Path) -> dict[str, int]:
    """Again and again under traffic; what was compared, counted."""
    with under_traffic(stack, ledger) as told:
        for _ in range(KILLS):
            kill(stack, name, told)
    return compare_all(stack, told, ledger)


@pytest.mark.parametrize("running_stack", ONE_ENGINE, indirect=True)
@promise("failure:audit")
def test_calls_go_on_while_audit_and_database_are_away_and_their_records_arrive(
    running_stack: Stack, tmp_path: Path, record_property: Figure
) -> None:
    ledger = tmp_path / "ledger"

    with under_traffic(running_stack, ledger) as told:
        leaders = [running_stack.pids()[name] for name in ("audit", "postgres")]
        away = [*leaders, *(pid for leader in leaders for pid in children(leader))]
        began, had = time.monotonic(), answered(told)
        for pid in away:
            os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: time.monotonic() - began > AWAY_S, "the outage is over", AWAY_S + 5)
            during = answered(told) - had
        finally:
            for pid in reversed(away):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    assert during > 10 * AWAY_S
    assert [] == [call for one in told for call in one.nothing]
    for figure, value in compare_all(running_stack, told, ledger).items():
        record_property(figure, value)


def kill(stack: Stack, name: str, told: list[Told]) -> None:
    """Kill -9, then: others of that name are ready, and calls go through again."""
    before = ready(stack, name)
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def healed() -> bool:
        now = ready(stack, name)
        return bool(now) and not now & before

    until(healed, f"{name} is back", HEALS_WITHIN_S, look_again_s=0.1)
    had = answered(told)
    until(lambda: answered(told) > had + AGENTS, f"calls go on after {name}", HEALS_WITHIN_S)


def ready(stack: Stack, name: str) -> frozenset[int]:
    """The process of that name, if it is ready. The embedded engine is two of the authorizer's
    children: one that answers, and a warm spare.
    """
    known = stack.processes()
    if name == "engine" and stack.up.engine != "opa":
        return frozenset(children(known["authorizer"]["pid"]))
    one = known["opa" if name == "engine" else name]
    return frozenset({one["pid"]} if one["ready"] else ())


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]
