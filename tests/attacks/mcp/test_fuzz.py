"""M-FUZZ: calls in odd spellings and calls with wounds, by the ten thousand, at a proxy process
between both eras on both sides.

Nothing crashes, nothing hangs, and what reaches a tool server is what a second, independent reader
says that the body means: no call that he refuses, and of the others the same values, whose digest
is in the chain. BEHAVRY_FUZZ says how many (`make fuzz`: 100,000); a case is made again from its
seed and number.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from behavry.audit.v1 import audit_pb2
from services.common.ids import TenantId
from services.common.outbox.digests import Digester
from services.common.outbox.files import DiskFiles
from services.common.outbox.recovery import read_all
from services.common.outbox.segment import scan
from services.common.settings import load
from services.proxy.settings import ProxySettings
from tests.attacks.mcp import hostile, mutations, reference
from tests.attacks.mcp.mutations import Case
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import TENANT, FakeAuthorizer, serving, snapshot
from tests.fakes.children import ROOT
from tests.fakes.gateway import BOTH, Issuer, environment, http_server, until_true
from tests.fakes.raw_http import RawHttp, Reply, connected, request
from tests.fakes.witness import Witness, witnessing

CASES: Final = int(os.environ.get("BEHAVRY_FUZZ", "10000"))
SEED: Final = 20261121
CALLERS: Final = 8
SERVERS: Final = ("new", "old")
#: Members of params that are not forwarded as they came.
APART: Final = {"name", "arguments", "_meta"}


@dataclass(slots=True)
class Expected:
    """`code`: refused as no message. `call`: runs as this. Neither: anything but a run."""

    code: int | None = None
    call: reference.Request | None = None


def expected(case: Case) -> Expected:
    try:
        message = reference.read(case.body)
    except reference.Refused as refused:
        return Expected(code=refused.code)
    params = message.params
    runs = (
        (message.kind, message.method) == ("request", "tools/call")
        and params.get("name") in mutations.TOOLS
        and isinstance(params.get("arguments", {}), dict)
        and not {"task", "requestState", "inputResponses"} & params.keys()
    )
    meta = params.get("_meta")
    if case.modern:
        lines = dict(case.headers)
        names = (params.get("name"), f"=?base64?{_base64(params.get('name'))}?=")
        runs = (
            runs
            and len(lines) == len(case.headers)
            and lines["mcp-name"] in names
            and isinstance(meta, dict)
            and meta.get(wire.VERSION_META) == wire.MODERN
            and isinstance(meta.get(wire.CAPABILITIES_META), dict)
        )
    else:
        runs = runs and not (isinstance(meta, dict) and wire.VERSION_META in meta)
    return Expected(call=message if runs else None)


def _base64(name: Any) -> str:
    known = {one: base64.b64encode(one.encode()).decode() for one in mutations.TOOLS}
    return known.get(name, "?") if isinstance(name, str) else "?"


@dataclass(slots=True)
class Fuzzing:
    url: str
    token: str
    witness: Witness
    seed: int
    digester: Digester
    digests: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    _next: int = 0

    async def caller(self, count: int) -> None:
        """Takes the next case until there is none."""
        async with connected(self.url) as first:
            http, sessions = first, {}
            for server in SERVERS:
                sessions[server] = await self._session(http, server)
            while self._next < count:
                case = mutations.case(self.seed, self._next, SERVERS)
                self._next += 1
                session = () if case.modern else (("mcp-session-id", sessions[case.server]),)
                sent = request(
                    f"{self.url}/mcp/v1/{case.server}",
                    [*self._always(), *case.headers, *session],
                    case.body,
                )
                try:
                    reply = await http.ask(sent)
                except TimeoutError:
                    raise AssertionError(self._named(case, "hangs")) from None
                self._judge(case, reply)

    def _judge(self, case: Case, reply: Reply) -> None:
        wanted = expected(case)
        answer = _message(reply)
        code = answer.get("error", {}).get("code") if isinstance(answer, dict) else None
        assert code != -32603, self._named(case, "crashes")
        if wanted.code is not None:
            self.kinds[f"refused {wanted.code}"] += 1
            assert (400, wanted.code) == (reply.status, code), self._named(case, str(answer))
            return
        number = _number(answer)
        if wanted.call is None:
            self.kinds["no run"] += 1
            assert reply.status in {200, 202, 400, 404}, self._named(case, str(reply.status))
            assert number is None, self._named(case, "ran")
            return
        self.kinds["run"] += 1
        assert number is not None, self._named(case, f"did not run: {answer}")
        assert reference.same(wanted.call.id, answer["id"]), self._named(case, "another's answer")
        self._compare(case, wanted.call, self.witness.calls[number])

    def _compare(self, case: Case, meant: reference.Request, sent: bytes) -> None:
        """Forwarded is decided: the same values, and the digest of the very bytes."""
        reader = reference.Reader(sent)
        assert not reader.doubled, self._named(case, "a key twice upstream")
        params = reader.root.value["params"].value
        arguments = params["arguments"]
        assert params["name"].plain() == meant.params["name"], self._named(case, "another tool")
        wanted = meant.params.get("arguments", {})
        assert reference.same(wanted, arguments.plain()), self._named(case, "other arguments")
        beside = {key: node for key, node in params.items() if key not in APART}
        known = {key: value for key, value in meant.params.items() if key not in APART}
        found = {key: node.plain() for key, node in beside.items()}
        assert reference.same(known, found), self._named(case, "other members")
        if "_meta" in params:
            ours = [key for key in params["_meta"].value if key.startswith("com.behavry/")]
            assert not ours, self._named(case, "our own _meta")
        decided = reader.text[arguments.start : arguments.end]
        if beside:
            members = (
                f"{orjson.dumps(key).decode()}:{reader.text[node.start : node.end]}"
                for key, node in sorted(beside.items())
            )
            decided = f"[{decided},{{{','.join(members)}}}]"
        self.digests[self.digester.make(TenantId(TENANT), "arguments", decided.encode())] += 1

    async def questioner(self, count: int) -> None:
        """Good calls; what comes back is the tool servers' doing."""
        async with connected(self.url) as first:
            http, sessions = first, {}
            for server in SERVERS:
                sessions[server] = await self._session(http, server)
            while self._next < count:
                number = self._next
                self._next += 1
                case = mutations.good(self.seed, number, SERVERS)
                lines = [*self._always(), *case.headers]
                if not case.modern:
                    lines.append(("mcp-session-id", sessions[case.server]))
                where = f"{self.url}/mcp/v1/{case.server}"
                try:
                    reply = await http.ask(request(where, lines, case.body))
                except TimeoutError:
                    raise AssertionError(self._named(case, "hangs")) from None
                answer = _message(reply)
                named = self._named(case, f"{reply.status} {reply.body!r:.2000}")
                assert (200, False) == (reply.status, http.closed), named
                assert (number, "2.0") == (answer["id"], answer["jsonrpc"]), named
                assert ("result" in answer) != ("error" in answer), named
                assert b'"internal error"' not in reply.body, named
                kept = _number(answer)
                self.kinds["served" if kept is not None else _reason(answer)] += 1

    async def _session(self, http: RawHttp, server: str) -> str:
        asked = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "f"}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": asked}
        where = f"{self.url}/mcp/v1/{server}"
        reply = await http.ask(request(where, self._always(), orjson.dumps(body)))
        return reply.headers["mcp-session-id"]

    def _always(self) -> list[tuple[str, str]]:
        return [
            ("host", self.url.removeprefix("http://")),
            ("authorization", f"Bearer {self.token}"),
            ("content-type", "application/json"),
            ("accept", BOTH),
        ]

    def _named(self, case: Case, what: str) -> str:
        return f"seed {self.seed}, case {case.number}: {what}\n{case}"


