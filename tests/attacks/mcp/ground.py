"""Ground for fuzzing: a proxy process with a tool server of either era behind it, an authorizer
that allows, and agents of either era in front.

Decides what counts as a crash: an answer or a log line that speaks of one, or a process that ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from behavry.audit.v1 import audit_pb2
from services.common.outbox.digests import Digester
from services.common.outbox.files import DiskFiles
from services.common.outbox.recovery import read_all
from services.common.outbox.segment import scan
from services.common.settings import load
from services.proxy.settings import ProxySettings
from tests.attacks.mcp import hostile_sse, mutations
from tests.attacks.mcp.mutations import Case
from tests.fakes.authorizer import FakeAuthorizer, serving, snapshot
from tests.fakes.children import ROOT
from tests.fakes.gateway import BOTH, Issuer, environment, http_server, until_true
from tests.fakes.ports import free_port
from tests.fakes.raw_http import RawHttp, Reply, connected, request
from tests.fakes.witness import Witness, witnessing

#: The modern tool server and the legacy one.
SERVERS: Final = ("new", "old")
GRANTS: Final = {
    "elicitation_form": True, "elicitation_hosts": ["good.example"], "sampling": True,
    "roots": True, "extensions": ["io.modelcontextprotocol/tasks"],
}  # fmt: skip
_CRASHES: Final = ("request_failed", "task_failed", "Traceback")

Lines = list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    url: str
    token: str
    seed: int
    witness: Witness
    settings: ProxySettings
    digester: Digester

    def lines(self, case: Case | None = None, session: str = "") -> Lines:
        """The headers of a request."""
        made = [
            ("host", self.url.removeprefix("http://")),
            ("authorization", f"Bearer {self.token}"),
            ("content-type", "application/json"),
            ("accept", BOTH),
            *(case.headers if case is not None else ()),
        ]
        return [*made, ("mcp-session-id", session)] if session else made

    def where(self, server: str) -> str:
        return f"{self.url}/mcp/v1/{server}"

    async def session(self, http: RawHttp, server: str, capabilities: dict[str, Any]) -> str:
        """Of a legacy agent."""
        asked = {
            "protocolVersion": "2025-11-25", "capabilities": capabilities,
            "clientInfo": {"name": "fuzz", "version": "1"},
        }  # fmt: skip
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": asked}
        sent = request(self.where(server), self.lines(), orjson.dumps(body))
        said = []
        for _ in range(5):  # a busy machine may need more than a handshake's time
            reply = await http.ask(sent)
            if "mcp-session-id" in reply.headers:
                return reply.headers["mcp-session-id"]
            said.append(reply.body)
        raise AssertionError(said)

    async def ask(self, http: RawHttp, case: Case, session: str, **options: Any) -> Reply:
        """Every request has its answer in time, and none is a crash."""
        sent = request(self.where(case.server), self.lines(case, session), case.body)
        try:
            reply = await http.ask(sent, **options)
        except TimeoutError:
            raise AssertionError(self.named(case, "hangs")) from None
        assert b'"internal error"' not in reply.body, self.named(case, "crashes")
        assert reply.status in {200, 202, 400, 404}, self.named(case, str(reply.status))
        assert not http.closed, self.named(case, "loses its connection")
        return reply

    def named(self, case: Case, what: str) -> str:
        return f"seed {self.seed}, case {case.number}: {what}\n{case}"

    def records(self, type: str) -> list[dict[str, Any]]:
        """What is in the outbox of the proxy, when it has ended."""
        found = []
        for path in sorted(self.settings.outbox_dir.glob("w*/*.seg")):
            frames = scan(read_all(path, path.stat().st_size, DiskFiles())).frames
            entries = (audit_pb2.StoredRecord.FromString(one.stored).entry for one in frames)
            found += [orjson.loads(entry.body) for entry in entries]
        return [one for one in found if one["type"] == type]


def message(reply: Reply) -> Any:
    """The answer: of an event stream, the last event."""
    if not reply.body:
        return None
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        return orjson.loads(reply.body)
    lines = [line for line in reply.body.splitlines() if line.startswith(b"data: ")]
    return orjson.loads(lines[-1].removeprefix(b"data: "))


@asynccontextmanager
async def prepared(
    tmp_path: Path, seed: int, *, transport: Literal["http", "stdio", "sse"] = "http"
) -> AsyncIterator[Ground]:
    """Serving; when the block ends, the proxy must have lived until then and have had no crash.
    Over another transport than HTTP, the tool servers are hostile by themselves.
    """
    address = f"127.0.0.1:{free_port()}"
    env = environment(
        tmp_path / "s",
        BEHAVRY_OUTBOX_DURABILITY="process",
        BEHAVRY_PROXY_HTTP_LISTEN=address,
        BEHAVRY_PROXY_DECISION_TIMEOUT_MS="10000",  # a busy machine is no denial here
    )
    settings = load(ProxySettings, env)
    witness, issuer = Witness(seed), Issuer()
    async with (
        witnessing(witness, "modern") as new,
        witnessing(witness, "legacy") as old,
        hostile_sse.speaking(seed) as stream,
    ):
        servers = {
            "new": http_server(new, grants=GRANTS), "old": http_server(old, id="", grants=GRANTS),
        }  # fmt: skip
        for name in SERVERS:
            if transport == "stdio":
                servers[name] |= {"transport": "stdio", "urls": [], "stdio": name}
            elif transport == "sse":
                servers[name] |= {"transport": "sse", "urls": [stream]}
        if transport == "stdio":
            _command_lines(settings.stdio_file, seed)
        fake = FakeAuthorizer(snapshot(servers), issuer.jwks())
        async with (
            serving(fake, settings.authorizer_address, settings.peers_dir),
            _proxy(env, f"http://{address}", tmp_path / "log"),
        ):
            ground = Ground(
                url=f"http://{address}",
                token=issuer.token(),
                seed=seed,
                witness=witness,
                settings=settings,
                digester=Digester.load(settings.digest_keys),
            )
            await _approved(ground, fake)
            yield ground
    said = (tmp_path / "log").read_text().splitlines()
    assert [] == [line for line in said if any(crash in line for crash in _CRASHES)]


def _command_lines(file: Path, seed: int) -> None:
    for name, era in zip(SERVERS, ("modern", "legacy"), strict=True):
        arguments = ["-m", "tests.attacks.mcp.hostile_child", era, str(seed)]
        entry = {"command": sys.executable, "args": arguments, "cwd": str(ROOT)}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in entry.items()]
        with file.open("a") as made:
            made.write(f"[{name}]\n{''.join(lines)}")
    file.chmod(0o600)


@asynccontextmanager
async def _proxy(env: dict[str, str], url: str, log: Path) -> AsyncIterator[None]:
    # As `behavry up` starts it: what gRPC does at a fork crashes children.
    fork = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
    everything = {**os.environ, **env, **fork, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen"}
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.proxy",
            cwd=ROOT, env=everything, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        await until_true(lambda: _ready(url), seconds=30)
        yield
        assert process.returncode is None, log.read_text()[-2000:]
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(20):
                await process.wait()


async def _ready(url: str) -> bool:
    try:
        async with connected(url) as http:
            return (await http.ask(request(f"{url}/readyz", [], verb="GET"))).status == 200
    except OSError:
        return False


async def _approved(ground: Ground, fake: FakeAuthorizer) -> None:
    """Both servers' tools are known and approved, and the proxy has heard of it."""
    listing = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    async with connected(ground.url) as http:
        for server in SERVERS:
            session = await ground.session(http, server, {})
            sent = request(ground.where(server), ground.lines(session=session), listing)
            await http.ask(sent)
            await fake.approve(server, *mutations.TOOLS)

            async def shown(sent: bytes = sent) -> bool:
                tools = orjson.loads((await http.ask(sent)).body)["result"]["tools"]
                return len(tools) == len(mutations.TOOLS)

            await until_true(shown)
