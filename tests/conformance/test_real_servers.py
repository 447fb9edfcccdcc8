"""Tool servers that others wrote, behind the proxy as they are: what works directly works through
it, and what is denied never reaches them. The agent is the SDK's client in both eras.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mcp_types as types
import pytest
from mcp.client.client import ConnectMode

from tests.fakes.authorizer import server_entry
from tests.fakes.gateway import Gateway, gateway, until_true
from tests.fakes.sdk_client import connected
from tests.fakes.stdio_toml import write_toml
from tests.house import SERVERS, tool

both_eras = pytest.mark.parametrize("mode", ["auto", "legacy"], ids=["modern", "legacy"])
SLUG: Final = "real"


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """A server's command line, a call that works, one to be denied, and what the first one says."""

    line: Callable[[Path], list[str]]
    tool: str
    arguments: Callable[[Path], dict[str, Any]]
    says: str
    denied: str


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def node(name: str, *arguments: str) -> list[str]:
    return [str(tool("node")), str((SERVERS / name).resolve()), *arguments]


def repository(place: Path) -> str:
    """With one file that waits to be committed."""
    subprocess.run(["git", "init", "--quiet", str(place / "repo")], check=True)
    (place / "repo" / "note").write_text("a note\n")
    return str(place / "repo")


REAL: Final[dict[str, Real]] = {
    "time": Real(
        line=lambda _: python("mcp_server_time", "--local-timezone", "UTC"),
        tool="convert_time",
        arguments=lambda _: {
            "source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo",
        },
        says="21:00",
        denied="get_current_time",
    ),
    "git": Real(
        line=lambda _: python("mcp_server_git"),
        tool="git_status",
        arguments=lambda place: {"repo_path": repository(place)},
        says="note",
        denied="git_reset",
    ),
    "filesystem": Real(
        line=lambda place: node("mcp-server-filesystem", str(place)),
        tool="write_file",
        arguments=lambda place: {"path": str(place / "made"), "content": "made by the tool"},
        says="Successfully wrote",
        denied="move_file",
    ),
    "everything": Real(
        line=lambda _: node("mcp-server-everything", "stdio"),
        tool="get-sum",
        arguments=lambda _: {"a": 40, "b": 2},
        says="42",
        denied="get-env",
    ),
}  # fmt: skip


def text(answer: types.CallToolResult) -> str:
    return " ".join(one.text for one in answer.content if isinstance(one, types.TextContent))


async def allow_and_deny(proxy: Gateway, mode: ConnectMode, real: Real, place: Path) -> None:
    await proxy.offered(SLUG, real.tool, real.denied)
    proxy.authorizer.rules.verdicts[SLUG, real.denied] = ("deny", "not_today")
    async with connected(proxy, SLUG, mode) as client:
        listed = {one.name for one in (await client.list_tools()).tools}
        ran = await client.call_tool(real.tool, real.arguments(place))
        refused = await client.call_tool(real.denied, {})

    assert {real.tool, real.denied} == listed
    assert real.says in text(ran), text(ran)
    assert (False, True) == (ran.is_error, refused.is_error)
    assert text(refused).startswith("Denied: ")
    records = [(one["type"], one["tool"]) for one in proxy.records("call.")]
    assert [
        ("call.intent", real.tool), ("call.outcome", real.tool), ("call.denied", real.denied),
    ] == records  # fmt: skip


@both_eras
@pytest.mark.needs_servers
@pytest.mark.parametrize("name", list(REAL))
async def test_a_server_over_stdio(tmp_path: Path, name: str, mode: ConnectMode) -> None:
    real, state, place = REAL[name], tmp_path / "state", tmp_path / "place"
    place.mkdir()
    command, *arguments = real.line(place)
    write_toml(state, SLUG, command=command, args=arguments)
    async with gateway(state, {SLUG: server_entry(transport="stdio", stdio=SLUG)}) as proxy:
        await allow_and_deny(proxy, mode, real, place)


