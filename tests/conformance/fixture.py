"""Our own MCP server as the conformance suite wants one: everything it calls by name, both eras.

Wires the tools (fixture_tools.py, fixture_asking.py), resources, prompts and completion to the
SDK's server, with its own protections on: Host and Origin are checked, states are sealed, streams
can be resumed. Runs as a process, since the proxy's tool servers do too.

    python -m tests.conformance.fixture [--era both|modern|legacy] [--port N]
"""

import argparse
import asyncio
import json
import logging
import os
import socket
import warnings
from typing import Any, Final

import mcp_types as types
import uvicorn
from mcp.server import NotificationOptions
from mcp.server.lowlevel.server import Server
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.session import ServerSession
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from tests.conformance import fixture_eras
from tests.conformance.fixture_asking import MORE_PROMPT, prompt_in_context
from tests.conformance.fixture_tools import (
    RED_PIXEL,
    TOOLS,
    Answer,
    Context,
    embedded,
    offered,
    said,
)

NAME: Final = "conformance-fixture"
RETRY_MS: Final = 100
"""How soon a client whose stream ended may come back for the answer."""

NOW_AND_THEN: Final = "test_now_and_then"
"""The tool and the prompt of this name are listed or not, as the trigger tools leave them."""

RESOURCES: Final = (
    types.Resource(
        uri="test://static-text", name="static-text", description="A text.", mime_type="text/plain"
    ),
    types.Resource(
        uri="test://static-binary",
        name="static-binary",
        description="An image of one pixel.",
        mime_type="image/png",
    ),
    types.Resource(
        uri="test://watched-resource",
        name="watched-resource",
        description="One that can be subscribed to.",
        mime_type="text/plain",
    ),
)
TEXTS: Final = {
    "test://static-text": "This is the content of the static text resource.",
    "test://watched-resource": "Nothing has changed here.",
}
TEMPLATE: Final = types.ResourceTemplate(
    uri_template="test://template/{id}/data",
    name="template",
    description="One text for each id.",
    mime_type="application/json",
)


def _prompt(name: str, description: str, *arguments: str) -> types.Prompt:
    taken = [types.PromptArgument(name=name, description=name, required=True) for name in arguments]
    return types.Prompt(name=name, description=description, arguments=taken)


PROMPTS: Final = (
    _prompt("test_simple_prompt", "One line."),
    _prompt("test_prompt_with_arguments", "One line with two arguments.", "arg1", "arg2"),
    _prompt("test_prompt_with_embedded_resource", "A resource and a line.", "resourceUri"),
    _prompt("test_prompt_with_image", "An image and a line."),
    _prompt(MORE_PROMPT, "Needs to know its context."),
    _prompt(NOW_AND_THEN, "Is listed now and then."),
)


class Shelf:
    """What is listed at the moment, and who hears that it changed."""

    def __init__(self) -> None:
        self.hidden_tools: set[str] = set()
        self.hidden_prompts: set[str] = set()
        self.bus = InMemorySubscriptionBus()
        self.sessions: dict[str, ServerSession] = {}

    def note(self, context: Context) -> None:
        """Legacy sessions are told of changes one by one."""
        headers = getattr(context.request, "headers", {})
        if session := headers.get("mcp-session-id"):
            self.sessions[session] = context.session

    async def tools_changed(self) -> None:
        self.hidden_tools ^= {NOW_AND_THEN}
        await self.bus.publish(ToolsListChanged())
        for session in self.sessions.values():
            await session.send_tool_list_changed()

    async def prompts_changed(self) -> None:
        self.hidden_prompts ^= {NOW_AND_THEN}
        await self.bus.publish(PromptsListChanged())
        for session in self.sessions.values():
            await session.send_prompt_list_changed()


SHELF: Final = Shelf()


@offered(NOW_AND_THEN, "Is listed now and then.")
async def now_and_then(context: Context, params: types.CallToolRequestParams) -> Answer:
    return said("Listed at the moment.")


@offered("test_trigger_tool_change", "Takes a tool from the list, or puts it back.")
async def trigger_tools(context: Context, params: types.CallToolRequestParams) -> Answer:
    await SHELF.tools_changed()
    return said("The list of tools is another one.")


@offered("test_trigger_prompt_change", "Takes a prompt from the list, or puts it back.")
async def trigger_prompts(context: Context, params: types.CallToolRequestParams) -> Answer:
    await SHELF.prompts_changed()
    return said("The list of prompts is another one.")


# --- handlers ----------------------------------------------------------------------------------


