"""Agents that keep calling while things break, and remember what they were told.

Decides what counts as acknowledged: an answer that says the tool ran, or a refusal that names its
decision. Everything else (no answer, a closed connection) promises the agent nothing.
"""

import http.client
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes.stack import Stack
from tests.journeys.agents import META, Agent

ANSWER_TIMEOUT_S = 20


@dataclass(slots=True)
class Told:
    """What one agent sent and what it was answered, by the id that each call carries."""

    agent: Agent
    arguments: dict[str, dict[str, str]] = field(default_factory=dict)
    allowed: list[str] = field(default_factory=list)
    denied: dict[str, str] = field(default_factory=dict)
    """Call -> decision id."""
    nothing: list[str] = field(default_factory=list)
    refusals: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """When each refusal came, and what it said of itself."""

    def reasons(self, since: float = 0.0) -> set[str]:
        return {said["reason"] for at, said in self.refusals if at >= since}


@contextmanager
def flowing(
    stack: Stack, slug: str, tool: str, agents: list[Agent], *, pause_s: float = 0
) -> Iterator[list[Told]]:
    """One thread per agent, one call after the other, until the block ends. `pause_s` between them
    leaves processors to whatever else a test does.
    """
    told = [Told(agent) for agent in agents]
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=_keep_calling, args=(stack, slug, tool, one, stop), kwargs={"pause_s": pause_s}
        )
        for one in told
    ]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def answered(told: list[Told]) -> int:
    return sum(len(one.allowed) for one in told)


def _keep_calling(
    stack: Stack, slug: str, tool: str, told: Told, stop: threading.Event, *, pause_s: float
) -> None:
    where = urlsplit(stack.mcp_url(slug))
    assert where.hostname is not None
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=ANSWER_TIMEOUT_S)
    for number in itertools.count():
        if stop.wait(pause_s) if pause_s else stop.is_set():
            break
        call = f"{slug[-4:]}-{told.agent.id[-6:]}-{number}"
        told.arguments[call] = {"call": call, "text": "under fire"}
        try:
            connection.request("POST", where.path, *_request(tool, told, call))
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            told.nothing.append(call)
            connection.close()
            stop.wait(0.05)  # what is down is down for a while
            continue
        _remember(told, call, response.status, body)
    connection.close()


def _request(tool: str, told: Told, call: str) -> tuple[bytes, dict[str, str]]:
    meta = {wire.VERSION_META: wire.MODERN, wire.CLIENT_META: {"name": "t", "version": "1"}}
    params = {
        "name": tool,
        "arguments": told.arguments[call],
        "_meta": {**meta, wire.CAPABILITIES_META: {}},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {
        "authorization": f"Bearer {told.agent.token}",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": wire.MODERN,
        "mcp-method": "tools/call",
        "mcp-name": tool,
    }
    return msgspec.json.encode(body), headers


def _remember(told: Told, call: str, status: int, body: bytes) -> None:
    answer: Any = msgspec.json.decode(body) if status == 200 and body else {}
    result = answer.get("result", {})
    said = result.get("_meta", {}).get(META)
    if said is not None:
        told.denied[call] = said["decision_id"]
        told.refusals.append((time.monotonic(), said))
    elif result.get("isError") is False:
        told.allowed.append(call)
    else:
        told.nothing.append(call)
