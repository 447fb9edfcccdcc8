"""The engine sees only what it needs: no decision changes, its bytes at least halve, and each path
that is read is needed.
"""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.authorizer import envelope
from services.authorizer.engine.prune import prune, prune_raw
from services.common.rego.references import minimal
from tests.contract.engines.cases import Case, load, seen
from tests.contract.engines.conftest import Bench
from tests.fakes.bundle import Made, Policy, made, signing_key
from tests.fakes.envelopes import TENANT, example
from tests.promises import promise

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = load("grants", "aggregation", "language", "failures")
BENCH_RULES = Path(__file__).parents[2] / "perf" / "policies_100.json"
#: Read in a rule that only ever sees another input (`with input as`): counted, to be safe.
NOT_INPUT = {("tool",)}
Reads = tuple[tuple[str, ...], ...]


async def answers(bench: Bench, bundle: Made, case: Case, reads: Reads) -> list[object]:
    deadline = asyncio.get_running_loop().time() + 5
    revision = bundle.bundle.revision
    said = await bench.engine.evaluate(
        TENANT, revision, [prune(ask.envelope(), reads) for ask in case.asks], deadline
    )
    return [seen(one, ask.expect) for one, ask in zip(said, case.asks, strict=True)]


@promise("engine:sees-what-is-read")
async def test_without_any_one_read_path_some_decision_changes(bench: Bench) -> None:
    """Each path that some case reads is taken away in turn: at least one case must notice."""
    if bench.engine.name != "embedded":
        pytest.skip("what is read does not depend on the engine")
    noticed: dict[tuple[str, ...], bool] = {}
    for case in CASES:
        bundle = await bench.offer({TENANT: case.policies})
        whole = await answers(bench, bundle, case, bundle.reads[TENANT])
        for path in bundle.reads[TENANT]:
            rest = tuple(other for other in bundle.reads[TENANT] if other != path)
            changed = await answers(bench, bundle, case, rest) != whole
            noticed[path] = noticed.get(path, False) or changed

    assert len(noticed) > 25
    assert set() == {path for path, changed in noticed.items() if not changed} - NOT_INPUT


async def test_the_engine_gets_less_than_half_of_the_bytes() -> None:
    rules = json.loads(BENCH_RULES.read_text())["policies"]
    policies = [Policy(rule["key"], rule["source"]) for rule in rules]
    reads = made({TENANT: policies}, serial=1, key=signing_key()).reads[TENANT]
    arguments = {"kind": "bench", "text": "x" * 900}
    full = envelope.decode(json.dumps(example({"request.arguments": arguments})).encode())

    assert len(prune(full, reads)) * 2 <= len(envelope.encode(full))


def paths() -> list[tuple[str, ...]]:
    """Every path into the sample, whole parts included."""

    def below(node: object, at: tuple[str, ...]) -> list[tuple[str, ...]]:
        inner = node.items() if isinstance(node, dict) else ()
        return [at, *(path for name, value in inner for path in below(value, (*at, name)))]

    return below(example(), ())


PATHS = paths()


def value_at(document: object, path: tuple[str, ...]) -> object:
    for step in path:
        if not isinstance(document, dict) or step not in document:
            return "missing"
        document = document[step]
    return document


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reads=st.sets(st.sampled_from(PATHS), max_size=8), omitted=st.booleans())
async def test_what_is_read_is_there_and_nothing_else(
    reads: set[tuple[str, ...]], omitted: bool
) -> None:
    document = example({"request.arguments": None} if omitted else {})
    raw = json.dumps(document).encode()
    pruned = json.loads(prune(envelope.decode(raw), tuple(sorted(reads))))

    for path in reads:
        assert value_at(document, path) == value_at(pruned, path)
    kept = minimal(reads)
    for path in PATHS[1:]:
        near = any(path[: len(read)] == read or read[: len(path)] == path for read in kept)
        if not near:
            assert "missing" == value_at(pruned, path)


async def test_an_argument_that_no_policy_reads_never_leaves() -> None:
    full = envelope.decode(
        json.dumps(example({"request.arguments": {"path": "/x", "password": "hunter2"}})).encode()
    )
    pruned = prune(full, (("request", "arguments", "path"), ("request", "tool")))

    assert {"request": {"tool": "read_file", "arguments": {"path": "/x"}}} == json.loads(pruned)
    assert b"hunter2" in prune(full, (("request", "arguments"),))


async def test_a_malformed_canary_is_cut_as_an_envelope_would_be() -> None:
    document = example()
    del document["agent"]
    cut = prune_raw(json.dumps(document).encode(), (("request", "tool"), ("agent", "permissions")))

    assert {"request": {"tool": "read_file"}} == json.loads(cut)
    assert document == json.loads(prune_raw(json.dumps(document).encode(), ((),)))