def _message(reply: Reply) -> Any:
    """The answer: of an event stream, the last event."""
    if not reply.body:
        return None
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        return orjson.loads(reply.body)
    lines = [line for line in reply.body.splitlines() if line.startswith(b"data: ")]
    return orjson.loads(lines[-1].removeprefix(b"data: "))


def _number(answer: Any) -> int | None:
    """Of the call that the witness kept, if this answers one."""
    match answer:
        case {"result": {"content": [{"text": str(text)}, *_]}} if text[1:].isdecimal():
            return int(text[1:])
        case _:
            return None


def _reason(answer: Any) -> str:
    """Why there is no result of the tool's; or that it is the tool server's own word."""
    match answer:
        case {"result": {"_meta": {"com.behavry/decision": {"reason": str(reason)}}}}:
            return reason
        case _:
            return "its own"


@asynccontextmanager
async def fuzzing(tmp_path: Path, seed: int) -> AsyncIterator[tuple[Fuzzing, ProxySettings]]:
    """A proxy process between them; when the block ends, it must have lived until now."""
    address = f"127.0.0.1:{free_port()}"
    env = environment(
        tmp_path / "s", BEHAVRY_OUTBOX_DURABILITY="process", BEHAVRY_PROXY_HTTP_LISTEN=address
    )
    settings = load(ProxySettings, env)
    witness, issuer = Witness(seed), Issuer()
    async with witnessing(witness, "modern") as new, witnessing(witness, "legacy") as old:
        servers = {"new": http_server(new), "old": http_server(old, id="")}
        fake = FakeAuthorizer(snapshot(servers), issuer.jwks())
        async with (
            serving(fake, settings.authorizer_address, settings.peers_dir),
            proxy_process(env, f"http://{address}", tmp_path / "log"),
        ):
            fuzz = Fuzzing(
                url=f"http://{address}",
                token=issuer.token(),
                witness=witness,
                seed=seed,
                digester=Digester.load(settings.digest_keys),
            )
            await prepare(fuzz, fake)
            yield fuzz, settings
    log = (tmp_path / "log").read_text()
    assert not [
        line for line in log.splitlines() if "request_failed" in line or "Traceback" in line
    ]


