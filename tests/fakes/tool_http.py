"""How the told tool server talks HTTP: answers at once or as event streams, whole or broken off.

Decides nothing about what an answer says (tool_server.py). It keeps, beside the headers and bodies
that it was sent, a list of the calls whose stream the client closed before the answer.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast
from uuid import uuid4

import httptools
import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes.tool_behaviour import Behaviour

JSON: Final = "content-type: application/json\r\n"
EVENTS: Final = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
PROGRESS: Final = "notifications/progress"
LOOK_S: Final = 0.01
BOMB_BYTES: Final = 7 * 1024 * 1024


class Desk(Protocol):
    def behaviour(self) -> Behaviour: ...

    def answer(self, message: dict[str, Any], told: Behaviour) -> dict[str, Any] | None: ...


class Floor:
    """What the connections of one server share: open questions, answers that were not delivered."""

    def __init__(self, desk: Desk, directory: Path) -> None:
        self.desk = desk
        self.directory = directory
        self.asked: dict[str, asyncio.Future[Any]] = {}
        #: Event id -> the answer that follows it, and how often the stream breaks off until then.
        self.owed: dict[str, tuple[dict[str, Any], int]] = {}
        self._events = 0

    def event_id(self) -> str:
        self._events += 1
        return f"e{self._events}"

    def said(self) -> list[dict[str, Any]]:
        file = self.directory / "said"
        lines = file.read_bytes().splitlines() if file.exists() else []
        return [msgspec.json.decode(line) for line in lines]


class Connection(asyncio.Protocol):
    """One HTTP connection. Requests on it are answered one after the other, as HTTP/1.1 asks."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._parser = httptools.HttpRequestParser(self)
        self._talking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._talking is not None:
            self._talking.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._body.clear()
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode(errors="replace")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self._note("headers", msgspec.json.encode(self._headers))
        self._note("methods", method.encode())
        self._note("bodies", bytes(self._body))
        told = self._floor.desk.behaviour()
        match method:
            case "POST":
                self._post(msgspec.json.decode(self._body), told)
            case "DELETE":
                self._reply(200)
            case "GET" if told.stream and self._known(told):
                self._talk(self._resume_or_listen(told))
            case _:
                self._reply(405)

    # --- requests -------------------------------------------------------------------------------

    def _post(self, message: dict[str, Any], told: Behaviour) -> None:
        method = message.get("method")
        if method is None:
            self._take_answer(message)
            self._reply(202)
            return
        opens = method == "initialize"
        if not (opens or wire.is_modern(message) or self._known(told)):
            self._reply(404)
            return
        era = "modern" if wire.is_modern(message) else "legacy"
        if told.refuses and era not in told.eras:
            self._reply(400, msgspec.json.encode(_refusal(era)), JSON)
            return
        status = told.methods_status.get(method, 200)
        if status != 200:
            self._reply(status)
            return
        if method == "subscriptions/listen" and told.stream:
            self._talk(self._listen(message))
            return
        reply = self._floor.desk.answer(message, told)
        if method == "tools/call" and not self._called(message, reply, told):
            return
        if reply is None:
            self._reply(202)
            return
        session = f"mcp-session-id: {self._opened()}\r\n" if opens and told.sessions else ""
        self._reply(200, msgspec.json.encode(reply), JSON + session)

    def _called(
        self, message: dict[str, Any], reply: dict[str, Any] | None, told: Behaviour
    ) -> bool:
        """Whether the answer is given as any other."""
        if told.hang:
            return False
        if told.drop:
            self._transport.close()
        elif told.status != 200 or told.redirect:
            where = f"location: {told.redirect}\r\n" if told.redirect else ""
            self._reply(told.status if told.status != 200 else 307, headers=where)
        elif told.lie == "not_json":
            self._reply(200, b"{]", JSON)
        elif told.encoding:
            body, name = compressed(msgspec.json.encode(reply), told.encoding)
            self._reply(200, body, f"{JSON}content-encoding: {name}\r\n")
        elif told.stream or told.held:
            self._talk(self._stream(message, reply or {}, told))
        else:
            return True
        return False

    def _take_answer(self, message: dict[str, Any]) -> None:
        waiting = self._floor.asked.pop(str(message.get("id")), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    # --- streams --------------------------------------------------------------------------------

    def _talk(self, work: Any) -> None:
        self._talking = asyncio.get_running_loop().create_task(work)

    async def _stream(
        self, message: dict[str, Any], reply: dict[str, Any], told: Behaviour
    ) -> None:
        """1. it begins  2. notifications  3. questions, whose answers stand in the result
        4. held as long as the behaviour says  5. broken off, or 6. the answer.
        """
        params = message.get("params") or {}
        try:
            self._begin()  # 1
            last = self._event("", told)
            for note in told.notes:  # 2
                last = self._event(_note(note), told)
            token = (params.get("_meta") or {}).get("progressToken")
            for step in range(told.progress if token is not None else 0):
                progress = {"progressToken": token, "progress": step + 1, "total": told.progress}
                last = self._event(_note({"method": PROGRESS, "params": progress}), told)
            for question in told.asks:  # 3
                answer = await self._ask(question, told)
                reply = _with_text(reply, msgspec.json.encode(answer).decode())
            while self._floor.desk.behaviour().held:  # noqa: ASYNC110  # 4: another process says so
                await asyncio.sleep(LOOK_S)
            if told.breaks:  # 5
                self._floor.owed[last] = (reply, told.breaks - 1)
            else:
                self._event(reply, told)  # 6
                if told.lie == "twice":
                    self._event(_with_text(reply, "again"), told)
            self._end()
        except asyncio.CancelledError:
            self._note("given_up", str((params.get("arguments") or {}).get("call", "")).encode())

    async def _resume_or_listen(self, told: Behaviour) -> None:
        self._begin()
        owed = self._floor.owed.pop(self._headers.get("last-event-id", ""), None)
        if owed is None:
            await self._say()
            self._end()
            return
        reply, breaks = owed
        last = self._event("", told)
        if breaks:
            self._floor.owed[last] = (reply, breaks - 1)
        else:
            self._event(reply, told)
        self._end()

    async def _listen(self, message: dict[str, Any]) -> None:
        self._begin()
        tag = {"io.modelcontextprotocol/subscriptionId": message["id"]}
        wanted = message["params"].get("notifications") or {}
        acknowledged = {"notifications": wanted, "_meta": tag}
        method = "notifications/subscriptions/acknowledged"
        self._event(_note({"method": method, "params": acknowledged}))
        await self._say(tag)
        self._event(wire.result(message, {"_meta": tag}))
        self._end()

    async def _say(self, tag: Mapping[str, Any] | None = None) -> None:
        """What the server is told to say from now on, until that is nothing."""
        told = len(self._floor.said())
        (self._floor.directory / f"listening-{uuid4().hex}").touch()
        while True:
            said = self._floor.said()
            for one in said[told:]:
                if one.get("method") is None:
                    return
                params = {**one.get("params", {}), **({"_meta": tag} if tag else {})}
                self._event({**_note(one), "params": params}, self._floor.desk.behaviour())
            told = len(said)
            await asyncio.sleep(LOOK_S)

    async def _ask(self, question: Mapping[str, Any], told: Behaviour) -> dict[str, Any]:
        name = f"q-{uuid4().hex}"
        waiting = self._floor.asked[name] = asyncio.get_running_loop().create_future()
        self._event({"jsonrpc": "2.0", "id": name, **question}, told)
        answer = await waiting
        return {one: answer[one] for one in ("result", "error") if one in answer}

    # --- bytes ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._transport.write(f"HTTP/1.1 200 Told\r\n{EVENTS}\r\n".encode())

    def _event(self, message: Mapping[str, Any] | str, told: Behaviour | None = None) -> str:
        """Its id, where the server gives ids."""
        lines, name = b"", ""
        if told is not None and (told.breaks or told.retry_ms):
            name = self._floor.event_id()
            lines = f"id: {name}\nretry: {told.retry_ms or 100}\n".encode()
        data = b"" if isinstance(message, str) else msgspec.json.encode(message)
        event = lines + b"data: " + data + b"\n\n"
        if not name and not data:
            event = b": hello\n\n"
        self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))
        return name

    def _end(self) -> None:
        self._talking = None
        self._transport.write(b"0\r\n\r\n")

    def _reply(self, status: int, body: bytes = b"", headers: str = "") -> None:
        head = f"HTTP/1.1 {status} Told\r\n{headers}content-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    # --- what is kept ---------------------------------------------------------------------------

    def _note(self, name: str, line: bytes) -> None:
        with (self._floor.directory / name).open("ab") as file:
            file.write(line + b"\n")

    def _opened(self) -> str:
        session = uuid4().hex
        (self._floor.directory / f"session-{session}").touch()
        return session

    def _known(self, told: Behaviour) -> bool:
        session = self._headers.get("mcp-session-id", "none")
        return not told.sessions or (self._floor.directory / f"session-{session}").exists()


def compressed(body: bytes, how: str) -> tuple[bytes, str]:
    """(bytes, the encoding that is named)"""
    match how:
        case "gzip":
            return gzip.compress(body), "gzip"
        case "deflate":
            return zlib.compress(body), "deflate"
        case "bare":
            made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            return made.compress(body) + made.flush(), "deflate"
        case "bomb":
            return gzip.compress(body + b" " * BOMB_BYTES), "gzip"
        case "cut":
            return gzip.compress(body)[:-12], "gzip"
        case _:
            return body, how


def _refusal(era: str) -> dict[str, Any]:
    code = -32000 if era == "modern" else wire.UNSUPPORTED_VERSION
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": "Bad Request"}}


def _note(note: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", **note}


def _with_text(reply: dict[str, Any], text: str) -> dict[str, Any]:
    result = reply["result"]
    content = [*result["content"], {"type": "text", "text": text}]
    return {**reply, "result": {**result, "content": content}}
