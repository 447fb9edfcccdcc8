"""A server that speaks one era alone: the other one's requests meet what a real such server says.

Both refusals come before the server looks: a server of the older era knows no header of the newer
one and misses a session, a server of the newer era names the versions that it has.
"""

import json
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MODERN: Final = frozenset({"2026-07-28"})
RESOURCE_NOT_FOUND: Final = -32002
"""What the older era calls it."""

INVALID_REQUEST: Final = -32600
UNSUPPORTED_VERSION: Final = -32022


def only(era: str, app: ASGIApp) -> ASGIApp:
    if era == "both":
        return app

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
        if (version in MODERN) == (era == "modern"):
            await app(scope, receive, send)
        elif era == "legacy":
            await _refused(send, None, INVALID_REQUEST, "Bad Request: Missing session ID")
        else:
            body = json.loads(await _body(receive) or b"{}")
            data = {"supported": sorted(MODERN), "requested": version or "2025-11-25"}
            await _refused(
                send, body.get("id"), UNSUPPORTED_VERSION, "Unsupported protocol version", data
            )

    return served


async def _body(receive: Receive) -> bytes:
    whole = b""
    while True:
        message = await receive()
        whole += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return whole


async def _refused(
    send: Send, id: int | str | None, code: int, message: str, data: object = None
) -> None:
    error = {"code": code, "message": message, **({"data": data} if data else {})}
    body = json.dumps({"jsonrpc": "2.0", "id": id, "error": error}).encode()
    headers = [(b"content-type", b"application/json")]
    start: Message = {"type": "http.response.start", "status": 400, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
