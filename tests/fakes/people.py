"""A person beside an agent: what stock clients show it, and what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from mcp import Client
from mcp.client.extension import ClientExtension
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitRequestURLParams, ElicitResult

from tests.fakes.gateway import Gateway

URLS: dict[str, Any] = {"elicitation": {"url": {}}}
TASKS: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


@dataclass
class Person:
    """Is shown URLs; `meanwhile` is what an approver does in the time."""

    action: Literal["accept", "decline", "cancel"] = "accept"
    meanwhile: Callable[[str], None] = lambda _: None
    shown: list[str] = field(default_factory=list)

    async def elicited(self, context: Any, params: Any) -> ElicitResult:  # protocol
        assert isinstance(params, ElicitRequestURLParams)
        self.shown.append(params.url)
        self.meanwhile(params.url.rpartition("/")[2])
        return ElicitResult(action=self.action)


@asynccontextmanager
async def client(
    proxy: Gateway, mode: str, person: Person | None = None, *extensions: ClientExtension
) -> AsyncIterator[Client]:
    """A stock client; without a person it declares no elicitation."""
    headers = {"authorization": f"Bearer {proxy.issuer.token()}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(
            streamable_http_client(proxy.mcp("notes"), http_client=http),
            mode=mode,
            elicitation_callback=person.elicited if person else None,
            extensions=extensions,
        ) as made,
    ):
        yield made
