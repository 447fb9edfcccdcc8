"""Nothing runs unrecorded and nothing recorded is lost, whatever process is killed under traffic.

Compares three witnesses that share nothing: the tool server's own ledger, what the agents were
told, and the chain. Each process is killed four times; everything heals without a hand.
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
KILLS = 17 if LONG else 4  # six processes: a hundred kills and two
AWAY_S = 60 if LONG else 10
#: Whoever ends five times within a minute has to wait for half a minute.
HEALS_WITHIN_S = 45
Figure = Callable[[str, object], None]
TARGETS = ("proxy", "authorizer", "engine", "audit", "control", "postgres")
ENGINES = {"embedded": pytest.mark.needs_regorus, "opa": pytest.mark.needs_opa}
#: Under OPA only what has to do with the engine; the long form does everything under both.
KILLED = [
    pytest.param(engine, name, marks=mark)
    for engine, mark in ENGINES.items()
    for name in TARGETS
    if LONG or engine == "embedded" or name in {"authorizer", "engine"}
]
AWAY = [
    pytest.param(engine, marks=mark)
    for engine, mark in ENGINES.items()
    if LONG or engine == "embedded"
]


@pytest.mark.parametrize(("running_stack", "name"), KILLED, indirect=["running_stack"])
@promise("failure:authorizer")
def test_kills_under_traffic_lose_nothing_and_double_nothing(
    running_stack: Stack, tmp_path: Path, record_property: Figure, name: str
) -> None:
    ledger = tmp_path / "ledger"

    with under_traffic(running_stack, ledger) as told:
        for _ in range(KILLS):
            kill(running_stack, name, told)

    for figure, value in compare_all(running_stack, told, ledger).items():
        record_property(figure, value)


@pytest.mark.parametrize("running_stack", AWAY, indirect=True)
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
