"""core-fail-closed, the engine's side: whatever comes back that is not a well-formed answer of the
asked revision is no answer. Each shape has a twin that is allowed over the same wire.

What policies can do wrong is in cases/failures.yaml, judged on both engines by test_parity.py.
"""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import Said
from services.authorizer.engine.embedded import Embedded, embedded_engine
from services.authorizer.engine.opa import Opa, opa_engine
from services.authorizer.engine.opa_feed import OpaFeed
from services.authorizer.engine.protocol import EngineBundle, EngineState
from services.common.telemetry.logging import get_log
from tests.fakes import rego_child
from tests.fakes.envelopes import TENANT
from tests.fakes.opa_wire import WireOpa, http, wire_opa
from tests.promises import promise

REVISION = "7-0123456789abcdef"
ALLOW = {"result": "allow", "code": "ok", "reason": "fine", "obligations": []}
DENY = {**ALLOW, "result": "deny"}
GOOD: dict[str, Any] = {"result": "allow", "verdicts": [["grants", ALLOW]]}
WELL = [{"i": 0, "decision": GOOD}]

Shape = Callable[[WireOpa], bytes | None]


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [{"i": 0, "decision": {**GOOD, **changes}}]


def verdict(**changes: Any) -> list[dict[str, Any]]:
    return entry(verdicts=[["grants", {**ALLOW, **changes}]])


#: What OPA's socket may say, by name; None is silence.
SHAPES: dict[str, Shape] = {
    "silence": lambda _: None,
    "nothing and the end": lambda _: b"",
    "no HTTP": lambda _: b"hello\r\n\r\n",
    "half a status line": lambda _: b"HTTP/1.1 2",
    "a body cut off": lambda opa: opa.says(WELL)[:-7],
    "a chunk that is none": lambda _: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "an error": lambda _: http(b'{"code": "internal_error"}', "500 Internal Server Error"),
    "an error with a good body": lambda opa: http(
        opa.says(WELL).split(b"\r\n\r\n")[1], "500 Internal Server Error"
    ),
    "not found": lambda _: http(b"{}", "404 Not Found"),
    "a redirect": lambda _: http(b"", "302 Found", "Location: http://127.0.0.1/\r\n"),
    "no content": lambda _: http(b"", "204 No Content"),
    "an empty body": lambda _: http(b""),
    "no JSON": lambda _: http(b"allow"),
    "JSON that is a string": lambda _: http(b'"allow"'),
    "bytes that are no text": lambda _: http(b'{"result": "\xff\xfe"}'),
    "JSON without end": lambda _: http(b"[" * 100_000),
    "no result": lambda opa: http(json.dumps(opa.provenance()).encode()),
    "a null result": lambda opa: opa.says(None),
    "a true result": lambda opa: opa.says(True),
    "a bare decision": lambda opa: opa.says(GOOD),
    "no entry": lambda opa: opa.says([]),
    "another index": lambda opa: opa.says([{"i": 1, "decision": GOOD}]),
    "a negative index": lambda opa: opa.says([{"i": -1, "decision": GOOD}]),
    "a text for an index": lambda opa: opa.says([{"i": "0", "decision": GOOD}]),
    "an index twice": lambda opa: opa.says(WELL + WELL),
    "an index too many": lambda opa: opa.says([*WELL, {"i": 1, "decision": GOOD}]),
    "an entry with another key": lambda opa: opa.says([{**WELL[0], "ok": True}]),
    "an entry without a decision": lambda opa: opa.says([{"i": 0}]),
    "a null decision": lambda opa: opa.says([{"i": 0, "decision": None}]),
    "a word for a decision": lambda opa: opa.says([{"i": 0, "decision": "allow"}]),
    "a true decision": lambda opa: opa.says([{"i": 0, "decision": True}]),
    "a result alone": lambda opa: opa.says([{"i": 0, "decision": {"result": "allow"}}]),
    "verdicts alone": lambda opa: opa.says([{"i": 0, "decision": {"verdicts": WELL}}]),
    "another key in the decision": lambda opa: opa.says(entry(fail_open=True)),
    "an allow that no verdict gives": lambda opa: opa.says(entry(verdicts=[])),
    "an allow over a deny": lambda opa: opa.says(entry(verdicts=[["strict", DENY]])),
    "a deny beside the allow": lambda opa: opa.says(
        entry(verdicts=[["grants", ALLOW], ["strict", DENY]])
    ),
    "an unknown result": lambda opa: opa.says(entry(result="permit")),
    "a result in capitals": lambda opa: opa.says(entry(result="ALLOW")),
    "a number for a result": lambda opa: opa.says(entry(result=1)),
    "an unknown verdict": lambda opa: opa.says(verdict(result="maybe")),
    "a verdict with another key": lambda opa: opa.says(verdict(expires=3)),
    "a code that is none": lambda opa: opa.says(verdict(code="Rule 7!")),
    "a reason too long": lambda opa: opa.says(verdict(reason="x" * 257)),
    "obligations that are none": lambda opa: opa.says(verdict(obligations="step_up")),
    "an unknown obligation": lambda opa: opa.says(verdict(obligations=[{"type": "sing"}])),
    "a policy without a name": lambda opa: opa.says(entry(verdicts=[["", ALLOW]])),
    "a policy's name too long": lambda opa: opa.says(entry(verdicts=[["p" * 81, ALLOW]])),
    "a pair of three": lambda opa: opa.says(entry(verdicts=[["grants", ALLOW, ALLOW]])),
    "verdicts by the thousand": lambda opa: opa.says(
        entry(verdicts=[[f"p{n}", ALLOW] for n in range(2000)])
    ),
    "no provenance": lambda _: http(json.dumps({"result": WELL}).encode()),
    "provenance without the bundle": lambda _: http(
        json.dumps({"result": WELL, "provenance": {"bundles": {}}}).encode()
    ),
    "an older revision": lambda opa: opa.says(WELL, **opa.provenance("6-0123456789abcdef")),
    "no revision": lambda opa: opa.says(WELL, **opa.provenance("")),
}


