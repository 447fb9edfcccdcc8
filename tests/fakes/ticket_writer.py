"""A process that opens, decides and consumes, and kills itself before a given file operation.

    python -m tests.fakes.ticket_writer DIRECTORY COUNT

For each number up to COUNT a fork of it lives one life in DIRECTORY/<number>, killed before its
file operation of that number; what it was told it writes to DIRECTORY/<number>.told, a line per
answer, before it goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from services.authorizer.tickets.local import local_ticket_store
from services.authorizer.tickets.ticket import Ticket
from services.common.telemetry.logging import get_log
from tests.fakes.disk import ScriptedFiles
from tests.fakes.tickets import MINUTE_MS, START_MS, TENANT, approval, opening

USES = 2
DECIDED_MS = START_MS + MINUTE_MS


class KillAt:
    """A hook: SIGKILL before operation `number`, from 0."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen = 0

    def __call__(self, operation: str) -> None:
        if self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1


async def live(directory: Path, number: int) -> None:
    told = os.open(directory.with_suffix(".told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(ticket: Ticket) -> None:
        os.write(told, f"{ticket.id} {ticket.state} {ticket.uses_left}\n".encode())

    files = ScriptedFiles(KillAt(number))
    async with local_ticket_store(directory, get_log("writer"), files=files) as store:
        ticket = await store.open(opening(), now_ms=START_MS)
        tell(ticket)
        granted = approval(ticket, at_ms=DECIDED_MS, uses=USES)
        after = await store.decide(TENANT, ticket.id, granted, now_ms=DECIDED_MS)
        assert after is not None
        tell(after)
        for _ in range(USES):
            taken = await store.consume(
                TENANT, ticket.id, binding=ticket.binding, now_ms=DECIDED_MS
            )
            assert isinstance(taken, Ticket)
            tell(taken)


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    for number in range(count):
        child = os.fork()
        if child == 0:
            asyncio.run(live(directory / str(number), number))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
