"""A tool server that does as it is told: lies, hangs, leaks, changes a tool's definition.

Both eras, Streamable HTTP and stdio. Its behaviour is a file that it reads anew for each request,
so that a test changes it in one line while it runs (`server.behave(hang=True)`); it keeps a ledger
of every call that ran and a list of the headers that it was sent. Deciding what should have run
is the test's work.

    python -m tests.fakes.tool_server --dir DIR [--stdio | --port N]
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import httptools
import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes.children import child
from tests.fakes.mcp_echo import Ledger, read_ledger

NAME: Final = "obedient"
TEXT: Final = {"type": "string"}
ACTIONS: Final = {"read_note": "read", "write_note": "write", "drop_notes": "delete"}
TOOLS: Final = tuple(
    wire.tool(name, f"Will {name.replace('_', ' ')}.", {"call": TEXT, "text": TEXT})
    for name in ACTIONS
)


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What is not set is honest."""

    eras: tuple[str, ...] = ("modern", "legacy")
    hang: bool = False
    """Runs the call, then never answers it."""
    drop: bool = False
    """Runs the call, then closes the connection (stdio: ends) without an answer."""
    lie: str | None = None
    """`other_id`, `not_json`, `no_result`: an answer that is none."""
    leak: str | None = None
    """Stands in the result's text."""
    status: int = 200
    """Answers calls with this HTTP status and no body."""
    descriptions: dict[str, str] = {}
    """Tools whose definition is another one now."""
    extra_tools: tuple[str, ...] = ()
    schemas: dict[str, dict[str, Any]] = {}
    """Tools whose input schema is another one."""
    ttl_ms: int = 0
    """How long its lists may be kept."""
    sessions: bool = False
    """Legacy: gives a session id, and answers 404 to requests without it."""


class ToolServer:
    """A test's hand on one such server, wherever it runs."""

    def __init__(self, directory: Path, url: str | None = None) -> None:
        self.directory = directory
        self.url = url
        self.pid = 0

    def behave(self, **changes: Any) -> None:
        """Replaces the whole behaviour; without arguments it is honest again."""
        file = self.directory / "behaviour.json"
        fresh = file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(Behaviour(**changes)))
        fresh.replace(file)

    def ran(self) -> list[str]:
        return read_ledger(self.directory / "ledger")

    def headers_seen(self) -> list[dict[str, str]]:
        file = self.directory / "headers"
        lines = file.read_bytes().splitlines() if file.exists() else []
        return [msgspec.json.decode(line, type=dict[str, str]) for line in lines]

    def bodies_seen(self) -> list[bytes]:
        """Over HTTP, byte for byte; a body never holds a line break."""
        file = self.directory / "bodies"
        return file.read_bytes().splitlines() if file.exists() else []

    def stdio_command(self) -> tuple[str, Sequence[str]]:
        """(command, arguments) for a stdio.toml; the working directory must be the repository."""
        arguments = ("-m", "tests.fakes.tool_server", "--stdio", "--dir", str(self.directory))
        return sys.executable, arguments


@contextmanager
def serving(directory: Path, *, port: int = 0) -> Iterator[ToolServer]:
    """Over HTTP, until the block ends."""
    directory.mkdir(exist_ok=True, parents=True)
    arguments = ("--dir", str(directory), "--port", str(port))
    with child("tests.fakes.tool_server", *arguments) as (process, ready):
        server = ToolServer(directory, ready["url"])
        server.pid = process.pid
        yield server


