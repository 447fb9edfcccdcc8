"""What the bench measures: the tool server alone, the floor before it, Behavry before it.

Decides how each is set up (32 agents, 100 policies of which 5 match the call, tools approved) and
which processes its cost is read from. Measuring is bench.py's work.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.fakes.children import child
from tests.fakes.stack import Refused, Stack, running, until
from tests.perf.load import Target

AGENTS: Final = 32
SLUG: Final = "bench"
TOOL: Final = "echo"
ROLE: Final = "bench-reader"
POLICIES: Final = Path(__file__).with_name("policies_100.json")
TOKEN_LIFE_S: Final = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    name: str
    engine: str | None
    targets: Callable[[], list[Target]]
    pids: Callable[[], dict[str, list[int]]]
    chained: Callable[[], int] | None = None


@dataclass(slots=True)
class Tokens:
    """32 agents' tokens, traded again well before they end: a long run outlives one token."""

    trade: Callable[[], list[str]]
    renew_after_s: float = TOKEN_LIFE_S / 2
    _held: list[str] = field(default_factory=list)
    _since: float = 0.0

    def __call__(self) -> list[str]:
        if not self._held or time.monotonic() - self._since > self.renew_after_s:
            self._held, self._since = self.trade(), time.monotonic()
        return self._held


def targets(url: str, tokens: list[str]) -> list[Target]:
    where = urlsplit(url)
    host, port = where.hostname or "127.0.0.1", where.port or 80
    return [Target(host=host, port=port, path=where.path, token=token) for token in tokens]


def self_made() -> tuple[dict[str, Any], Callable[[], list[str]]]:
    """A key set and tokens as control would issue them, for runs without control."""
    key = RSAKey.generate_key(2048, {"kid": "bench"})

    def trade() -> list[str]:
        now = int(time.time())
        return [
            jwt.encode(
                {"alg": "RS256", "kid": "bench"},
                {"sub": f"agent-{number}", "iat": now, "exp": now + TOKEN_LIFE_S},
                key,
            )
            for number in range(AGENTS)
        ]

    return {"keys": [key.as_dict(private=False)]}, trade


@contextmanager
def floor(upstream: str, keys: dict[str, Any], scratch: Path) -> Iterator[tuple[str, int]]:
    file = scratch / "jwks.json"
    file.write_bytes(msgspec.json.encode(keys))
    with child("tests.perf.floor", "--upstream", upstream, "--jwks", str(file)) as (process, ready):
        yield ready["url"], process.pid


@contextmanager
def behavry(
    engine: str, upstream: str, scratch: Path
) -> Iterator[tuple[Stack, Callable[[], list[str]]]]:
    """A fresh installation with one engine, ready to be called; with it, how to get its tokens."""
    with running(scratch / engine, engine=engine) as stack:
        stack.raise_limits()
        stack.rest.put(f"/api/v1/roles/{ROLE}", {"permissions": [f"{SLUG}:read"]})
        agents = [stack.add_agent(f"bench-{number}", [ROLE]) for number in range(AGENTS)]
        stack.add_http_server(SLUG, upstream)

        def trade() -> list[str]:
            return [stack.token(one["client_id"], one["client_secret"]) for one in agents]

        first = trade()[0]
        stack.approve(SLUG, first, {TOOL: "read"}, category=SLUG)
        enforce_all(stack)
        until(lambda: TOOL in stack.listed(SLUG, first), f"{TOOL} is listed")
        until(lambda: _allowed(stack, first), f"{TOOL} may be called")
        yield stack, trade


def governed(engine: str, stack: Stack, tokens: Tokens, server_pid: int) -> Subject:
    return Subject(
        name=f"behavry ({engine})",
        engine=engine,
        targets=lambda: targets(stack.mcp_url(SLUG), tokens()),
        pids=lambda: _pids(stack, server_pid),
        chained=stack.chained,
    )


def _pids(stack: Stack, server_pid: int) -> dict[str, list[int]]:
    named = {"engine" if name == "opa" else name: pids for name, pids in stack.up.pids.items()}
    return {**named, "supervisor": [stack.process.pid], "tool_server": [server_pid]}


def enforce_all(stack: Stack) -> None:
    tenant = stack.tenant().replace("-", "")
    for policy in msgspec.json.decode(POLICIES.read_bytes())["policies"]:
        package = f"package behavry.tenant.t{tenant}.{policy['key']}"
        body = {
            "key": policy["key"],
            "source": f"{package}\n\n{policy['source']}",
            "tests": [
                {"name": "example", "input": policy["example"], "expect": policy["result"]},
            ],
        }
        try:
            saved = stack.rest.post("/api/v1/policies", body)
        except Refused as refused:
            refused.add_note(f"policy {policy['key']}")
            raise
        key = {"idempotency-key": str(saved["id"])}
        stack.rest.post(f"/api/v1/policies/{saved['id']}:enforce", headers=key)


def _allowed(stack: Stack, token: str) -> bool:
    arguments = {"call": "first", "kind": "bench", "text": "x"}
    try:
        answer = stack.ask(SLUG, token, "tools/call", {"name": TOOL, "arguments": arguments})
    except Refused:
        return False
    return answer.get("result", {}).get("isError") is False
