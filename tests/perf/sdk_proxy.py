"""A proxy made of the SDK's own server and client, to measure against.

The low-level server offers what its client finds at the tool server, and hands each call on, as the
SDK's documentation shows both halves. It is as quick as the SDK lets it be: one client for all
callers, JSON answers, the loop and the parser that our proxy has. No credential, no policy, no
record, no look into the payload.

Frozen: sdk_proxy.sha256 holds this file's digest, the bench refuses another one, or another version
of the SDK.

    python -m tests.perf.sdk_proxy --upstream http://127.0.0.1:N/mcp [--port N]
"""

import argparse
import asyncio
import os
import socket
from typing import Any

import mcp_types as types
import orjson
import uvicorn
import uvloop
from mcp import Client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server


def proxy(tool_server: Client) -> Server[Any]:
    async def list_tools(
        _: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return await tool_server.list_tools(cursor=params.cursor if params else None)

    async def call_tool(
        _: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        return await tool_server.call_tool(params.name, params.arguments)

    return Server("proxy", on_list_tools=list_tools, on_call_tool=call_tool)


async def serve(upstream: str, listener: socket.socket) -> None:
    async with Client(upstream) as tool_server:
        app = proxy(tool_server).streamable_http_app(json_response=True)
        ready = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", "pid": os.getpid()}
        print(orjson.dumps(ready).decode(), flush=True)
        config = uvicorn.Config(
            app, loop="uvloop", http="httptools", access_log=False, log_level="warning"
        )
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.perf.sdk_proxy")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", options.port))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.upstream, listener))


if __name__ == "__main__":
    main()
