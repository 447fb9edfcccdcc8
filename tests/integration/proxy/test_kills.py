"""The proxy is killed under traffic: the tool server's own ledger, the clients' answers and the
outbox are compared afterwards.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from behavry.audit.v1 import audit_pb2
from services.common.outbox.files import DiskFiles
from services.common.outbox.recovery import read_all
from services.common.outbox.segment import scan
from services.common.settings import load
from services.proxy.settings import ProxySettings
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import FakeAuthorizer, serving, snapshot
from tests.fakes.children import ROOT
from tests.fakes.gateway import (
    BOTH,
    MODERN_META,
    Issuer,
    environment,
    http_server,
    modern_request,
    until_true,
)
from tests.fakes.ports import free_port
from tests.fakes.tool_server import ToolServer

ROUNDS = 4
CALLERS = 6


@dataclass
class Traffic:
    """Callers that never give up; each call has a name of its own."""

    url: str
    token: str
    acknowledged: list[str] = field(default_factory=list)
    _number: int = 0
    _stop: bool = False

    async def caller(self, http: aiohttp.ClientSession) -> None:
        headers = {
            "authorization": f"Bearer {self.token}", "content-type": "application/json",
            "accept": BOTH, "mcp-protocol-version": wire.MODERN, "mcp-method": "tools/call",
            "mcp-name": "read_note",
        }  # fmt: skip
        while not self._stop:
            self._number += 1
            name = f"c{self._number}"
            params = {"name": "read_note", "arguments": {"call": name}, "_meta": MODERN_META}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            try:
                async with http.post(self.url, json=body, headers=headers) as response:
                    answer = orjson.loads(await response.read())
            except (aiohttp.ClientError, OSError):
                continue
            if "result" in answer and not answer["result"].get("isError"):
                self.acknowledged.append(name)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        self._stop = False
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self.caller(http))
            try:
                yield
            finally:
                self._stop = True


async def ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as response:
            return response.status == 200
    except OSError:
        return False


async def test_no_tool_runs_without_an_intent_and_no_acknowledged_call_is_lost(
    tmp_path: Path, tools: ToolServer
) -> None:
    assert tools.url is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(tmp_path / "s", BEHAVRY_PROXY_HTTP_LISTEN=f"127.0.0.1:{port}")
    env["BEHAVRY_OUTBOX_DURABILITY"] = "power"
    settings = load(ProxySettings, env)
    issuer = Issuer()
    fake = FakeAuthorizer(snapshot({"notes": http_server(tools.url)}), issuer.jwks())
    traffic = Traffic(f"{url}/mcp/v1/notes", issuer.token())
    everything = {**os.environ, **env, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen"}
    async with serving(fake, settings.authorizer_address, settings.peers_dir):
        for round_number in range(ROUNDS + 1):
            process = subprocess.Popen(
                [sys.executable, "-m", "services.proxy"],
                cwd=ROOT, env=everything, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await until_true(lambda: ready(url), seconds=20)
                wanted = len(traffic.acknowledged) + 40
                last = round_number == ROUNDS
                async with traffic.flowing():
                    if round_number == 0:
                        await fake.approve("notes", "read_note")

                    async def enough(wanted: int = wanted) -> bool:
                        return len(traffic.acknowledged) >= wanted

                    await until_true(enough, seconds=20)
                    if not last:  # in the middle of calls
                        process.send_signal(signal.SIGKILL)
                        process.wait(10)
            finally:
                process.terminate()
                process.wait(15)

    records = [orjson.loads(one.body) for one in stored(settings.outbox_dir)]
    intents = {one["id"] for one in records if one["type"] == "call.intent"}
    ends = Counter(
        one["decision"]
        for one in records
        if one["type"] in {"call.outcome", "call.outcome_unknown"}
    )
    boots = [one for one in records if one["type"] == "source.opened"]
    assert ROUNDS + 1 == len(boots)
    assert len(intents) >= len(set(tools.ran()))  # ran is a subset of the intents, by number
    assert len(tools.ran()) == len(set(tools.ran()))  # none ran twice
    assert set(traffic.acknowledged) <= set(tools.ran())
    assert intents == set(ends)
    assert {1} == set(ends.values())
    unknown = sum(one["type"] == "call.outcome_unknown" for one in records)
    assert len(intents) - unknown >= len(traffic.acknowledged)


async def test_a_held_call_outlives_a_killed_proxy_and_runs_once(
    tmp_path: Path, tools: ToolServer
) -> None:
    """What the agent was told of is in the outbox; its approval serves the same call."""
    assert tools.url is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(tmp_path / "s", BEHAVRY_PROXY_HTTP_LISTEN=f"127.0.0.1:{port}")
    env["BEHAVRY_OUTBOX_DURABILITY"] = "power"
    settings = load(ProxySettings, env)
    issuer = Issuer()
    fake = FakeAuthorizer(snapshot({"notes": http_server(tools.url)}), issuer.jwks())
    fake.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")
    caller = {"authorization": f"Bearer {issuer.token()}", "accept": BOTH}
    listing, list_headers = modern_request("tools/list", {}, {}, {})
    call, call_headers = modern_request(
        "tools/call", {"name": "write_note", "arguments": {"call": "c"}}, {}, {}
    )

    @asynccontextmanager
    async def posted(
        body: dict[str, Any], headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        where = f"{url}/mcp/v1/notes"
        async with (
            aiohttp.ClientSession() as http,
            http.post(where, json=body, headers={**caller, **headers}) as response,
        ):
            yield response

    async with serving(fake, settings.authorizer_address, settings.peers_dir):
        async with process(env, url) as first:
            async with posted(listing, list_headers) as response:
                await response.read()
            await fake.approve("notes", "write_note")
            async with posted(call, call_headers) as held:
                assert b":\n" == await held.content.readline()  # it waits
                first.send_signal(signal.SIGKILL)
                first.wait(10)
        (escalation,) = fake.tickets
        fake.settle(escalation, "approved")
        async with process(env, url):
            async with posted(call, call_headers) as response:
                answer = orjson.loads(await response.read())
            async with posted(call, call_headers) as response:
                assert "text/event-stream" == response.content_type  # used up: it waits again

    assert answer["result"]["isError"] is False
    assert ["c"] == tools.ran()
    records = [orjson.loads(one.body) for one in stored(settings.outbox_dir)]
    told = [one for one in records if one["type"] in {"call.held", "call.intent"}]
    assert ["call.held", "call.intent", "call.held"] == [one["type"] for one in told]
    assert escalation == told[0]["approval"]["escalation"] == told[1]["approval"]["escalation"]


@asynccontextmanager
async def process(env: dict[str, str], url: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A proxy that serves, until the block ends."""
    everything = {**os.environ, **env, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen"}
    made = subprocess.Popen(
        [sys.executable, "-m", "services.proxy"],
        cwd=ROOT, env=everything, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until_true(lambda: ready(url), seconds=20)
        yield made
    finally:
        made.terminate()
        made.wait(15)


def stored(directory: Path) -> list[audit_pb2.Entry]:
    made = []
    for path in sorted(directory.glob("w*/*.seg")):
        data = read_all(path, path.stat().st_size, DiskFiles())
        made += [audit_pb2.StoredRecord.FromString(one.stored).entry for one in scan(data).frames]
    return made
