"""A legacy agent on its open stream: what it is asked there, and what it says. And the questions
that tests put into a curious server's mouth.
"""

import asyncio
from typing import Any, Final

import orjson

from tests.fakes.gateway import Gateway

FORM: Final = {
    "message": "Who?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
}
SAMPLE: Final = {"messages": [], "maxTokens": 5}
LOGIN: Final = {"mode": "url", "message": "Sign in", "url": "https://login.example.com/a",
         "elicitationId": "e1"}  # fmt: skip
SECRET: Final = {
    "message": "?",
    "requestedSchema": {"type": "object", "properties": {"api_key": {"type": "string"}}},
}
EVERYTHING: dict[str, Any] = {
    "elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {"listChanged": True},
}  # fmt: skip
ALL: dict[str, Any] = {
    "elicitation_form": True, "elicitation_hosts": ["login.example.com"], "sampling": True,
    "roots": True, "extensions": ["io.modelcontextprotocol/tasks"],
}  # fmt: skip
YES: dict[str, Any] = {"action": "accept", "content": {"name": "Ada"}}


class Asked:
    """A legacy agent's call on its open stream, and what it is asked there."""

    def __init__(self, proxy: Gateway, headers: dict[str, str], **arguments: Any) -> None:
        self.proxy = proxy
        self.headers = headers
        self.pushed: asyncio.Queue[Any] = asyncio.Queue()
        params = {"name": "ask", "arguments": arguments}
        self.call = {"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": params}
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> Any:
        async with self.proxy.sending(self.call, headers=self.headers) as response:
            if response.content_type != "text/event-stream":
                return orjson.loads(await response.read())
            async for line in response.content:
                if line.startswith(b"data: "):
                    message = orjson.loads(line[6:])
                    if message.get("id") == "c" and "method" not in message:
                        return message
                    self.pushed.put_nowait(message)
        raise AssertionError("no answer")

    async def next(self) -> Any:
        async with asyncio.timeout(5):
            return await self.pushed.get()

    async def answer(self, id: Any, **changes: Any) -> int:
        body = {"jsonrpc": "2.0", "id": id, **changes.pop("body", {"result": YES})}
        status, _ = await self.proxy.post(body, **{"headers": self.headers, **changes})
        return status

    async def said(self) -> Any:
        async with asyncio.timeout(10):
            answer = await self.task
        return orjson.loads(answer["result"]["content"][0]["text"])


async def session(proxy: Gateway, capabilities: Any = EVERYTHING, **options: Any) -> dict[str, str]:
    return await proxy.open_session(capabilities, **options)


def elicit(id: Any = 1, params: Any = FORM) -> dict[str, Any]:
    return {"id": id, "method": "elicitation/create", "params": params}
