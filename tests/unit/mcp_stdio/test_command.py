"""The program as a process: what it says before it begins, and what it costs to begin."""

import asyncio
import subprocess
import sys
import time

import msgspec
import pytest

from tests.fakes.children import ROOT
from tests.fakes.scripted_gateway import ScriptedGateway
from tests.promises import promise

PATIENCE_S = 20


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "services.mcp_stdio", *arguments],
        cwd=ROOT,
        env=environment,
        input=b"",
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )


@promise("clients:stdio")
@pytest.mark.parametrize("argument", ["--agent-key=bhv_ak_planted.x", "--client-secret=planted"])
def test_a_secret_on_the_command_line_is_a_usage_error_that_repeats_nothing(argument: str) -> None:
    ran = run("--server-url", "http://127.0.0.1:1/x", argument, BEHAVRY_AGENT_KEY="bhv_ak_a.b")

    assert (2, b"") == (ran.returncode, ran.stdout)
    assert b"environment" in ran.stderr
    assert b"planted" not in ran.stderr


def test_nothing_is_loaded_that_it_does_not_need() -> None:
    """It is started with each session of a client: `aiohttp` is the heaviest that it may load."""
    probe = (
        "import sys, services.mcp_stdio.app;"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'grpc', 'pydantic', 'opentelemetry', 'behavry', 'cryptography', 'structlog'}))"
    )
    told = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "[]" == told.stdout.strip()


async def test_a_line_of_more_than_16_mib_is_refused_and_the_next_is_carried(
    gateway: ScriptedGateway,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.mcp_stdio", "--server-url", gateway.url),
        cwd=ROOT,
        env={"BEHAVRY_AGENT_KEY": "bhv_ak_a.b"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x" * (16 * 1024 * 1024 + 1) + b"\n")
    process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
    async with asyncio.timeout(PATIENCE_S):
        heard = [msgspec.json.decode(await process.stdout.readline()) for _ in range(2)]
        process.stdin.close()
        began = time.monotonic()
        status = await process.wait()

    assert [(None, -32700), (1, None)] == [
        (one["id"], one.get("error", {}).get("code")) for one in heard
    ]
    assert 0 == status
    assert time.monotonic() - began < PATIENCE_S / 2