@asynccontextmanager
async def asked_over_the_wire(directory: Path) -> AsyncIterator[tuple[WireOpa, Opa]]:
    socket = directory / "opa.sock"
    async with (
        wire_opa(socket, REVISION) as wire,
        opa_engine(f"unix:{socket}", OpaFeed("token"), get_log("test")) as engine,
    ):
        yield wire, engine


async def ask(engine: Opa | Embedded, items: int = 1, within_s: float = 1) -> list[Said]:
    deadline = asyncio.get_running_loop().time() + within_s
    return await engine.evaluate(TENANT, REVISION, [b"{}"] * items, deadline)


async def until_up(engine: Opa) -> None:
    changed = asyncio.Event()
    engine.on_state(lambda _: changed.set())
    if engine.state is EngineState.DOWN:
        await asyncio.wait_for(changed.wait(), 5)


def test_the_shapes_are_many() -> None:
    assert len(SHAPES) >= 30


@pytest.mark.parametrize("name", SHAPES)
@promise("engine:answers-fail-closed")
async def test_what_is_no_answer_allows_nothing_and_its_twin_is_allowed(
    name: str, tmp_path: Path
) -> None:
    async with asked_over_the_wire(tmp_path) as (wire, engine):
        wire.answer = SHAPES[name](wire)
        wire.close_after = name in {"nothing and the end", "half a status line", "a body cut off"}
        (said,) = await ask(engine)
        wire.answer, wire.close_after = wire.says(WELL), False
        (twin,) = await ask(engine)

    assert isinstance(said, EngineFailure)
    assert isinstance(twin, EngineAnswer)
    assert twin.decision.result == "allow"


