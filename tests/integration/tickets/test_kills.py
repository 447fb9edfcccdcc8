"""Kill -9 at each step of a ticket's life: what was told is on the disk, with its clocks, and no
use of an approval is had twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from services.authorizer.tickets.local import local_ticket_store
from services.authorizer.tickets.ticket import State, Ticket
from services.common.telemetry.logging import get_log
from tests.fakes.ticket_writer import DECIDED_MS, USES
from tests.fakes.tickets import HOUR_MS, MINUTE_MS, START_MS, TENANT, opening
from tests.promises import promise

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}", "PATH": os.environ["PATH"]}
#: More than a whole life takes.
OPERATIONS = 16


@promise("escalations:once")
async def test_killed_before_each_file_operation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fakes.ticket_writer", str(tmp_path), str(OPERATIONS)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, timeout=60)

    answers = [await what_is_left(tmp_path / str(number)) for number in range(OPERATIONS)]

    assert sorted(answers) == answers  # a later death never leaves less
    assert [0, 4] == [answers[0], answers[-1]]


async def what_is_left(directory: Path) -> int:
    """How many answers the writer got before it died, none of which may be undone."""
    told = [line.split() for line in told_in(directory)]
    async with local_ticket_store(directory, get_log("test")) as store:
        tickets = await store.unsettled()
        if not tickets:
            assert [] == told
            return 0
        (ticket,) = tickets
        if told:
            assert told[0][0] == ticket.id
        assert ticket.version in {len(told) - 1, len(told)}  # at most the unanswered one more
        assert START_MS + HOUR_MS == ticket.decide_by_ms
        if ticket.version > 0:
            assert DECIDED_MS + 15 * MINUTE_MS == ticket.execute_by_ms
        had = len([line for line in told if line[1:] in (["approved", "1"], ["consumed", "0"])])
        more = 0
        while isinstance(
            await store.consume(TENANT, ticket.id, binding=ticket.binding, now_ms=DECIDED_MS),
            Ticket,
        ):
            more += 1
        assert had + more <= USES
        if ticket.state is State.PENDING:
            again = await store.open(opening(), now_ms=START_MS)
            assert (ticket.id, 0) == (again.id, more)
    return len(told)


def told_in(directory: Path) -> list[str]:
    path = directory.with_suffix(".told")
    return path.read_text().splitlines() if path.exists() else []
