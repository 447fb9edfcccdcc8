"""The tools that the conformance suite calls by name: what each answers, and tells meanwhile.

A tool is one function under its name; the names, arguments and texts are the suite's. Those that
ask the client in between are fixture_asking.py's; serving them is fixture.py's work.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

TYPE_OBJECT: Final = {"type": "object"}
STEP_S: Final = 0.05
"""Between two messages of a tool that tells how far it is, as the suite wants it."""

RED_PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
SILENCE: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAAAAA=="
"""One sample of it, as a WAV file."""

RICH_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
IN_A_HEADER: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    "required": ["region"],
}

Context = ServerRequestContext[Any, Any]
Answer = types.CallToolResult | types.InputRequiredResult
Run = Callable[[Context, types.CallToolRequestParams], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A tool as listed, and what runs."""

    definition: types.Tool
    run: Run


TOOLS: Final[dict[str, Offered]] = {}
"""In the order in which they are listed: the first one can be called without arguments."""


def offered(
    name: str, description: str, schema: Mapping[str, Any] = TYPE_OBJECT
) -> Callable[[Run], Run]:
    """Puts the function below it among the tools."""

    def put(run: Run) -> Run:
        definition = types.Tool(
            name=name, description=description, input_schema={**schema, "type": "object"}
        )
        TOOLS[name] = Offered(definition=definition, run=run)
        return run

    return put


def said(*texts: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text) for text in texts])


def lacking(name: str) -> MCPError:
    """The refusal of a request whose client did not declare what the tool needs."""
    missing: dict[str, Any] = {"requiredCapabilities": {name: {}}}
    return MCPError(
        types.MISSING_REQUIRED_CLIENT_CAPABILITY, f"Missing client capability: {name}", missing
    )


def text_of(params: types.CallToolRequestParams, name: str) -> str:
    return str((params.arguments or {}).get(name, ""))


# --- what a tool answers -----------------------------------------------------------------------


@offered("test_simple_text", "Answers one line of text.")
async def simple_text(context: Context, params: types.CallToolRequestParams) -> Answer:
    return said("This is a simple text response for testing.")


@offered("test_image_content", "Answers an image of one pixel.")
async def image(context: Context, params: types.CallToolRequestParams) -> Answer:
    return types.CallToolResult(content=[types.ImageContent(data=RED_PIXEL, mime_type="image/png")])


@offered("test_audio_content", "Answers a very short sound.")
async def audio(context: Context, params: types.CallToolRequestParams) -> Answer:
    return types.CallToolResult(content=[types.AudioContent(data=SILENCE, mime_type="audio/wav")])


def embedded(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return types.EmbeddedResource(resource=contents)


@offered("test_embedded_resource", "Answers a resource inside the result.")
async def embedded_resource(context: Context, params: types.CallToolRequestParams) -> Answer:
    text = "This is an embedded resource content."
    return types.CallToolResult(content=[embedded("test://embedded-resource", "text/plain", text)])


@offered("test_multiple_content_types", "Answers text, an image and a resource.")
async def mixed(context: Context, params: types.CallToolRequestParams) -> Answer:
    resource = embedded(
        "test://mixed-content-resource", "application/json", '{"test":"data","value":123}'
    )
    return types.CallToolResult(
        content=[
            types.TextContent(text="Multiple content types test:"),
            types.ImageContent(data=RED_PIXEL, mime_type="image/png"),
            resource,
        ]
    )


@offered("test_error_handling", "Fails, always.")
async def failing(context: Context, params: types.CallToolRequestParams) -> Answer:
    told = types.TextContent(text="This tool intentionally returns an error for testing")
    return types.CallToolResult(content=[told], is_error=True)


@offered("json_schema_2020_12_tool", "Has a schema of the larger vocabulary.", RICH_SCHEMA)
async def rich_schema(context: Context, params: types.CallToolRequestParams) -> Answer:
    return said(json.dumps(params.arguments or {}))


@offered("test_region_header", "One argument is repeated in a header.", IN_A_HEADER)
async def in_a_header(context: Context, params: types.CallToolRequestParams) -> Answer:
    return said(f"region {text_of(params, 'region')}")


# --- what a tool tells while it runs -----------------------------------------------------------


@offered("test_tool_with_logging", "Logs three lines while it runs.")
async def logging(context: Context, params: types.CallToolRequestParams) -> Answer:
    await _log(context, "Tool execution started")
    await asyncio.sleep(STEP_S)
    await _log(context, "Tool processing data")
    await asyncio.sleep(STEP_S)
    await _log(context, "Tool execution completed")
    return said("Logged three lines.")


@offered("test_logging_tool", "Logs one line, where the request asks for log lines.")
async def logging_if_asked(context: Context, params: types.CallToolRequestParams) -> Answer:
    await _log(context, "Only for those who ask")
    return said("Logged one line.")


async def _log(context: Context, line: str) -> None:
    await context.session.send_log_message(
        "info", line, logger="fixture", related_request_id=context.request_id
    )


@offered("test_tool_with_progress", "Tells three times how far it is.")
async def progress(context: Context, params: types.CallToolRequestParams) -> Answer:
    for done in (0, 50, 100):
        await context.session.report_progress(done, total=100)
        await asyncio.sleep(STEP_S)
    return said("Told three times.")


@offered("test_reconnection", "Ends its stream before it answers: the client asks again for it.")
async def reconnection(context: Context, params: types.CallToolRequestParams) -> Answer:
    await asyncio.sleep(2 * STEP_S)
    if context.close_sse_stream is not None:
        await context.close_sse_stream()
    await asyncio.sleep(2 * STEP_S)
    return said("Answered after the stream had ended.")
