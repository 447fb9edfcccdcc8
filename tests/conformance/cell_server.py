"""The conformance fixture over every transport, with two tools more: one that waits until it is
cancelled, one that names the capabilities it was told of. Its ledger is a file, a word per line.

    python -m tests.conformance.cell_server http|sse|stdio --ledger FILE
"""

import argparse
import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Final

import mcp_types as types
import uvicorn
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.conformance.fixture import Fixture, server
from tests.conformance.fixture_tools import Answer, Context, offered, said

WAITING: Final = "cell_waits"
ENDPOINT: Final = "/messages/"


def add_tools(ledger: Path) -> None:
    def note(word: str) -> None:
        with ledger.open("a") as file:
            file.write(f"{word}\n")

    @offered(WAITING, "Waits until it is cancelled.")
    async def waits(context: Context, params: types.CallToolRequestParams) -> Answer:
        note("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            note("cancelled")
            raise
        return said(params.name, str(context.request_id))


def sse_app(made: Fixture) -> ASGIApp:
    """HTTP+SSE of 2024-11-05: a stream that says where to post."""
    transport = SseServerTransport(ENDPOINT)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == ENDPOINT:
            await transport.handle_post_message(scope, receive, send)
        elif scope["method"] == "GET":
            async with transport.connect_sse(scope, receive, send) as (incoming, outgoing):
                await made.run(incoming, outgoing, made.create_initialization_options())
        else:
            await send({"type": "http.response.start", "status": 405, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return app


async def serve(app: ASGIApp, path: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ready = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}{path}", "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    config = uvicorn.Config(
        app, http="h11", log_level="error", timeout_graceful_shutdown=1, ws="none"
    )
    await uvicorn.Server(config).serve(sockets=[listener])


async def serve_stdio(made: Fixture) -> None:
    async with stdio_server() as (incoming, outgoing):
        await made.run(incoming, outgoing, made.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.conformance.cell_server")
    parser.add_argument("transport", choices=("http", "sse", "stdio"))
    parser.add_argument("--ledger", type=Path, required=True)
    options = parser.parse_args()
    add_tools(options.ledger)
    made = server()
    match options.transport:
        case "http":
            asyncio.run(serve(made.streamable_http_app(), "/mcp"))
        case "sse":
            asyncio.run(serve(sse_app(made), "/sse"))
        case _:
            asyncio.run(serve_stdio(made))


if __name__ == "__main__":
    main()
