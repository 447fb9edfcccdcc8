"""The command that the suite's client mode runs: its server, met by way of the gateway (M-UP).

Registers the address that the suite gives as a tool server of the running installation, classifies
what is listed, and drives the gateway by the SDK's client as the scenario wants it. What the
gateway says to the suite's server is what the suite judges; deciding that is its work.

    MCP_CONFORMANCE_SCENARIO=... python -m tests.conformance.upstream FILE URL

FILE is the installation (`Place`), written by the gate.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast

import httpx2
import mcp_types as types
import msgspec
from mcp import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client

from tests.conformance.installed import add_server
from tests.fakes.stack import Refused, Stack, Up, until

LEGACY: Final = "2025-11-25"
ANSWER_TIMEOUT_S: Final = 25
SEEN_TIMEOUT_S: Final = 15
NO_TOOLS: Final = ("initialize", "request-metadata")
"""Scenarios whose server lists none."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway is, and the token of an agent that may do everything everywhere."""

    up: Up
    token: str


Drive = Callable[[Client], Awaitable[None]]
DRIVES: Final[dict[str, Drive]] = {}


def scenario(name: str) -> Callable[[Drive], Drive]:
    def put(drive: Drive) -> Drive:
        DRIVES[name] = drive
        return drive

    return put


@scenario("initialize")
@scenario("request-metadata")
@scenario("json-schema-ref-no-deref")
async def look(client: Client) -> None:
    await client.list_tools()


@scenario("tools_call")
async def add(client: Client) -> None:
    await client.list_tools()
    await client.call_tool("add_numbers", {"a": 5, "b": 3})


@scenario("sse-retry")
async def resumed(client: Client) -> None:
    await client.call_tool("test_reconnection", {})


@scenario("elicitation-sep1034-client-defaults")
async def defaults(client: Client) -> None:
    await client.call_tool("test_client_elicitation_defaults", {})


@scenario("sep-2322-client-request-state")
async def rounds(client: Client) -> None:
    async with asyncio.TaskGroup() as both:
        both.create_task(client.call_tool("test_mrtr_echo_state", {}))
        both.create_task(client.call_tool("test_mrtr_unrelated", {}))
    for name in ("test_mrtr_no_state", "test_mrtr_no_result_type"):
        await client.call_tool(name, {})


@scenario("http-standard-headers")
async def every_method(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        await client.call_tool(tool.name, {})
    for resource in (await client.list_resources()).resources:
        await client.read_resource(str(resource.uri))
    for prompt in (await client.list_prompts()).prompts:
        await client.get_prompt(prompt.name)


@scenario("http-custom-headers")
async def as_told(client: Client) -> None:
    await client.list_tools()
    for call in json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]:
        await client.call_tool(call["name"], call["arguments"])


@scenario("http-invalid-tool-headers")
async def all_listed(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        await client.call_tool(tool.name, {"region": "us-west1"})


@scenario("json-schema-2020-12-preservation")
async def echoed(client: Client) -> None:
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    schema = listed["json_schema_2020_12_tool"].input_schema
    await client.call_tool("json_schema_echo", {"schema": schema})


# --- the agent's side --------------------------------------------------------------------------


async def filled_in(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    """Accepts, with the defaults of the form; a box without one is ticked."""
    assert isinstance(params, types.ElicitRequestFormParams)
    fields = params.requested_schema.get("properties", {})
    return types.ElicitResult(
        action="accept", content={name: one.get("default", True) for name, one in fields.items()}
    )


async def sampled(
    context: Any, params: types.CreateMessageRequestParams
) -> types.CreateMessageResult:
    text = types.TextContent(text="A word.")
    return types.CreateMessageResult(role="assistant", content=text, model="none")


async def rooted(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[])


def register(place: Place, slug: str, url: str) -> str:
    """The suite's server behind the gateway, with what it lists classified; its address there."""
    stack = Stack(place.up, process=cast("Any", None))
    add_server(stack, slug, url, "auto")
    until(lambda: _asked(stack, slug, place.token), f"{slug} answers", SEEN_TIMEOUT_S)
    if slug.startswith(NO_TOOLS):
        return stack.mcp_url(slug)
    until(lambda: bool(stack.tool_states(slug)), f"the tools of {slug} are known", SEEN_TIMEOUT_S)
    known = dict.fromkeys(stack.tool_states(slug), "read")
    stack.approve(slug, place.token, known, category=slug)
    until(
        lambda: known.keys() <= set(stack.listed(slug, place.token)),
        f"the tools of {slug} are listed",
        SEEN_TIMEOUT_S,
    )
    return stack.mcp_url(slug)


def _asked(stack: Stack, slug: str, token: str) -> bool:
    """The gateway knows the server by now, and has asked it for its tools."""
    try:
        return "result" in stack.ask(slug, token, "tools/list", {})
    except Refused as refused:
        if refused.status in {404, 503}:
            return False
        raise


async def drive(place: Place, url: str, name: str, mode: ConnectMode) -> None:
    headers = {"authorization": f"Bearer {place.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=ANSWER_TIMEOUT_S) as http,
        Client(
            streamable_http_client(url, http_client=http),
            mode=mode,
            elicitation_callback=filled_in,
            sampling_callback=sampled,
            list_roots_callback=rooted,
        ) as client,
    ):
        await DRIVES[name](client)


def main() -> None:
    file, url = sys.argv[1:]
    name = os.environ["MCP_CONFORMANCE_SCENARIO"]
    revision = os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"]
    place = msgspec.json.decode(Path(file).read_bytes(), type=Place)
    slug = f"{name.replace('_', '-')}-{revision[:4]}"[-40:]
    mode: ConnectMode = "legacy" if revision == LEGACY else revision
    asyncio.run(drive(place, register(place, slug, url), name, mode))


if __name__ == "__main__":
    main()
