"""What an MCP tool server says, as plain values: both eras, no I/O.

Decides the shape of every answer the fakes give (versions, `_meta` keys, cache hints). What a tool
returns, and how badly a server behaves, is the business of mcp_echo.py and tool_server.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")

SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"
CLIENT_META: Final = "io.modelcontextprotocol/clientInfo"
CAPABILITIES_META: Final = "io.modelcontextprotocol/clientCapabilities"
SERVER_META: Final = "io.modelcontextprotocol/serverInfo"

METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
UNSUPPORTED_VERSION: Final = -32022


def is_modern(message: Mapping[str, Any]) -> bool:
    """The body alone tells the era: a modern request names its version in `_meta`."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and meta.get(VERSION_META) == MODERN


def tool(
    name: str, description: str, properties: Mapping[str, Any], *, required: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "inputSchema": {
            "type": "object",
            "properties": dict(properties),
            "required": list(required),
        },
    }


def result(message: Mapping[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    if is_modern(message):
        body = {"resultType": "complete", **body}
    return {"jsonrpc": "2.0", "id": message.get("id"), "result": body}


def error(message: Mapping[str, Any], code: int, text: str, data: Any = None) -> dict[str, Any]:
    body: dict[str, Any] = {"code": code, "message": text}
    if data is not None:
        body["data"] = data
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": body}


def content(text: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": is_error}


def server_info(name: str, version: str = "1.0") -> dict[str, Any]:
    return {"name": name, "version": version}


def discovered(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    return result(
        message,
        {
            "supportedVersions": [MODERN],
            "capabilities": {"tools": {"listChanged": True}},
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {SERVER_META: server_info(name)},
        },
    )


def initialized(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    asked = message.get("params", {}).get("protocolVersion")
    return result(
        message,
        {
            "protocolVersion": asked if asked in LEGACY else LEGACY[0],
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": server_info(name),
        },
    )


def listed(
    message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], *, ttl_ms: int = 0
) -> dict[str, Any]:
    body: dict[str, Any] = {"tools": [dict(one) for one in tools]}
    if is_modern(message):
        body |= {"ttlMs": ttl_ms, "cacheScope": "private"}
    return result(message, body)
