"""M-FUZZ: calls in odd spellings and calls with wounds, by the thousand, at a proxy process
between both eras on both sides; and tool servers that answer, ask and tell whatever they like.

Nothing crashes, nothing hangs, and what reaches a tool server is what a second, independent reader
says that the body means: no call that he refuses, and of the others the same values, whose digest
is in the chain. BEHAVRY_FUZZ says how many (`make fuzz`: 100,000); a case is made again from its
seed and number.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import orjson
import pytest

from services.common.ids import TenantId
from tests.attacks.mcp import hostile, mutations, reference
from tests.attacks.mcp.asked import Asked
from tests.attacks.mcp.ground import SERVERS, Ground, message, prepared
from tests.attacks.mcp.mutations import Case
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import TENANT
from tests.fakes.raw_http import Reply, connected

CASES: Final = int(os.environ.get("BEHAVRY_FUZZ", "10000"))
SEED: Final = int(os.environ.get("BEHAVRY_FUZZ_SEED", "20261121"))
CALLERS: Final = 8
#: Members of params that are not forwarded as they came.
APART: Final = {"name", "arguments", "_meta"}


@dataclass(slots=True)
class Expected:
    """`code`: refused as no message. `call`: runs as this. Neither: anything but a run."""

    code: int | None = None
    call: reference.Request | None = None


def expected(case: Case) -> Expected:
    try:
        read = reference.read(case.body)
    except reference.Refused as refused:
        return Expected(code=refused.code)
    params = read.params
    runs = (
        (read.kind, read.method) == ("request", "tools/call")
        and params.get("name") in mutations.TOOLS
        and isinstance(params.get("arguments", {}), dict)
        and not {"task", "requestState", "inputResponses"} & params.keys()
    )
    meta = params.get("_meta")
    if case.modern:
        lines = dict(case.headers)
        runs = (
            runs
            and len(lines) == len(case.headers)
            and lines["mcp-name"] in _spellings(params["name"])
            and isinstance(meta, dict)
            and meta.get(wire.VERSION_META) == wire.MODERN
            and isinstance(meta.get(wire.CAPABILITIES_META), dict)
        )
    else:
        runs = runs and not (isinstance(meta, dict) and wire.VERSION_META in meta)
    return Expected(call=read if runs else None)


def _spellings(name: str) -> tuple[str, str]:
    """Of a header."""
    return name, f"=?base64?{base64.b64encode(name.encode()).decode()}?="


@dataclass(slots=True)
class Mutants:
    """Callers that share the cases among them."""

    ground: Ground
    count: int
    digests: Counter[str] = field(default_factory=Counter)
    #: Of what agents say of their calls.
    metas: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    _next: int = 0

    async def caller(self) -> None:
        """Takes the next case until there is none."""
        ground = self.ground
        async with connected(ground.url) as http:
            sessions = {server: await ground.session(http, server, {}) for server in SERVERS}
            while self._next < self.count:
                case = mutations.case(ground.seed, self._next, SERVERS)
                self._next += 1
                session = "" if case.modern else sessions[case.server]
                self._judge(case, await ground.ask(http, case, session))

    def _judge(self, case: Case, reply: Reply) -> None:
        named, wanted, answer = self.ground.named, expected(case), message(reply)
        if wanted.code is not None:
            self.kinds[f"refused {wanted.code}"] += 1
            code = answer.get("error", {}).get("code")
            assert (400, wanted.code) == (reply.status, code), named(case, str(answer))
            return
        number = _number(answer)
        if wanted.call is None:
            self.kinds["no run"] += 1
            assert number is None, named(case, "ran")
            return
        self.kinds["run"] += 1
        assert number is not None, named(case, f"did not run: {answer}")
        assert reference.same(wanted.call.id, answer["id"]), named(case, "another's answer")
        self._compare(case, wanted.call, self.ground.witness.calls[number])

    def _compare(self, case: Case, meant: reference.Request, sent: bytes) -> None:
        """Forwarded is decided: the same values, and the digest of the very bytes."""
        named, reader = self.ground.named, reference.Reader(sent)
        assert not reader.doubled, named(case, "a key twice upstream")
        params = reader.root.value["params"].value
        arguments = params["arguments"]
        assert params["name"].plain() == meant.params["name"], named(case, "another tool")
        wanted = meant.params.get("arguments", {})
        assert reference.same(wanted, arguments.plain()), named(case, "other arguments")
        beside = {key: node for key, node in params.items() if key not in APART}
        known = {key: value for key, value in meant.params.items() if key not in APART}
        found = {key: node.plain() for key, node in beside.items()}
        assert reference.same(known, found), named(case, "other members")
        self._compare_meta(case, meant, reader)
        decided = reader.text[arguments.start : arguments.end]
        if beside:
            members = (
                f"{orjson.dumps(key).decode()}:{reader.text[node.start : node.end]}"
                for key, node in sorted(beside.items())
            )
            decided = f"[{decided},{{{','.join(members)}}}]"
        make, tenant = self.ground.digester.make, TenantId(TENANT)
        self.digests[make(tenant, "arguments", decided.encode())] += 1

    def _compare_meta(self, case: Case, meant: reference.Request, reader: reference.Reader) -> None:
        """What the agent says of its call goes up with it, and its bytes are digested as well."""
        named, found = self.ground.named, reader.root.value["params"].value.get("_meta")
        nodes = found.value if found is not None else {}
        assert not [key for key in nodes if key.startswith("com.behavry/")], named(case, "ours")
        nodes = {key: node for key, node in nodes.items() if not _between(key)}
        given = meant.params.get("_meta")
        known = given.items() if isinstance(given, dict) else ()
        wanted = {key: value for key, value in known if not _between(key)}
        said = {key: node.plain() for key, node in nodes.items()}
        assert reference.same(wanted, said), named(case, "another _meta")
        if nodes:
            members = ",".join(
                f"{orjson.dumps(key).decode()}:{reader.text[node.start : node.end]}"
                for key, node in sorted(nodes.items())
            )
            make = self.ground.digester.make
            self.metas[make(TenantId(TENANT), "meta", f"{{{members}}}".encode())] += 1


def _between(key: str) -> bool:
    """Members of `_meta` between an agent and us, or between us and a tool server."""
    return key in {"progressToken", "traceparent", "tracestate", "baggage"} or key.startswith(
        ("com.behavry/", "io.modelcontextprotocol/")
    )


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


@pytest.mark.parametrize("seed", [SEED])
async def test_whatever_becomes_of_a_body_what_runs_is_what_was_decided(
    tmp_path: Path, seed: int
) -> None:
    async with prepared(tmp_path, seed) as ground:
        mutants = Mutants(ground, CASES)
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(mutants.caller())

    print(f"seed {seed}: {dict(mutants.kinds)}, {dict(ground.witness.others)}")
    assert CASES == sum(mutants.kinds.values())
    assert mutants.kinds["run"] == len(ground.witness.calls)
    assert min(mutants.kinds.values()) > CASES // 100, "each kind has its share"
    intents = ground.records("call.intent")
    assert mutants.digests == Counter(one["arguments"]["digest"] for one in intents)
    assert mutants.metas == Counter(one["meta"]["digest"] for one in intents if "meta" in one)
    assert mutants.metas
    outcomes = Counter(one["decision"] for one in ground.records("call.outcome"))
    assert outcomes == Counter(one["id"] for one in intents)


@pytest.mark.parametrize("seed", [SEED])
async def test_whatever_a_tool_server_says_its_callers_get_one_answer_each_in_time(
    tmp_path: Path, seed: int
) -> None:
    async with prepared(tmp_path, seed) as ground:
        ground.witness.hostility = lambda number, honest: hostile.answer(seed, number, honest)
        ground.witness.stream = lambda number: hostile.stream(seed, number)
        asked = await _asked(ground, CASES // 5)

    _is_whole(ground, asked)


@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("transport", ["stdio", "sse"])
async def test_whatever_is_said_on_one_line_for_all_each_call_gets_its_answer(
    tmp_path: Path, seed: int, transport: Literal["stdio", "sse"]
) -> None:
    async with prepared(tmp_path, seed, transport=transport) as ground:
        asked = await _asked(ground, CASES // 20)

    _is_whole(ground, asked)


async def _asked(ground: Ground, count: int) -> Asked:
    asked = Asked(ground, count)
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(asked.caller())
    return asked


def _is_whole(ground: Ground, asked: Asked) -> None:
    """Each call has its answer and its records, and many of them got what they called for."""
    numbers = [_number(answer) for answer in asked.answers]
    kinds = Counter(
        "served" if number is not None else _reason(answer)
        for number, answer in zip(numbers, asked.answers, strict=True)
    )
    others = dict(ground.witness.others)
    print(f"seed {ground.seed}: {dict(kinds)}, {dict(asked.seen)}, {others}")
    assert asked.count == len(asked.answers)
    assert kinds["served"] > asked.count // 5
    intents = Counter(one["id"] for one in ground.records("call.intent"))
    outcomes = Counter(one.get("decision") for one in ground.records("call.outcome"))
    assert asked.count // 2 < len(intents)
    assert intents == Counter({one: outcomes[one] for one in intents})
