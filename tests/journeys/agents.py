"""An agent of the journeys: registered through REST, speaking through the stock MCP client.

Decides nothing about what an answer should be.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import httpx2
from mcp import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client

from tests.fakes.neighbour import Answers
from tests.fakes.stack import Stack, until

MODERN: ConnectMode = "auto"
LEGACY: ConnectMode = "legacy"
META = "com.behavry/decision"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    id: str
    client_id: str
    secret: str
    token: str


def register(stack: Stack, name: str, *permissions: str) -> Agent:
    """A new agent whose one role has exactly these permissions, and its first token."""
    stack.rest.put(f"/api/v1/roles/{name}", {"permissions": list(permissions)})
    made = stack.add_agent(name, [name])
    return Agent(
        id=made["id"],
        client_id=made["client_id"],
        secret=made["client_secret"],
        token=stack.token(made["client_id"], made["client_secret"]),
    )


def key(agent: Agent) -> str:
    return f"bhv_ak_{agent.client_id}.{agent.secret}"


def developer(stack: Stack) -> Agent:
    """Sees two tools of the demo's git server, one of which a policy refuses."""
    agent = register(stack, f"developer-{uuid4().hex[:8]}", "git:read", "git:write")
    actions = {"git_status": "read", "git_reset": "write"}
    stack.approve("git", agent.token, actions, category="git")
    until(lambda: set(actions) <= set(stack.listed("git", agent.token)), "the tools are listed")
    return agent


@asynccontextmanager
async def session(
    stack: Stack, agent: Agent, slug: str, mode: ConnectMode
) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {agent.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(stack.mcp_url(slug), http_client=http), mode=mode) as client,
    ):
        yield cast("Client", Answers(client))


def decision(answer: Any) -> dict[str, Any]:
    """What a refusal says about itself beside its text."""
    found = (answer.meta or {}).get(META)
    assert isinstance(found, dict), answer
    return found


def text(answer: Any) -> str:
    return "".join(part.text for part in answer.content if part.type == "text")
