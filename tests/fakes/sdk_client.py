"""The SDK's client as an agent of a test's proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.client import Client, ConnectMode
from mcp.client.streamable_http import streamable_http_client

from tests.fakes.gateway import Gateway


@asynccontextmanager
async def connected(
    proxy: Gateway, server: str, mode: ConnectMode, **options: Any
) -> AsyncIterator[Client]:
    """`auto` is the modern era, where the server is."""
    headers = {"authorization": f"Bearer {proxy.issuer.token()}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(
            streamable_http_client(proxy.mcp(server), http_client=http),
            mode=mode,
            read_timeout_seconds=20,
            **options,
        ) as client,
    ):
        yield client
