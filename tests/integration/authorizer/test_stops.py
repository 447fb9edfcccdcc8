"""A running authorizer is stopped, restarted, flooded and cut off from its counts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from behavry.authorizer.v1 import authorizer_pb2 as asked
from behavry.authorizer.v1 import authorizer_pb2_grpc
from behavry.control.v1 import plane_link_pb2 as wire
from services.common.clock import SystemClock
from services.common.rpc.client import dial
from services.control.desired_state import TenantRows
from tests.fakes.asks import FEATURES, SESSION, Decider, ask, reasons, until
from tests.fakes.clock import ManualClock
from tests.fakes.control import AGENT, OTHER_TENANT, SCHEMA_HASH, TENANT, FakeControl, rows
from tests.fakes.peers import identity, make_peers
from tests.fakes.plane_desk import PlaneDesk
from tests.fakes.valkey import running_valkey
from tests.integration.authorizer.conftest import RunningAuthorizer, Start
from tests.integration.authorizer.test_decide import ALLOW, DENY, now_s, until_serial
from tests.integration.authorizer.test_escalations import recorded_types
from tests.promises import promise

#: From the moment that somebody wants it to the first refusal (core.md 10).
AT_MOST_S = 1.0
SECOND = "0199d0d0-0000-7000-8000-00000000000b"
THIRD = "0199d0d0-0000-7000-8000-00000000000c"
TWO_AGENTS = rows(
    agents={
        AGENT: {**rows().agents[AGENT], "class": "bots"},
        SECOND: {**rows().agents[AGENT], "class": "people"},
    },
    classes={"bots": {"critical": True}, "people": {"critical": True}},
)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def desk(state_dir: Path, control: FakeControl) -> AsyncIterator[PlaneDesk]:
    assert control.url
    (state_dir / "run").mkdir(exist_ok=True)
    async with PlaneDesk().serving(state_dir / "run" / "control.sock") as made:
        yield made


def of(agent: str, **changes: Any) -> asked.Ask:
    return ask(caller={"agent_id": agent}, **changes)


def revocation(signal_id: str = "a signal", **parts: Any) -> wire.Revocation:
    """Of the bundle before serial 2."""
    return wire.Revocation(signal_id=signal_id, tenant_id=TENANT, min_serial=2, **parts)


async def shown_status(authorizer: RunningAuthorizer, wanted: str) -> dict[str, str]:
    """The agents' statuses, once proxies see the first one's to be `wanted`."""
    stub = authorizer_pb2_grpc.SnapshotServiceStub(authorizer.proxy.channel)
    watch = stub.Watch(asked.WatchRequest(part="proxy"), metadata=authorizer.proxy.metadata())
    async with asyncio.timeout(5):
        async for message in watch:
            agents = json.loads(message.snapshot)["tenants"][TENANT]["agents"]
            if agents[AGENT]["status"] == wanted:
                watch.cancel()
                return {agent: one["status"] for agent, one in agents.items()}
    raise AssertionError(wanted)


LINK: dict[str, tuple[wire.Stop, list[str]]] = {
    "agent": (wire.Stop(scope="agent", subject=AGENT), ["kill_switch", ""]),
    "class": (wire.Stop(scope="class", subject="bots"), ["kill_switch", ""]),
    "server": (wire.Stop(scope="server", subject="files"), ["kill_switch", "kill_switch"]),
    "another server": (wire.Stop(scope="server", subject="mail"), ["", ""]),
    "tenant": (wire.Stop(scope="tenant"), ["kill_switch", "kill_switch"]),
    "a scope of a newer control": (wire.Stop(scope="city"), ["kill_switch", "kill_switch"]),
}


@promise("stops:at-once")
@pytest.mark.parametrize("scope", LINK)
async def test_a_switch_thrown_over_the_link_stops_within_a_second_what_it_names(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start, scope: str
) -> None:
    stop, expected = LINK[scope]
    control.publish(TWO_AGENTS, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await desk.until_connected(1)
        assert ["", ""] == await reasons(authorizer.decider, of(AGENT), of(SECOND))
        desk.revoke(signal := revocation(stops=[stop]))
        told = await asyncio.wait_for(authorizer.decider.revoked.get(), AT_MOST_S)
        took_s = await until(authorizer.decider, expected, lambda: of(AGENT), lambda: of(SECOND))
        await desk.until_acknowledged(signal)

    assert TENANT == told.tenant_id
    assert ([AGENT] if scope in {"agent", "class"} else []) == list(told.agent_ids)
    assert took_s <= AT_MOST_S


async def test_many_revocations_at_once_are_all_in_effect_within_a_second_and_acknowledged(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start, state_dir: Path
) -> None:
    control.publish(TWO_AGENTS, now_s=now_s(clock))
    signals = [revocation(f"signal {n}", session_ids=[f"session {n}"]) for n in range(300)]
    last = {"session_id": "session 299"}
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await desk.until_connected(1)
        for signal in signals:
            desk.revoke(signal)
        took_s = await until(authorizer.decider, ["session_revoked"], lambda: ask(caller=last))
        await desk.until_acknowledged(*signals)

    kept = json.loads((state_dir / "bundles" / "revocations.json").read_bytes())
    assert took_s <= AT_MOST_S
    assert {signal.signal_id for signal in signals} == {one["signal_id"] for one in kept["signals"]}


async def test_a_bundle_gives_back_what_the_link_stopped_and_holds_what_it_says_itself(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(TWO_AGENTS, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await desk.until_connected(1)
        desk.revoke(revocation(stops=[wire.Stop(scope="tenant")]))
        await until(authorizer.decider, ["kill_switch"], lambda: of(SECOND))
        stopped = replace(TWO_AGENTS, stops=[{"scope": "class", "subject": "bots"}])
        control.publish(stopped, now_s=now_s(clock))
        await until_serial(authorizer, 2)
        held = await reasons(authorizer.decider, of(AGENT), of(SECOND))
        control.publish(TWO_AGENTS, now_s=now_s(clock))
        await until_serial(authorizer, 3)
        released = await reasons(authorizer.decider, of(AGENT), of(SECOND))

    assert ["kill_switch", ""] == held
    assert ["", ""] == released


def local(*stops: dict[str, str]) -> bytes:
    return json.dumps({"version": 1, "stops": stops}).encode()


def _unreadable(path: Path) -> None:
    path.mkdir()


FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "an agent": (
        lambda path: path.write_bytes(local({"scope": "agent", "subject": AGENT})),
        ["kill_switch", ""],
    ),
    "an empty file": (lambda path: path.write_bytes(b""), ["kill_switch", "kill_switch"]),
    "no JSON": (lambda path: path.write_bytes(b"{"), ["kill_switch", "kill_switch"]),
    "unreadable": (_unreadable, ["kill_switch", "kill_switch"]),
}


@promise("stops:without-control")
@pytest.mark.parametrize("name", FILES)
async def test_the_local_file_stops_within_a_second_without_any_control(
    control: FakeControl, clock: ManualClock, start: Start, state_dir: Path, name: str
) -> None:
    make, expected = FILES[name]
    control.publish(TWO_AGENTS, now_s=now_s(clock))
    path = state_dir / "kill"
    both = (lambda: of(AGENT), lambda: of(SECOND))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        control.refuse = 503
        before = recorded_types(state_dir)
        assert ["", ""] == await reasons(authorizer.decider, of(AGENT), of(SECOND))
        make(path)
        on_s = await until(authorizer.decider, expected, *both)
        told = await asyncio.wait_for(authorizer.decider.revoked.get(), AT_MOST_S)
        path.rmdir() if path.is_dir() else path.unlink()
        off_s = await until(authorizer.decider, ["", ""], *both)

    assert max(on_s, off_s) <= AT_MOST_S
    recorded = recorded_types(state_dir)[len(before) :]
    assert ["kill.on", "kill.off"] == [one for one in recorded if one.startswith("kill.")]
    assert ((TENANT, [AGENT]) if name == "an agent" else ("", [])) == (
        told.tenant_id,
        list(told.agent_ids),
    )


async def test_a_file_that_is_there_at_start_stops_the_first_call(
    control: FakeControl, clock: ManualClock, start: Start, state_dir: Path
) -> None:
    control.publish(TWO_AGENTS, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
    control.refuse = 503
    (state_dir / "kill").write_bytes(b"")

    async with start() as authorizer:
        first = await reasons(authorizer.decider, of(AGENT))
        unknown = await reasons(authorizer.decider, ask(caller={"tenant_id": OTHER_TENANT}))

    assert ["kill_switch"] == first == unknown


async def test_what_is_stopped_sees_no_tools_and_is_inactive_to_proxies(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(TWO_AGENTS, now_s=now_s(clock))

    async def seen(authorizer: RunningAuthorizer, agent: str) -> list[str]:
        stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
        view = asked.ViewRequest(
            tenant_id=TENANT,
            agent_id=agent,
            server="files",
            tools=[asked.OfferedTool(name="read_file", schema_hash=SCHEMA_HASH)],
        )
        answer = await stub.View(view, metadata=authorizer.proxy.metadata(), timeout=5)
        return list(answer.visible)

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await desk.until_connected(1)
        desk.revoke(revocation(stops=[wire.Stop(scope="agent", subject=AGENT)]))
        await until(authorizer.decider, ["kill_switch"], lambda: of(AGENT))
        stopped, innocent = await seen(authorizer, AGENT), await seen(authorizer, SECOND)
        status = await shown_status(authorizer, "suspended")

    assert ([], ["read_file"]) == (stopped, innocent)
    assert {AGENT: "suspended", SECOND: "active"} == status


@asynccontextmanager
async def process(environment: dict[str, str], state_dir: Path) -> AsyncIterator[Any]:
    """The authorizer as a process of its own, serving; and a stream to it."""
    peers = state_dir / "peers"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.authorizer",
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(20):
            while b'"serving"' not in await child.stdout.readline():
                pass
        async with (
            dial(f"unix:{state_dir}/run/authorizer.sock", identity(peers, "proxy")) as link,
            Decider(link) as decider,
        ):
            yield child, decider
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@promise("stops:never-forgotten")
async def test_no_acknowledged_revocation_is_forgotten_by_a_process_that_is_killed(
    control: FakeControl, desk: PlaneDesk, environment: dict[str, str], state_dir: Path
) -> None:
    three = {**TWO_AGENTS.agents, THIRD: rows().agents[AGENT]}
    control.publish(replace(TWO_AGENTS, agents=three), now_s=SystemClock().now_ns() // 10**9)
    make_peers(state_dir / "peers")
    signals = [
        revocation(signal_id="an agent", agent_ids=[AGENT]),
        revocation(signal_id="a session", session_ids=[SESSION]),
        revocation(signal_id="a stop", stops=[wire.Stop(scope="agent", subject=THIRD)]),
    ]
    elsewhere = {"agent_id": SECOND, "session_id": "another"}
    async with process(environment, state_dir) as (child, decider):
        await desk.until_connected(1)
        await until(decider, ["", "", ""], *(lambda one=one: of(one) for one in three))
        for signal in signals:
            desk.revoke(signal)
        await desk.until_acknowledged(*signals)
        child.kill()
        await child.wait()

    control.refuse = 503
    async with process(environment, state_dir) as (_, decider):
        got = await reasons(decider, of(AGENT), of(SECOND), of(THIRD), ask(caller=elsewhere))

    assert ["agent_suspended", "session_revoked", "kill_switch", ""] == got


async def kept_whole(file: Path) -> bool:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])["lost"] is False
    except msgspec.DecodeError:
        return False


async def test_a_torn_file_of_revocations_stops_all_until_control_has_confirmed(
    control: FakeControl, clock: ManualClock, start: Start, state_dir: Path
) -> None:
    control.publish(TWO_AGENTS, now_s=now_s(clock))
    (state_dir / "bundles").mkdir()
    (state_dir / "bundles" / "revocations.json").write_bytes(b'{"version":1,"sig')

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        torn = await reasons(authorizer.decider, of(AGENT))
        clock.advance(31)
        await until(authorizer.decider, [""], lambda: of(AGENT))
    async with start() as authorizer:
        restarted = await reasons(authorizer.decider, of(AGENT))

    assert (["kill_switch"], [""]) == (torn, restarted)


def limited(**rates: int) -> TenantRows:
    changed = {**TWO_AGENTS.limits["rates"], **rates}
    return replace(TWO_AGENTS, limits={**TWO_AGENTS.limits, "rates": changed})


@promise("limits:the-innocent-go-on")
async def test_an_agent_that_floods_is_told_when_to_come_back_and_another_is_served(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(limited(agent_per_minute=60, agent_burst=3), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        flood = await authorizer.decider.ask(*(of(AGENT) for _ in range(5)))
        innocent = await reasons(authorizer.decider, of(SECOND))
        clock.advance(flood[-1].decision.retry_after_ms / 1000)
        later = await reasons(authorizer.decider, of(AGENT), of(AGENT))
        control.publish(TWO_AGENTS, now_s=now_s(clock))
        await until_serial(authorizer, 2)
        clock.advance(1)
        edited = await reasons(authorizer.decider, of(AGENT))

    assert [ALLOW] * 3 + [DENY] * 2 == [one.decision.result for one in flood]
    assert {("rate_limited", 1000)} == {
        (one.decision.reason_code, one.decision.retry_after_ms) for one in flood[3:]
    }
    assert ([""], ["", "rate_limited"], [""]) == (innocent, later, edited)
    assert "shared" == json.loads(flood[0].envelope)["context"]["counters_state"]


@pytest.mark.needs_valkey
@promise("failure:counter-store")
async def test_replicas_share_their_counts_and_each_has_its_share_when_the_store_is_gone(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(limited(agent_per_minute=6, agent_burst=4), now_s=now_s(clock))
    with running_valkey() as server:
        settings = {"BEHAVRY_COUNTER_STORE_URL": server.url, "BEHAVRY_AUTHORIZER_REPLICAS": "2"}
        async with start(**settings) as authorizer:
            await until_serial(authorizer, 1)
            shared = [(await authorizer.decider.ask(of(AGENT)))[0] for _ in range(5)]
            server.kill()
            alone = [(await authorizer.decider.ask(of(SECOND)))[0] for _ in range(3)]

    for verdicts, passed, counters in ((shared, 4, "shared"), (alone, 2, "local")):
        assert [ALLOW] * passed + [DENY] == [one.decision.result for one in verdicts]
        assert "rate_limited" == verdicts[-1].decision.reason_code
        envelopes = [json.loads(one.envelope) for one in verdicts[:-1]]
        assert {counters} == {one["context"]["counters_state"] for one in envelopes}


async def test_a_wind_down_ends_as_a_suspension_that_proxies_hear_of(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    ending = restricted(until_s=now_s(clock) + 60, profile="wind_down")
    control.publish(ending, now_s=now_s(clock))

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        before = await reasons(authorizer.decider, of(AGENT))
        clock.advance(60)
        told = await asyncio.wait_for(authorizer.decider.revoked.get(), 5)
        after = await reasons(authorizer.decider, of(AGENT), of(SECOND))
        status = await shown_status(authorizer, "suspended")

    assert (TENANT, [AGENT]) == (told.tenant_id, list(told.agent_ids))
    assert ([""], ["agent_suspended", ""]) == (before, after)
    assert {AGENT: "suspended", SECOND: "active"} == status


def restricted(**parts: Any) -> TenantRows:
    held = {
        "profile": "custom",
        "tools": None,
        "resources": None,
        "max_arg_bytes": None,
        "rate_factor_milli": 1000,
        **parts,
    }
    return replace(TWO_AGENTS, restrictions={AGENT: held})


async def test_a_restricted_agent_is_held_to_it_from_bundle_to_envelope(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    until_s = now_s(clock) + 60
    control.publish(
        restricted(until_s=until_s, profile="investigation", max_arg_bytes=16),
        now_s=now_s(clock),
    )
    large = {**FEATURES, "arg_bytes": 17}
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        allowed, refused, innocent = await authorizer.decider.ask(
            of(AGENT), of(AGENT, features=large), of(SECOND, features=large)
        )
        clock.advance(60)
        after = await reasons(authorizer.decider, of(AGENT, features=large))

    assert {"profile": "investigation"} == json.loads(allowed.envelope)["agent"]["restriction"]
    assert ("restricted", "restricted: the arguments are too large") == (
        refused.decision.reason_code,
        refused.decision.reason,
    )
    assert ALLOW == innocent.decision.result
    assert None is json.loads(innocent.envelope)["agent"]["restriction"]
    assert [""] == after