async def test_random_bytes_allow_nothing(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with asked_over_the_wire(tmp_path) as (wire, engine):
        good = wire.says(WELL)
        wire.close_after = True
        for _ in range(200):
            noise = bytearray(good)
            for _ in range(chance.randint(1, 20)):
                noise[chance.randrange(len(noise))] = chance.randrange(256)
            wire.answer = bytes(noise) if chance.random() < 0.7 else chance.randbytes(300)
            (said,) = await ask(engine)

            if isinstance(said, EngineAnswer):  # the noise spared what counts
                assert [("grants",), "allow"] == [said.decision.policies, said.decision.result]


async def test_an_answer_in_another_order_is_told_apart(tmp_path: Path) -> None:
    denied = {"result": "deny", "verdicts": [["strict", DENY]]}
    async with asked_over_the_wire(tmp_path) as (wire, engine):
        wire.answer = wire.says([{"i": 1, "decision": denied}, {"i": 0, "decision": GOOD}])
        first, second = await ask(engine, items=2)

    assert isinstance(first, EngineAnswer)
    assert isinstance(second, EngineAnswer)
    assert ["allow", "deny"] == [first.decision.result, second.decision.result]


async def test_nobody_listening_is_down_at_once_and_denies(tmp_path: Path) -> None:
    told: list[EngineState] = []
    async with asked_over_the_wire(tmp_path) as (wire, engine):
        engine.on_state(told.append)
        await until_up(engine)
        wire.answer = wire.says(WELL)
        assert isinstance((await ask(engine))[0], EngineAnswer)
        (tmp_path / "opa.sock").unlink()
        for writer in list(wire.open):
            writer.transport.abort()
        (said,) = await ask(engine)

        assert isinstance(said, EngineFailure)
        assert "policy_unavailable" == said.code
        assert [EngineState.UP, EngineState.DOWN] == told


async def test_slow_and_failing_evaluations_never_make_it_down(tmp_path: Path) -> None:
    async with asked_over_the_wire(tmp_path) as (wire, engine):
        await until_up(engine)
        for shape in ("silence", "an error", "no JSON"):
            wire.answer = SHAPES[shape](wire)
            (said,) = await ask(engine)

            assert isinstance(said, EngineFailure)
            assert engine.state is EngineState.UP


# The embedded engine's wire: frames of a child.

SAID = [["grants", [ALLOW]]]


def frame(**changes: Any) -> str:
    return json.dumps({"id": "$ID", "items": [{"said": SAID}], **changes}).replace('"$ID"', "$ID")


CHILD_SHAPES: dict[str, dict[str, Any]] = {
    "silence": {"frames": [], "then": "stay"},
    "the end": {"frames": [], "then": "exit"},
    "no JSON": {"frames": ["allow"], "then": "stay"},
    "random bytes": {"frames": ["raw:00000004deadbeef"], "then": "stay"},
    "half a frame": {"frames": ["raw:000000ff7b"], "then": "exit"},
    "a frame without end": {"frames": ["raw:ffffffff7b7b"], "then": "stay"},
    "another id": {"frames": [frame(id=999_999)], "then": "stay"},
    "no items": {"frames": [frame(items=[])], "then": "stay"},
    "an item too many": {"frames": [frame(items=[{"said": SAID}] * 2)], "then": "stay"},
    "an error": {"frames": [frame(items=[{"error": "engine_error"}])], "then": "stay"},
    "an error with verdicts": {
        "frames": [frame(items=[{"error": "x", "said": SAID}])],
        "then": "stay",
    },
    "a refusal": {"frames": [frame(items=[], refused="revision_mismatch")], "then": "stay"},
    "a word for verdicts": {"frames": [frame(items=[{"said": "allow"}])], "then": "stay"},
    "a verdict for verdicts": {"frames": [frame(items=[{"said": [ALLOW]}])], "then": "stay"},
    "an unknown result": {
        "frames": [frame(items=[{"said": [["p", [{**ALLOW, "result": "yes"}]]]}])],
        "then": "stay",
    },
    "a verdict with another key": {
        "frames": [frame(items=[{"said": [["p", [{**ALLOW, "x": 1}]]]}])],
        "then": "stay",
    },
    "nothing said": {"frames": [frame(items=[{}])], "then": "stay"},
}


@pytest.mark.parametrize("name", CHILD_SHAPES)
async def test_what_no_child_should_send_allows_nothing(name: str, tmp_path: Path) -> None:
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(CHILD_SHAPES[name]))
    command = (sys.executable, str(rego_child.__file__), str(shape))
    async with embedded_engine(get_log("test"), command=command) as engine:
        await engine.offer(
            EngineBundle(revision=REVISION, etag="", archive=b"", modules={}, tenants={})
        )
        (said,) = await ask(engine, within_s=0.3)  # as long as it lasts where nothing is said
        shape.write_text(json.dumps({"frames": [frame()], "then": "stay"}))
        (twin,) = await ask(engine)

    assert not isinstance(said, EngineAnswer) or said.decision.result == "deny"
    assert isinstance(twin, EngineAnswer)
    assert twin.decision.result == "allow"
