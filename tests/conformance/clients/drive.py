"""One agent of somebody else's making: lists tools, calls some, prints what it got as JSON.

Runs in a client's own environment (.tools/clients), which holds none of our packages; its modules
are loaded by name, since other versions of them are what this tree is checked with. What `behavry
connect` printed for a library comes on stdin and is run as it is.

    python drive.py sdk|openai-agents|langchain URL '[["tool", {"argument": 1}], ...]'
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

Calls = Sequence[tuple[str, dict[str, Any]]]


async def sdk(url: str, _: str, calls: Calls) -> dict[str, Any]:
    """The Python SDK before 2.0."""
    transport = import_module("mcp.client.streamable_http").streamablehttp_client
    session_class = import_module("mcp").ClientSession
    headers = {"Authorization": f"Bearer {os.environ['BEHAVRY_AGENT_KEY']}"}
    async with (
        transport(url, headers=headers) as (read, write, _),
        session_class(read, write) as session,
    ):
        await session.initialize()
        listed = (await session.list_tools()).tools
        answers = [_answer(await session.call_tool(name, given)) for name, given in calls]
    return {"listed": [tool.name for tool in listed], "answers": answers}


async def openai_agents(_: str, snippet: str, calls: Calls) -> dict[str, Any]:
    async with _made(snippet)["server"] as server:
        listed = await server.list_tools()
        answers = [_answer(await server.call_tool(name, given)) for name, given in calls]
    return {"listed": [tool.name for tool in listed], "answers": answers}


async def langchain(_: str, snippet: str, calls: Calls) -> dict[str, Any]:
    tools = {tool.name: tool for tool in await _made(snippet)["client"].get_tools()}
    answers = []
    for name, given in calls:
        call = {"name": name, "args": given, "id": name, "type": "tool_call"}
        message = await tools[name].ainvoke(call)
        answers.append({"is_error": message.status == "error", "text": message.text})
    return {"listed": list(tools), "answers": answers}


def _made(snippet: str) -> dict[str, Any]:
    """What a program's lines define."""
    names: dict[str, Any] = {}
    exec(snippet, names)
    return names


def _answer(result: Any) -> dict[str, Any]:
    """1.x and 2.x spell it differently."""
    failed = result.isError if hasattr(result, "isError") else result.is_error
    return {"is_error": bool(failed), "text": "".join(part.text for part in result.content)}


CLIENTS = {"sdk": sdk, "openai-agents": openai_agents, "langchain": langchain}


def main() -> None:
    kind, url, calls = sys.argv[1:]
    found = asyncio.run(CLIENTS[kind](url, sys.stdin.read(), json.loads(calls)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
