"""What tools' schemas want repeated in headers, learned from the lists that pass.

A client may have listed its tools elsewhere: then they are listed here, as it would.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from services.common.sse import EventParser
from services.mcp_stdio import headers, messages
from services.mcp_stdio.gateway import Gateway, Request, contents
from services.mcp_stdio.headers import Param
from services.mcp_stdio.messages import MAX_LINE, Message

MAX_TOOLS: Final = 5_000
MAX_PAGES: Final = 50


class Wanted:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._params: dict[str, tuple[Param, ...]] = {}
        self._numbers = itertools.count(1)

    def by(self, message: Message) -> tuple[Param, ...]:
        """What the called tool wants, as far as is known."""
        name = message.params.get("name")
        if message.method != "tools/call" or type(name) is not str:
            return ()
        return self._params.get(name, ())

    def note(self, listed: dict[str, Any]) -> str | None:
        """Takes the answer to `tools/list`; gives the cursor of its next page."""
        result = listed.get("result")
        if type(result) is not dict or type(result.get("tools")) is not list:
            return None
        for tool in result["tools"]:
            if type(tool) is dict and type(tool.get("name")) is str:
                if len(self._params) >= MAX_TOOLS:
                    self._params.clear()
                self._params[tool["name"]] = headers.annotated(tool.get("inputSchema"))
        cursor = result.get("nextCursor")
        return cursor if type(cursor) is str else None

    async def learn(self, call: Message) -> None:
        """Lists the tools as the client of this modern call would. Raises Away, Broken."""
        meta = {k: v for k, v in call.params["_meta"].items() if k != "progressToken"}
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            params = {"_meta": meta} if cursor is None else {"_meta": meta, "cursor": cursor}
            cursor = await self._page(params)
            if cursor is None:
                return

    async def _page(self, params: dict[str, Any]) -> str | None:
        own = f"behavry-mcp-stdio-{next(self._numbers)}"
        body = {"jsonrpc": "2.0", "id": own, "method": "tools/list", "params": params}
        asked = messages.parse(messages.encode(body))
        made = headers.modern(asked, asked.version or "", ())
        request = Request(verb="POST", headers=made, body=asked.body, harmless=True)
        async with self._gateway.exchange(request) as response:
            async for raw in contents(response, EventParser(MAX_LINE)):
                tree = messages.received(raw)
                if tree is not None and tree.get("id") == own:
                    return self.note(tree)
        return None