class Desk:
    """Answers one message at a time, as told; knows no transport."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ledger = Ledger(directory / "ledger")

    def behaviour(self) -> Behaviour:
        try:
            raw = (self._directory / "behaviour.json").read_bytes()
        except FileNotFoundError:
            return Behaviour()
        return msgspec.json.decode(raw, type=Behaviour)

    def answer(self, message: dict[str, Any], told: Behaviour) -> dict[str, Any] | None:
        if wire.is_modern(message) and "modern" not in told.eras:
            return wire.error(message, wire.METHOD_NOT_FOUND, "unknown method")
        match message.get("method"):
            case "tools/call":
                return self._called(message, told)
            case "tools/list":
                return wire.listed(message, _tools(told), ttl_ms=told.ttl_ms)
            case "server/discover":
                return wire.discovered(message, NAME)
            case "initialize" if "legacy" in told.eras:
                return wire.initialized(message, NAME)
            case "initialize":
                supported = {"supported": [wire.MODERN]}
                return wire.error(message, wire.UNSUPPORTED_VERSION, "modern only", supported)
            case "ping":
                return wire.result(message, {})
            case method if "id" in message:
                return wire.error(message, wire.METHOD_NOT_FOUND, f"no method {method}")
            case _:
                return None

    def _called(self, message: dict[str, Any], told: Behaviour) -> dict[str, Any]:
        name = message["params"]["name"]
        arguments = message["params"].get("arguments") or {}
        call = str(arguments.get("call", ""))
        if name not in {tool["name"] for tool in _tools(told)}:
            return wire.error(message, wire.INVALID_PARAMS, f"Unknown tool: {name}")
        self._ledger.ran(call, name)
        said = f"{call} {name} {arguments.get('text', '')} {told.leak or ''}".strip()
        reply = wire.result(message, wire.content(said))
        match told.lie:
            case "other_id":
                return {**reply, "id": 987654321}
            case "no_result":
                return {"jsonrpc": "2.0", "id": message.get("id")}
            case _:
                return reply


def _tools(told: Behaviour) -> list[dict[str, Any]]:
    known = [
        {**tool, "description": told.descriptions.get(tool["name"], tool["description"])}
        for tool in TOOLS
    ]
    known += [wire.tool(name, "New here.", {"call": TEXT}) for name in told.extra_tools]
    return [
        {**tool, "inputSchema": told.schemas.get(tool["name"], tool["inputSchema"])}
        for tool in known
    ]


class Connection(asyncio.Protocol):
    """One HTTP connection. Requests on it are answered one after the other, as HTTP/1.1 asks."""

    def __init__(self, desk: Desk, headers_file: Path) -> None:
        self._desk = desk
        self._headers_file = headers_file
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

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
        with self._headers_file.open("ab") as seen:
            seen.write(msgspec.json.encode(self._headers) + b"\n")
        with self._headers_file.with_name("bodies").open("ab") as seen:
            seen.write(bytes(self._body) + b"\n")
        match self._parser.get_method():
            case b"POST":
                self._post(msgspec.json.decode(self._body))
            case b"DELETE":
                self._reply(200)
            case _:
                self._reply(405)

    def _post(self, message: dict[str, Any]) -> None:
        told = self._desk.behaviour()
        method = message.get("method")
        opens = method == "initialize"
        if told.sessions and not (opens or wire.is_modern(message)) and not self._known():
            self._reply(404)
            return
        reply = self._desk.answer(message, told)
        if method == "tools/call":
            if told.hang:
                return
            if told.drop:
                self._transport.close()
                return
            if told.status != 200:
                self._reply(told.status)
                return
            if told.lie == "not_json":
                self._reply(200, b"{]", "content-type: application/json\r\n")
                return
        if reply is None:
            self._reply(202)
            return
        headers = "content-type: application/json\r\n"
        if opens and told.sessions:
            headers += f"mcp-session-id: {self._opened()}\r\n"
        self._reply(200, msgspec.json.encode(reply), headers)

    def _opened(self) -> str:
        session = uuid4().hex
        (self._headers_file.parent / f"session-{session}").touch()
        return session

    def _known(self) -> bool:
        session = self._headers.get("mcp-session-id", "none")
        return (self._headers_file.parent / f"session-{session}").exists()

    def _reply(self, status: int, body: bytes = b"", headers: str = "") -> None:
        head = f"HTTP/1.1 {status} Told\r\n{headers}content-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def serve_http(directory: Path, port: int) -> None:
    loop = asyncio.get_running_loop()
    desk = Desk(directory)
    server = await loop.create_server(
        lambda: Connection(desk, directory / "headers"), "127.0.0.1", port
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    bound = server.sockets[0].getsockname()[1]
    ready = {"url": f"http://127.0.0.1:{bound}/mcp", "pid": os.getpid()}
    print(msgspec.json.encode(ready).decode(), flush=True)
    await stop.wait()
    server.close()


def serve_stdio(directory: Path) -> None:
    """One line in, one line out. A hanging call keeps its answer back, the next one is served."""
    desk = Desk(directory)
    for line in sys.stdin.buffer:
        message = msgspec.json.decode(line)
        told = desk.behaviour()
        reply = desk.answer(message, told)
        if message.get("method") == "tools/call":
            if told.drop:
                return
            if told.hang:
                continue
            if told.lie == "not_json":
                sys.stdout.buffer.write(b"{]\n")
                sys.stdout.buffer.flush()
                continue
        if reply is not None:
            sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
            sys.stdout.buffer.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fakes.tool_server")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stdio", action="store_true")
    options = parser.parse_args()
    if options.stdio:
        serve_stdio(options.dir)
    else:
        asyncio.run(serve_http(options.dir, options.port))


if __name__ == "__main__":
    main()
