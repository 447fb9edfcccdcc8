"""What was done under fire, compared by three witnesses that share nothing: the tool server's own
ledger, what the agents were told, and the chain. Decides what would be a loss or a doubling.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson

from services.common.ids import TenantId
from services.common.outbox.digests import Digester
from tests.fakes.children import child
from tests.fakes.mcp_echo import read_ledger
from tests.fakes.stack import Stack, until
from tests.journeys.agents import register
from tests.journeys.traffic import Told, answered, flowing

AGENTS = 4


@contextmanager
def under_traffic(stack: Stack, ledger: Path) -> Iterator[list[Told]]:
    """Four agents calling an approved tool of a server that keeps a ledger."""
    with child("tests.fakes.mcp_echo", "--ledger", str(ledger)) as (_, server):
        slug = f"fire-{uuid4().hex[:8]}"
        stack.raise_limits()
        stack.add_http_server(slug, server["url"])
        agents = [register(stack, f"{slug}-{number}", f"{slug}:read") for number in range(AGENTS)]
        stack.approve(slug, agents[0].token, {"echo": "read"}, category=slug)
        for agent in agents:
            until(lambda: ["echo"] == stack.listed(slug, agent.token), "echo is listed")  # noqa: B023  # called at once
        with flowing(stack, slug, "echo", agents) as told:
            until(lambda: answered(told) > AGENTS, "calls go through")
            yield told


def compare_all(stack: Stack, told: list[Told], ledger: Path) -> dict[str, int]:
    """What was compared, counted."""
    ran = read_ledger(ledger)
    assert {} == {call: times for call, times in Counter(ran).items() if times > 1}
    for one in told:
        compare(stack, one, [call for call in ran if call in one.arguments])
    verdict = verified(stack)
    assert "ok" == verdict["verdict"], verdict
    return {
        "sent": sum(len(one.arguments) for one in told),
        "ran": len(ran),
        "told_allowed": sum(len(one.allowed) for one in told),
        "told_denied": sum(len(one.denied) for one in told),
        "told_nothing": sum(len(one.nothing) for one in told),
    }


def compare(stack: Stack, told: Told, ran: list[str]) -> None:
    """1. settled  2. ran is a subset of the intents  3. each intent ended once
    4. told allowed = ran and chained once  5. told denied = chained once
    """
    records, intents = settled(stack, told, ran)  # 1
    ended = Counter(
        record["decision"]
        for kind in ("call.outcome", "call.outcome_unknown")
        for record in records[kind]
    )
    refused = Counter(record["id"] for record in records["call.denied"])

    assert set() == set(ran) - intents.keys()  # 2
    assert {ended[one["id"]] for one in records["call.intent"]} <= {1}  # 3
    assert set() == set(told.allowed) - set(ran)  # 4
    assert {len(intents[call]) for call in told.allowed} <= {1}
    assert set() <= {refused[decision] for decision in told.denied.values()} <= {1}  # 5


def settled(
    stack: Stack, told: Told, ran: list[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    """The agent's whole chain, and its intents by call, once nothing is on its way any more: every
    call that ran and every refusal is in it, and every intent has its end. What is not in it after
    a minute is lost: that is for the comparison to say.
    """
    digester = Digester.load(Path(stack.up.state_dir) / "keys" / "digest.keys")
    tenant = TenantId(stack.tenant())
    call_of = {
        digester.make(tenant, "arguments", orjson.dumps(sent, option=orjson.OPT_SORT_KEYS)): call
        for call, sent in told.arguments.items()
    }
    found: dict[str, list[dict[str, Any]]] = {}
    intents: defaultdict[str, list[str]] = defaultdict(list)

    def arrived() -> bool:
        found.clear()
        found.update(by_type(stack.chain_of(told.agent.id)))
        intents.clear()
        for record in found["call.intent"]:
            intents[call_of[record["arguments"]["digest"]]].append(record["id"])
        ends = len(found["call.outcome"]) + len(found["call.outcome_unknown"])
        refusals = {record["id"] for record in found["call.denied"]}
        return (
            ends >= len(found["call.intent"])
            and set(ran) <= intents.keys()
            and set(told.denied.values()) <= refusals
        )

    with contextlib.suppress(TimeoutError):
        until(arrived, "every intent has its end", 60, look_again_s=1)
    return found, intents


def by_type(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds = ("call.intent", "call.outcome", "call.outcome_unknown", "call.denied")
    return {kind: [one for one in records if one["type"] == kind] for kind in kinds}


def verified(stack: Stack) -> dict[str, Any]:
    job = stack.rest.post("/api/v1/audit/verify")

    def done() -> bool:
        job.update(stack.rest.get(f"/api/v1/jobs/{job['id']}"))
        return job["state"] not in {"queued", "running"}

    # It reads all that there is: after an hour under traffic that is a while.
    until(done, "the verification ended", 600, look_again_s=0.2)
    result = job["result"]
    assert isinstance(result, dict)
    return result