async def list_tools(
    context: Context, params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    SHELF.note(context)
    return types.ListToolsResult(
        tools=[one.definition for name, one in TOOLS.items() if name not in SHELF.hidden_tools]
    )


async def call_tool(context: Context, params: types.CallToolRequestParams) -> Answer:
    SHELF.note(context)
    tool = TOOLS.get(params.name)
    if tool is None or params.name in SHELF.hidden_tools:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    return await tool.run(context, params)


async def list_resources(
    context: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourcesResult:
    return types.ListResourcesResult(resources=list(RESOURCES))


async def list_templates(
    context: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult(resource_templates=[TEMPLATE])


async def read_resource(
    context: Context, params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    uri = str(params.uri)
    before, after = "test://template/", "/data"
    contents: types.TextResourceContents | types.BlobResourceContents
    if uri in TEXTS:
        contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=TEXTS[uri])
    elif uri == "test://static-binary":
        contents = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=RED_PIXEL)
    elif uri.startswith(before) and uri.endswith(after):
        number = uri.removeprefix(before).removesuffix(after)
        told = {"id": number, "templateTest": True, "data": f"Data for ID: {number}"}
        contents = types.TextResourceContents(
            uri=uri, mime_type="application/json", text=json.dumps(told)
        )
    else:
        modern = context.protocol_version in fixture_eras.MODERN
        code = types.INVALID_PARAMS if modern else fixture_eras.RESOURCE_NOT_FOUND
        raise MCPError(code, "Resource not found", {"uri": uri})
    return types.ReadResourceResult(contents=[contents])


async def subscribe(context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


async def unsubscribe(
    context: Context, params: types.UnsubscribeRequestParams
) -> types.EmptyResult:
    return types.EmptyResult()


async def list_prompts(
    context: Context, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    SHELF.note(context)
    listed = [prompt for prompt in PROMPTS if prompt.name not in SHELF.hidden_prompts]
    return types.ListPromptsResult(prompts=listed)


async def get_prompt(
    context: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt" | "test_now_and_then":
            return _messages(types.TextContent(text="This is a simple prompt for testing."))
        case "test_prompt_with_arguments":
            told = f"arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"
            return _messages(types.TextContent(text=f"Prompt with arguments: {told}"))
        case "test_prompt_with_embedded_resource":
            text = "Embedded resource content for testing."
            return _messages(
                embedded(given.get("resourceUri", "test://none"), "text/plain", text),
                types.TextContent(text="Please process the embedded resource above."),
            )
        case "test_prompt_with_image":
            return _messages(
                types.ImageContent(data=RED_PIXEL, mime_type="image/png"),
                types.TextContent(text="Please analyze the image above."),
            )
        case name if name == MORE_PROMPT:
            return prompt_in_context(context, params)
        case name:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {name}")


def _messages(*blocks: types.ContentBlock) -> types.GetPromptResult:
    return types.GetPromptResult(
        messages=[types.PromptMessage(role="user", content=block) for block in blocks]
    )


async def complete(context: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    begun = params.argument.value
    values = [word for word in ("paris", "park", "party", "testing") if word.startswith(begun)]
    completion = types.Completion(values=values, total=len(values), has_more=False)
    return types.CompleteResult(completion=completion)


async def set_level(context: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


def names() -> tuple[str, ...]:
    """Every tool that is listed at any time."""
    return tuple(TOOLS)


# --- the server --------------------------------------------------------------------------------


class Kept(EventStore):
    """Every event of every stream, for as long as the process lives."""

    def __init__(self) -> None:
        self._events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        last = int(last_event_id) if last_event_id.isdecimal() else 0
        if not 0 < last <= len(self._events):
            return None
        stream = self._events[last - 1][0]
        for number, (of, message) in enumerate(self._events[last:], start=last + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Fixture(Server[Any]):
    """Says in the handshake too that its lists change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        changing = NotificationOptions(prompts_changed=True, tools_changed=True)
        return super().create_initialization_options(
            changing, experimental_capabilities, extensions
        )


def server() -> Fixture:
    made = Fixture(
        NAME,
        version="1.0.0",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
        on_subscriptions_listen=ListenHandler(SHELF.bus),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
        on_set_logging_level=set_level,
    )
    security = RequestStateSecurity.ephemeral()
    made.middleware.append(RequestStateBoundary(security, default_audience=NAME))
    return made


async def serve(era: str, port: int) -> None:
    app = server().streamable_http_app(event_store=Kept(), retry_interval=RETRY_MS)
    listener = socket.create_server(("127.0.0.1", port))
    bound = listener.getsockname()[1]
    ready = {"url": f"http://127.0.0.1:{bound}/mcp", "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    config = uvicorn.Config(
        fixture_eras.only(era, app),
        http="h11",  # trims header values, as HTTP asks
        log_level="error",
        timeout_graceful_shutdown=1,
        ws="none",
    )
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.conformance.fixture")
    parser.add_argument("--era", choices=("both", "modern", "legacy"), default="both")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # the older era needs what it names
    logging.disable(logging.WARNING)  # what the suite sends is meant to be refused
    asyncio.run(serve(options.era, options.port))


if __name__ == "__main__":
    main()
