"""A tool server that asks before it answers: what, its caller writes into the arguments.

One tool, `ask`, in both eras, over Streamable HTTP in the test's own loop. A legacy call names
`asks`, requests that go out on its answer stream; a modern one names `rounds`, each the members of
an `input_required` result, or `task`, what the task that it becomes says to each poll. The
result's text tells what came back. It keeps everything that it was sent; what should have been sent
is the test's work.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import orjson
from aiohttp import web

from tests.fakes import mcp_wire as wire

NAME: Final = "curious"
ANY: Final = {"type": "array"}
TOOLS: Final = (
    wire.tool("ask", "Asks.", {"asks": ANY, "rounds": ANY, "task": ANY}),
    {**wire.tool("long", "Is a task.", {}), "execution": {"taskSupport": "required"}},
)


class Curious:
    """Its memory. `eras` may be changed while it runs."""

    def __init__(self) -> None:
        self.url = ""
        self.eras: tuple[str, ...] = ("modern", "legacy")
        self.tools: tuple[dict[str, Any], ...] = TOOLS
        #: Names; each is a page of its own.
        self.resources: tuple[str, ...] = ()
        #: What agents declared, as this server was told at `initialize`.
        self.told: list[Any] = []
        #: Messages in the order in which they came.
        self.seen: list[dict[str, Any]] = []
        #: Answers to its requests, by id.
        self.answers: dict[Any, Any] = {}
        #: By task: what its next polls are told, the last one for good.
        self.tasks: dict[str, list[dict[str, Any]]] = {}
        #: Of sessions, beside their calls.
        self.streams: list[asyncio.Queue[dict[str, Any]]] = []
        #: Listening requests of the modern era, and what they are told.
        self.listens: list[tuple[dict[str, Any], asyncio.Queue[dict[str, Any]]]] = []
        self._waiting: dict[Any, asyncio.Future[None]] = {}

    def forget(self) -> None:
        self.eras = ("modern", "legacy")
        for kept in (self.told, self.seen, self.answers, self.tasks, self._waiting):
            kept.clear()

    def calls(self) -> list[dict[str, Any]]:
        """Params of the calls that ran."""
        return [one["params"] for one in self.seen if one.get("method") == "tools/call"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return await self._listen(request)
        if request.method != "POST":
            return web.Response(status=405)
        message = orjson.loads(await request.read())
        self.seen.append(message)
        if "method" not in message:
            self._answered(message)
            return web.Response(status=202)
        if message["method"] == "tools/call" and not wire.is_modern(message):
            return await self._stream(request, message)
        if message["method"] == "subscriptions/listen" and "modern" in self.eras:
            return await self._subscribed(request, message)
        reply = self._reply(message)
        if reply is None:
            return web.Response(status=202)
        opened = {"mcp-session-id": uuid4().hex} if message["method"] == "initialize" else {}
        return web.Response(
            body=orjson.dumps(reply), content_type="application/json", headers=opened
        )

    def say(self, message: dict[str, Any]) -> None:
        """On every stream that is kept open beside calls."""
        for stream in self.streams:
            stream.put_nowait({"jsonrpc": "2.0", **message})

    def watching(self) -> list[str]:
        """Tasks that somebody listens for."""
        named = [one["params"]["notifications"].get("taskIds", []) for one, _ in self.listens]
        return [task_id for task_ids in named for task_id in task_ids]

    def tell(self, task_id: str, state: dict[str, Any], *, everybody: bool = False) -> None:
        """How a task is, to who listens for it; or to everybody."""
        for listen, stream in self.listens:
            if everybody or task_id in listen["params"]["notifications"].get("taskIds", []):
                meta = {wire.SUBSCRIPTION_META: listen["id"], "com.behavry/x": 1}
                params = {"taskId": task_id, "ttlMs": 60_000, **state, "_meta": meta}
                stream.put_nowait({"jsonrpc": "2.0", "method": "notifications/tasks",
                                   "params": params})  # fmt: skip

    async def _subscribed(
        self, request: web.Request, message: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        listen = (message, asyncio.Queue[dict[str, Any]]())
        self.listens.append(listen)
        try:
            while True:
                await response.write(_event(await listen[1].get()))
        finally:
            self.listens.remove(listen)

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        stream: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.streams.append(stream)
        try:
            while True:
                await response.write(_event(await stream.get()))
        finally:
            self.streams.remove(stream)

    def _reply(self, message: dict[str, Any]) -> dict[str, Any] | None:
        method, modern = message["method"], wire.is_modern(message)
        if ("modern" if modern else "legacy") not in self.eras:
            return wire.error(message, wire.METHOD_NOT_FOUND, "unknown method")
        match method:
            case "initialize":
                self.told.append(message["params"]["capabilities"])
                return wire.initialized(message, NAME)
            case "server/discover":
                return wire.discovered(message, NAME)
            case "tools/list":
                return wire.listed(message, self.tools)
            case "resources/list" if self.resources:
                return wire.result(message, self._page(message["params"].get("cursor")))
            case "tasks/get" | "tasks/update" | "tasks/cancel":
                return self._task(message)
            case "tools/call" if "task" in message["params"].get("arguments", {}):
                return self._begun(message)
            case "tools/call" | "prompts/get" | "resources/read":
                return self._round(message)
            case _ if "id" in message:
                return wire.error(message, wire.METHOD_NOT_FOUND, "unknown method")
            case _:
                return None

    def _round(self, message: dict[str, Any]) -> dict[str, Any]:
        """Stateless: how far it got stands in front of its state, where it gives one."""
        params = message["params"]
        state, responses = params.get("requestState"), params.get("inputResponses")
        turn = int(state.split(":")[0]) if state else int(responses is not None)
        rounds = params.get("arguments", {}).get("rounds", [])
        if turn < len(rounds):
            asked = {"resultType": "input_required", **rounds[turn]}
            return {"jsonrpc": "2.0", "id": message["id"], "result": asked}
        said = orjson.dumps({"responses": responses, "state": state}).decode()
        body = wire.content(said) if message["method"] == "tools/call" else {"messages": []}
        return wire.result(message, body)

    def _page(self, cursor: str | None) -> dict[str, Any]:
        at = int(cursor or 0)
        page = {"resources": [{"uri": f"file:///{at}", "name": self.resources[at]}]}
        return {**page, "nextCursor": str(at + 1)} if at + 1 < len(self.resources) else page

    def _begun(self, message: dict[str, Any]) -> dict[str, Any]:
        task_id = f"their-{len(self.tasks) + 1}"
        first, *later = message["params"]["arguments"]["task"]
        self.tasks[task_id] = later or [first]
        body = {"resultType": "task", "taskId": task_id, "ttlMs": 60_000, **first}
        return {"jsonrpc": "2.0", "id": message["id"], "result": body}

    def _task(self, message: dict[str, Any]) -> dict[str, Any]:
        task_id = message["params"]["taskId"]
        states = self.tasks.get(task_id)
        if states is None:
            return wire.error(message, wire.INVALID_PARAMS, "Task not found")
        if message["method"] != "tasks/get":
            return wire.result(message, {"taskId": task_id} if not states else {})
        state = states.pop(0) if len(states) > 1 else states[0]
        return wire.result(message, {"taskId": task_id, "ttlMs": 60_000, **state})

    async def _stream(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        arguments = message["params"].get("arguments") or {}
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        asks = arguments.get("asks", [])
        for ask in asks:
            if "id" in ask:
                self._waiting[ask["id"]] = asyncio.get_running_loop().create_future()
            await response.write(_event({"jsonrpc": "2.0", **ask}))
        withdrawn = arguments.get("withdrawn", [])
        waiting = [
            self._waiting[ask["id"]] for ask in asks if "id" in ask and ask["id"] not in withdrawn
        ]
        if waiting:
            await asyncio.wait(waiting, timeout=5)
        said = {str(ask["id"]): self.answers.get(ask["id"]) for ask in asks if "id" in ask}
        text = orjson.dumps(said).decode()
        if "error" in arguments:
            reply = {"jsonrpc": "2.0", "id": message["id"], "error": arguments["error"]}
            await response.write(_event(reply))
            return response
        await response.write(_event(wire.result(message, wire.content(text))))
        await response.write_eof()
        return response

    def _answered(self, message: dict[str, Any]) -> None:
        self.answers[message["id"]] = {
            name: message[name] for name in ("result", "error") if name in message
        }
        waiting = self._waiting.get(message["id"])
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


@asynccontextmanager
async def serving() -> AsyncIterator[Curious]:
    server = Curious()
    app = web.Application()
    app.router.add_route("*", "/mcp", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}/mcp"
        yield server
    finally:
        await runner.cleanup()


def _event(message: dict[str, Any]) -> bytes:
    return b"event: message\ndata: " + orjson.dumps(message) + b"\n\n"
