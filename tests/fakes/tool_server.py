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
from typing import Any, Final

import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes.children import child
from tests.fakes.mcp_echo import Ledger, read_ledger
from tests.fakes.tool_behaviour import Behaviour
from tests.fakes.tool_http import Connection, Floor

NAME: Final = "obedient"
TEXT: Final = {"type": "string"}
ACTIONS: Final = {"read_note": "read", "write_note": "write", "drop_notes": "delete"}
TOOLS: Final = tuple(
    wire.tool(name, f"Will {name.replace('_', ' ')}.", {"call": TEXT, "text": TEXT})
    for name in ACTIONS
)


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

    def methods_seen(self) -> list[str]:
        """HTTP methods, in the order of the headers."""
        return self._lines("methods")

    def given_up(self) -> list[str]:
        """Streamed calls that the client closed before their answer."""
        return self._lines("given_up")

    def say(self, method: str | None, params: dict[str, Any] | None = None) -> None:
        """On every stream that is listened to; no method ends them."""
        line = msgspec.json.encode({"method": method, "params": params or {}})
        with (self.directory / "said").open("ab") as said:
            said.write(line + b"\n")

    def listeners(self) -> int:
        """How many streams were ever listened to."""
        return len(list(self.directory.glob("listening-*")))

    def forget(self) -> None:
        """As if it had just been started; it is honest."""
        self.behave()
        for name in ("ledger", "headers", "bodies", "methods", "given_up"):
            if (self.directory / name).exists():
                os.truncate(self.directory / name, 0)
        for listener in self.directory.glob("listening-*"):
            listener.unlink()

    def _lines(self, name: str) -> list[str]:
        file = self.directory / name
        return file.read_text().splitlines() if file.exists() else []

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
                return _with_capabilities(wire.discovered(message, NAME), told)
            case "initialize" if "legacy" in told.eras:
                return _with_capabilities(wire.initialized(message, NAME), told)
            case "initialize":
                supported = {"supported": [wire.MODERN]}
                return wire.error(message, wire.UNSUPPORTED_VERSION, "modern only", supported)
            case "ping":
                return wire.result(message, {})
            case method if "id" in message:
                body = _beside(message, str(method), told)
                if body is not None:
                    return wire.result(message, body)
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


def _with_capabilities(reply: dict[str, Any], told: Behaviour) -> dict[str, Any]:
    has = {"prompts": told.prompts, "resources": told.resources or told.templates}
    more: dict[str, Any] = {name: {"listChanged": True} for name in has if has[name]}
    more |= {"logging": {}} if told.logs else {}
    more |= {"completions": {}} if told.completes else {}
    result = reply["result"]
    return {**reply, "result": {**result, "capabilities": {**result["capabilities"], **more}}}


def _beside(message: dict[str, Any], method: str, told: Behaviour) -> dict[str, Any] | None:
    """What it does beside its tools; None where it does not know the method."""
    if method == "completion/complete" and told.completes:
        typed = message["params"]["argument"]["value"]
        return {"completion": {"values": [f"{typed}e", typed]}}
    if method == "logging/setLevel" and told.logs and not wire.is_modern(message):
        return {}
    if method in {"prompts/list", "resources/list", "resources/templates/list"}:
        return _page(message, method, told)
    return None


def _page(message: dict[str, Any], method: str, told: Behaviour) -> dict[str, Any]:
    names, member, key = {
        "prompts/list": (told.prompts, "prompts", ""),
        "resources/list": (told.resources, "resources", "uri"),
        "resources/templates/list": (told.templates, "resourceTemplates", "uriTemplate"),
    }[method]
    start = int(message.get("params", {}).get("cursor", 0))
    end = start + told.page
    entries = [
        {"name": name, **({key: f"note:{name}"} if key else {})} for name in names[start:end]
    ]
    body: dict[str, Any] = {member: entries}
    if end < len(names):
        body["nextCursor"] = str(end)
    if wire.is_modern(message):
        body |= {"ttlMs": told.ttl_ms, "cacheScope": "public"}
    return body


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


async def serve_http(directory: Path, port: int) -> None:
    loop = asyncio.get_running_loop()
    floor = Floor(Desk(directory), directory)
    server = await loop.create_server(lambda: Connection(floor), "127.0.0.1", port)
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