@asynccontextmanager
async def proxy_process(env: dict[str, str], url: str, log: Path) -> AsyncIterator[None]:
    everything = {**os.environ, **env, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen"}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.proxy"],
            cwd=ROOT, env=everything, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        await until_true(lambda: ready(url), seconds=20)
        yield
        assert process.poll() is None, log.read_text()[-2000:]
    finally:
        process.terminate()
        process.wait(20)


async def ready(url: str) -> bool:
    try:
        async with connected(url) as http:
            return (await http.ask(request(f"{url}/readyz", [], verb="GET"))).status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def prepare(fuzz: Fuzzing, fake: FakeAuthorizer) -> None:
    """Both servers' tools are known and approved, and the proxy has heard of it."""
    async with connected(fuzz.url) as http:
        sessions = [await fuzz._session(http, server) for server in SERVERS]
        assert all(sessions)
        listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for server, session in zip(SERVERS, sessions, strict=True):
            where = f"{fuzz.url}/mcp/v1/{server}"
            lines = [*fuzz._always(), ("mcp-session-id", session)]
            sent = request(where, lines, orjson.dumps(listing))
            await http.ask(sent)
            await fake.approve(server, *mutations.TOOLS)

            async def shown(sent: bytes = sent) -> bool:
                tools = orjson.loads((await http.ask(sent)).body)["result"]["tools"]
                return len(tools) == len(mutations.TOOLS)

            await until_true(shown)


def stored(directory: Path) -> list[dict[str, Any]]:
    made = []
    for path in sorted(directory.glob("w*/*.seg")):
        frames = scan(read_all(path, path.stat().st_size, DiskFiles())).frames
        made += [orjson.loads(audit_pb2.StoredRecord.FromString(one.stored).entry.body)
                 for one in frames]  # fmt: skip
    return made


@pytest.mark.parametrize("seed", [SEED])
async def test_whatever_becomes_of_a_body_what_runs_is_what_was_decided(
    tmp_path: Path, seed: int
) -> None:
    async with fuzzing(tmp_path, seed) as (fuzz, settings), asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(fuzz.caller(CASES))

    print(f"seed {seed}: {dict(fuzz.kinds)}, {dict(fuzz.witness.others)}")
    assert CASES == sum(fuzz.kinds.values())
    assert fuzz.kinds["run"] == len(fuzz.witness.calls)
    assert min(fuzz.kinds.values()) > CASES // 100, "each kind has its share"
    records = stored(settings.outbox_dir)
    intents = [one for one in records if one["type"] == "call.intent"]
    assert fuzz.digests == Counter(one["arguments"]["digest"] for one in intents)
    outcomes = {one["decision"] for one in records if one["type"] == "call.outcome"}
    assert outcomes == {one["id"] for one in intents}


@pytest.mark.parametrize("seed", [SEED])
async def test_whatever_a_tool_server_answers_its_caller_gets_one_answer_in_time(
    tmp_path: Path, seed: int
) -> None:
    count = CASES // 5
    async with fuzzing(tmp_path, seed) as (fuzz, settings):
        fuzz.witness.hostility = lambda number, honest: hostile.answer(seed, number, honest)
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(fuzz.questioner(count))
        print(f"seed {seed}: {dict(fuzz.kinds)}, {dict(fuzz.witness.others)}")

    assert count == sum(fuzz.kinds.values())
    assert fuzz.kinds["served"] > count // 5
    records = stored(settings.outbox_dir)
    intents = Counter(one["id"] for one in records if one["type"] == "call.intent")
    outcomes = Counter(one["decision"] for one in records if one["type"] == "call.outcome")
    assert count <= len(intents)
    assert intents == outcomes
