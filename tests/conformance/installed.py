"""A running installation with the conformance suite's servers behind it, everything permitted.

Starts what the gate runs against: the fixture in each era, the shim, and all five services as
`behavry up` starts them. For each leg a server, an agent whose one role covers it, every tool
classified, every grant given. Decides nothing about results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.conformance import fixture
from tests.conformance.shim import GOVERNED, Noted, Told
from tests.fakes.children import ROOT, child
from tests.fakes.stack import Stack, running, until
from tests.journeys.agents import Agent, register

BASELINES: Final = ROOT / "tests" / "conformance" / "expected"
GRANTS: Final = {"elicitation_form": True, "sampling": True, "roots": True}
DECIDED: Final = frozenset({"call.intent", "call.denied"})
REJECTED: Final = "call.rejected"
SEEN_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """Requirements of one revision, run against a server that speaks these eras."""

    revision: str
    era: str
    registered: str = "auto"
    """Which era the gateway is told to speak with it."""

    @property
    def slug(self) -> str:
        return f"{self.era}-{self.revision[:4]}"

    def records(self, sent: Mapping[str, int]) -> int:
        """How many records these requests must leave: one each. Where a question of a newer server
        was put to an older agent, its answer is one, and the call that goes on with it another.
        """
        goes_on = self.revision == "2025-11-25" and self.era == "modern"
        return sum(sent.values()) + (sent.get("answer", 0) if goes_on else 0)

    @property
    def baseline(self) -> Path:
        """What is known to fail there, and nothing that does not."""
        return BASELINES / f"{self.slug}.yml"


SAME_ERA: Final = (
    Leg(revision="2025-11-25", era="both", registered="legacy"),
    Leg(revision="2026-07-28", era="both"),
)
CROSS_ERA: Final = (
    Leg(revision="2025-11-25", era="modern"),
    Leg(revision="2026-07-28", era="legacy"),
)


class Shim:
    """The door with the credential, as a process."""

    def __init__(self, address: str, told: Path, noted: Path) -> None:
        self.address = address
        self._told = told
        self._noted = noted

    def tell(self, target: str, tokens: Mapping[str, str]) -> None:
        told = Told(target=target.rstrip("/"), tokens=dict(tokens))
        self._told.write_bytes(msgspec.json.encode(told))

    def url(self, slug: str) -> str:
        return f"http://{self.address}/mcp/v1/{slug}"

    def noted(self, slug: str) -> Counter[str]:
        """How many governed requests of each kind went to this server."""
        lines = self._noted.read_bytes().splitlines()
        all_of_them = (msgspec.json.decode(line, type=Noted) for line in lines)
        return Counter(one.kind for one in all_of_them if one.server == slug)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the chain says of one leg's agent."""

    decided: Counter[str]
    """By type and method: the records that a request was decided or refused."""

    unended: int
    """How many allowed calls have not exactly one outcome."""

    @property
    def total(self) -> int:
        return sum(self.decided.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    stack: Stack
    shim: Shim
    agents: Mapping[str, Agent]

    def recorded(self, slug: str) -> Recorded:
        decided: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        intents: set[str] = set()
        for record in self.stack.chain_of(self.agents[slug].id):
            kind, method = record["type"], record.get("method")
            if kind in DECIDED:
                decided[f"{kind} {method}"] += 1
            elif kind == REJECTED and (method in GOVERNED or not method) and not early(record):
                decided[f"{kind} {method} {record['reason']}"] += 1
            if kind == "call.intent":
                intents.add(record["decision"])
            elif kind == "call.outcome":
                outcomes[record.get("decision", "")] += 1  # some answers need no decision
        return Recorded(decided=decided, unended=sum(outcomes[one] != 1 for one in intents))


def early(record: Mapping[str, Any]) -> bool:
    """A request for a server that the gateway did not know yet, made while all this was set up."""
    return bool(record["reason"] == "unknown_server")


@contextmanager
def serving(era: str) -> Iterator[str]:
    """The fixture as a process; its address."""
    with child("tests.conformance.fixture", "--era", era) as (_, ready):
        yield str(ready["url"])


@contextmanager
def installed(scratch: Path, legs: tuple[Leg, ...]) -> Iterator[Installed]:
    told, noted = scratch / "told.json", scratch / "noted.jsonl"
    noted.touch()
    with ExitStack() as stack:
        arguments = ("--told", str(told), "--noted", str(noted))
        _, ready = stack.enter_context(child("tests.conformance.shim", *arguments))
        address = str(ready["address"])
        upstreams = {leg.slug: stack.enter_context(serving(leg.era)) for leg in legs}
        environment = {
            "BEHAVRY_PROXY_ALLOWED_HOSTS": address,
            "BEHAVRY_PROXY_CORS_ORIGINS": f"http://{address}",
            "BEHAVRY_HOLD_SECONDS": "5",
        }
        up = stack.enter_context(running(scratch / "state", env=environment))
        up.raise_limits()
        agents = {leg.slug: offer(up, leg, upstreams[leg.slug]) for leg in legs}
        shim = Shim(address, told, noted)
        shim.tell(up.up.proxy_url, {slug: agent.token for slug, agent in agents.items()})
        for slug, agent in agents.items():
            approve(up, slug, agent, dict.fromkeys(fixture.names(), "read"))
        yield Installed(stack=up, shim=shim, agents=agents)


def offer(stack: Stack, leg: Leg, url: str) -> Agent:
    """The server with every grant, and an agent that may do everything on it."""
    add_server(stack, leg.slug, url, leg.registered)
    return register(stack, leg.slug, f"{leg.slug}:*")


def add_server(stack: Stack, slug: str, url: str, era: str) -> None:
    server: dict[str, Any] = {
        "slug": slug,
        "domain": slug,
        "trust": "trusted",
        "transport": "http",
        "urls": [url],
        "era": era,
        "credential": {"kind": "none"},
        "grants": GRANTS,
    }
    stack.rest.post("/api/v1/servers", server)


def approve(stack: Stack, slug: str, agent: Agent, actions: Mapping[str, str]) -> None:
    """Classified by the admin, and listed for the agent."""
    stack.approve(slug, agent.token, actions, category=slug)
    until(
        lambda: actions.keys() <= set(stack.listed(slug, agent.token)),
        f"the tools of {slug} are listed",
        SEEN_TIMEOUT_S,
    )
