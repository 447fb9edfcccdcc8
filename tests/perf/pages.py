"""Lists over much history: the same pages at ten thousand rows and at some millions (C-PAGE).

Fills the two lists that grow for ever, decisions and escalations, in an installation of its own, by
copying one real row; then asks for first pages, for pages further back, and for one agent's,
through REST as a user does. No work may grow with history: the ratio of the two columns says
whether it does.

    python -m tests.perf.pages [--rows 1000000]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg

from services.common.postgres import embedded
from tests.fakes.stack import Refused, Stack, running, until
from tests.perf.arithmetic import percentile

FEW: Final = 10_000
ASKED: Final = 60
#: Ids that are older than all real ones, in the order of `g`.
_ID: Final = "(lpad(to_hex(g), 8, '0') || '-0000-7000-8000-000000000000')::uuid"
_EVENTS: Final = f"""
INSERT INTO audit.events (tenant_id, chain, incarnation, seq, committed_at, position, event_id,
    body, previous_hash, event_hash, type, agent, agent_name, server, tool, action, verdict, reason)
SELECT e.tenant_id, 'agent:filler', 1, g, e.committed_at, 0, {_ID}, e.body, e.previous_hash,
    e.event_hash, e.type, e.agent, 'agent-' || g % 100, e.server, e.tool, e.action, e.verdict,
    e.reason
FROM (SELECT * FROM audit.events WHERE type = 'call.denied' LIMIT 1) e,
    generate_series($1::bigint, $2::bigint) g"""
_ESCALATIONS: Final = f"""
INSERT INTO control.escalations
SELECT {_ID}, t.id, 'dp', gen_random_uuid(), 'agent-' || g % 100, 'default', '', false, 'git',
    'git_commit', 'tools/call', 'write', '', '', 'none', '{{code}}', '', '{{}}', '{{}}', '{{}}',
    'b1', 'sha256:0', 1, 'low', now() - interval '9 days', now() - interval '8 days', 900,
    'consumed', 1, 1, 0, NULL, now(), now()
FROM control.tenants t, generate_series($1::bigint, $2::bigint) g
WHERE t.slug = 'default'"""


async def fill(dsn: str, since: int, rows: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in (_EVENTS, _ESCALATIONS):
            for first in range(since + 1, rows + 1, 100_000):
                await connection.execute(statement, first, min(first + 99_999, rows), timeout=600)
        await connection.execute("VACUUM ANALYZE audit.events", timeout=600)
        await connection.execute("VACUUM ANALYZE control.escalations", timeout=600)
    finally:
        await connection.close()


def p95_ms(ask: Callable[[], Any]) -> float:
    taken = []
    for _ in range(ASKED):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return percentile([round(one * 1e6) for one in sorted(taken)], 0.95) / 1000


def pages(stack: Stack, path: str) -> dict[str, float]:
    def walk(**query: Any) -> Callable[[], Any]:
        """The next page at each call."""

        def following() -> None:
            query["page_token"] = stack.rest.get(path, **query)["next_page_token"]

        return following

    return {
        f"{path}, first page": p95_ms(lambda: stack.rest.get(path)),
        f"{path}, page after page": p95_ms(walk()),
        f"{path}, one agent of 100": p95_ms(lambda: stack.rest.get(path, filter="agent:agent-7")),
        f"{path}, an agent of none": p95_ms(lambda: stack.rest.get(path, filter="agent:nobody")),
        f"{path}, page after page of none": p95_ms(walk(filter="agent:nobody")),
    }


def seed(stack: Stack) -> None:
    """One denied call, whose record is then copied."""
    agent = stack.up.agents[0]
    token = stack.token(agent.client_id, Path(agent.secret_file).read_text().strip())

    def asked() -> bool:
        try:
            stack.ask("git", token, "tools/call", {"name": "git_status", "arguments": {}})
        except Refused:  # the proxy does not know the server yet
            return False
        return True

    until(asked, "the call is answered")
    until(
        lambda: bool(stack.rest.get("/api/v1/traces", filter="type:call.denied")["items"]),
        "the call is chained",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.perf.pages")
    parser.add_argument("--rows", type=int, default=1_000_000)
    many = parser.parse_args().rows
    with (
        tempfile.TemporaryDirectory(prefix="bhv-pages-") as scratch,
        running(Path(scratch) / "s", engine="embedded") as stack,
    ):
        seed(stack)
        state = Path(stack.up.state_dir)
        passfile = state / "passfiles" / f"{embedded.SUPERUSER}.pgpass"
        host = next(state.rglob(".s.PGSQL.5432"))
        dsn = f"postgresql://{embedded.SUPERUSER}@/behavry?host={host.parent}&passfile={passfile}"
        found = []
        for since, rows in ((0, FEW), (FEW, many)):
            asyncio.run(fill(dsn, since, rows))
            found.append(pages(stack, "/api/v1/traces") | pages(stack, "/api/v1/escalations"))
    print(f"p95, ms{'':38}{FEW:>12,}{many:>14,}   ratio")
    for name, few in found[0].items():
        print(f"{name:45}{few:12.1f}{found[1][name]:14.1f}{found[1][name] / few:8.1f}")


if __name__ == "__main__":
    main()