@contextmanager
def everything(transport: str) -> Iterator[str]:
    """The address of server-everything over HTTP, while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with subprocess.Popen(
        node("mcp-server-everything", transport),
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stderr is not None
            while b"port" not in (line := process.stderr.readline()):
                assert line, "the server ended before it listened"
            yield f"http://127.0.0.1:{port}/{'sse' if transport == 'sse' else 'mcp'}"
        finally:
            process.kill()


@both_eras
@pytest.mark.needs_servers
@pytest.mark.parametrize(
    ("speaks", "transport"),
    [("streamableHttp", "http"), ("sse", "sse"), ("sse", "http")],
    ids=["http", "sse", "sse found by trying"],
)
async def test_a_server_over_http(
    tmp_path: Path, speaks: str, transport: str, mode: ConnectMode
) -> None:
    with everything(speaks) as url:
        entry = server_entry(transport=transport, urls=[url])
        async with gateway(tmp_path / "state", {SLUG: entry}) as proxy:
            await allow_and_deny(proxy, mode, REAL["everything"], tmp_path)
            proxy.forget_records()
            await more(proxy, mode)


async def more(proxy: Gateway, mode: ConnectMode) -> None:
    """What else the server has: progress, resources, prompts."""
    slow = "trigger-long-running-operation"
    await proxy.offered(SLUG, slow)
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert (2, True) == (total, message is None or bool(message))
        told.append(progress)

    async with connected(proxy, SLUG, mode) as client:
        ran = await client.call_tool(slow, {"duration": 0.2, "steps": 2}, progress_callback=hear)
        resources = (await client.list_resources()).resources
        read = await client.read_resource(str(resources[0].uri))
        prompts = (await client.list_prompts()).prompts
        prompt = await client.get_prompt("simple-prompt")

    assert (False, [1, 2]) == (ran.is_error, told)
    assert read.contents
    assert prompts
    assert prompt.messages


@asynccontextmanager
async def page(content: bytes) -> AsyncIterator[str]:
    """A page on this machine, for a server that fetches."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        while (await reader.readline()).strip():
            pass
        found = b"/page" in line
        head = b"HTTP/1.1 %s\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n"
        body = content if found else b""
        writer.write(head % (b"200 OK" if found else b"404 None", len(body)) + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/page"


@both_eras
async def test_a_server_that_fetches_pages(tmp_path: Path, mode: ConnectMode) -> None:
    state = tmp_path / "state"
    write_toml(
        state, SLUG, command=sys.executable, args=["-m", "mcp_server_fetch", "--allow-private-ips"]
    )
    async with (
        page(b"<html><body><p>words of a page</p></body></html>") as url,
        gateway(state, {SLUG: server_entry(transport="stdio", stdio=SLUG)}) as proxy,
    ):
        await proxy.offered(SLUG, "fetch")
        async with connected(proxy, SLUG, mode) as client:
            fetched = await client.call_tool("fetch", {"url": url, "raw": True})
            proxy.authorizer.rules.verdicts[SLUG, "fetch"] = ("deny", "not_today")
            refused = await client.call_tool("fetch", {"url": url, "raw": True})

    assert "words of a page" in text(fetched), text(fetched)
    assert (False, True) == (fetched.is_error, refused.is_error)


async def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    """server-time, killed between two calls."""
    real, state = REAL["time"], tmp_path / "state"
    command, *arguments = real.line(tmp_path)
    write_toml(state, SLUG, command=command, args=arguments)
    async with gateway(state, {SLUG: server_entry(transport="stdio", stdio=SLUG)}) as proxy:
        await proxy.offered(SLUG, real.tool)
        async with connected(proxy, SLUG, "auto") as client:
            first = await client.call_tool(real.tool, real.arguments(tmp_path))
            for child in children_of(os.getpid(), "mcp_server_time"):
                os.kill(child, 9)
            answers: list[types.CallToolResult] = []

            async def works() -> bool:
                answers.append(await client.call_tool(real.tool, real.arguments(tmp_path)))
                return not answers[-1].is_error

            await until_true(works, seconds=15)

    assert not first.is_error
    assert real.says in text(answers[-1])


def children_of(parent: int, word: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            if int(stat[1]) == parent and word in line:
                found.append(int(entry.name))
    return found
