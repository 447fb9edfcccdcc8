"""An MCP tool server so cheap that it is never what a measurement measures.

A bare asyncio protocol on uvloop with httptools: both eras over Streamable HTTP, JSON answers, no
session. It answers `echo` with twice the text it was given, and can keep a ledger of every call
that ran, one line each, written before the answer leaves. It does not misbehave: that is
tool_server.py.

    python -m tests.fakes.mcp_echo [--port N] [--ledger FILE]
"""

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any, Final, cast

import httptools
import orjson
import uvloop

from tests.fakes import mcp_wire as wire

NAME: Final = "echo"
TEXT: Final = {"type": "string"}
TOOLS: Final = (
    wire.tool(
        "echo",
        "Gives the text back twice.",
        {"call": TEXT, "kind": TEXT, "text": TEXT},
        required=("call", "text"),
    ),
    wire.tool("count", "Counts the letters of a text.", {"call": TEXT, "text": TEXT}),
    wire.tool("erase", "Erases a note.", {"call": TEXT, "note": TEXT}),
)
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
ACCEPTED: Final = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
NOT_ALLOWED: Final = b"HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\ncontent-length: 0\r\n\r\n"


class Ledger:
    """Which calls ran. One write per call: who reads after a kill still sees whole lines."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def ran(self, call: str, tool: str) -> None:
        line = {"call": call, "tool": tool, "at": time.monotonic()}
        os.write(self._fd, orjson.dumps(line) + b"\n")


def read_ledger(path: Path) -> list[str]:
    """The ids of the calls that ran, in order, repeats included."""
    return [call for call, _ in read_times(path)]


def read_times(path: Path) -> list[tuple[str, float]]:
    """The same with when each ran, on the clock that all processes of a machine share."""
    if not path.exists():
        return []
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [(str(line["call"]), float(line["at"])) for line in lines]


def answer(message: dict[str, Any], ledger: Ledger | None) -> dict[str, Any] | None:
    """None for a notification, which has no answer."""
    match message.get("method"):
        case "tools/call":
            return wire.result(message, _call(message["params"], ledger))
        case "tools/list":
            return wire.listed(message, TOOLS)
        case "server/discover":
            return wire.discovered(message, NAME)
        case "initialize":
            return wire.initialized(message, NAME)
        case "ping":
            return wire.result(message, {})
        case method if "id" in message:
            return wire.error(message, wire.METHOD_NOT_FOUND, f"no method {method}")
        case _:
            return None


def _call(params: dict[str, Any], ledger: Ledger | None) -> dict[str, Any]:
    arguments = params.get("arguments") or {}
    call, text = str(arguments.get("call", "")), str(arguments.get("text", ""))
    if ledger is not None:
        ledger.ran(call, params["name"])
    match params["name"]:
        case "echo":
            return wire.content(f"{call} {text}{text}")
        case "count":
            return wire.content(f"{call} {len(text)}")
        case "erase":
            return wire.content(f"{call} erased")
        case name:
            return wire.content(f"Unknown tool: {name}", is_error=True)


class Connection(asyncio.Protocol):
    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self._body = bytearray()
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() != b"POST":
            self._transport.write(NOT_ALLOWED)
            return
        reply = answer(orjson.loads(self._body), self._ledger)
        if reply is None:
            self._transport.write(ACCEPTED)
            return
        body = orjson.dumps(reply)
        self._transport.write(HEAD % len(body) + body)


async def serve(port: int, ledger_file: Path | None) -> None:
    loop = asyncio.get_running_loop()
    ledger = Ledger(ledger_file) if ledger_file else None
    server = await loop.create_server(lambda: Connection(ledger), "127.0.0.1", port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    bound = server.sockets[0].getsockname()[1]
    ready = {"url": f"http://127.0.0.1:{bound}/mcp", "pid": os.getpid()}
    print(orjson.dumps(ready).decode(), flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fakes.mcp_echo")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger", type=Path)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.ledger))


if __name__ == "__main__":
    main()
