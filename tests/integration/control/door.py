"""Control's application without a socket: the same middleware, guards and handlers, called as a
server calls them. For tests that ask thousands of times; what a server itself does is not theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote

import orjson
import structlog
from starlette.types import ASGIApp, Message

from services.control.api.application import build
from tests.integration.control.conftest import Answered, Rest

_HTTP: Final = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
    "root_path": "", "server": ("127.0.0.1", 8701), "client": ("127.0.0.1", 50_000),
}  # fmt: skip


class Door:
    def __init__(self, rest: Rest) -> None:
        quiet = structlog.wrap_logger(
            None, processors=[], wrapper_class=structlog.make_filtering_bound_logger(50)
        )
        self._app: ASGIApp = build(replace(rest.running.control, log=quiet))

    async def ask(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        sees_neighbour: bool = False,
    ) -> Answered:
        """`target`: path and query, as they would stand in the request's line. `sees_neighbour`: as
        at the other door.
        """
        path, _, query = target.partition("?")
        sent = {"host": "127.0.0.1:8701", "content-length": str(len(body or b"")), **headers}
        scope: dict[str, Any] = {
            **_HTTP,
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), text.encode()) for name, text in sent.items()],
        }
        told: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message: Message) -> None:
            told.append(message)

        await self._app(scope, receive, send)
        answered = {name.decode(): text.decode() for name, text in told[0]["headers"]}
        content = b"".join(message.get("body", b"") for message in told)
        is_json = content and "json" in answered.get("content-type", "")
        answer = Answered(
            status=told[0]["status"],
            headers=answered,
            body=content,
            json=orjson.loads(content) if is_json else None,
        )
        if not sees_neighbour:
            answer.looked_at(f"{method} {target}")
        return answer
