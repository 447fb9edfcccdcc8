"""stdio tool servers in a process of their own, before one worker or several (mcp.md 10.1)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.authorizer import AGENT, OTHER_AGENT, server_entry
from tests.fakes.children import ROOT
from tests.fakes.gateway import Gateway, gateway, hosted, hosting, until
from tests.fakes.installation import still_there
from tests.fakes.listening import Stream, got, listening
from tests.fakes.stdio_host import Host, apart
from tests.fakes.stdio_toml import write_toml

ERAS = ["modern", "legacy"]
CHANGED = "notifications/prompts/list_changed"


def telling(state: Path, era: str = "modern", **entry: Any) -> dict[str, dict[str, Any]]:
    line = ["-m", "tests.fakes.telling_child", era]
    write_toml(state, "telling", command=sys.executable, args=line, cwd=str(ROOT))
    return {"notes": server_entry(transport="stdio", stdio="telling", **entry)}


@asynccontextmanager
async def before(
    state: Path, servers: dict[str, dict[str, Any]], host: Path | None = None
) -> AsyncIterator[Gateway]:
    """A proxy whose stdio servers are hosted elsewhere; two agents may do the same."""
    async with gateway(state, servers, **hosted(host or state)) as proxy:
        agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
        await proxy.authorizer.publish(agents={**agents, OTHER_AGENT: agents[AGENT]})
        await proxy.offered("notes", "look", "change", "wait")
        proxy.forget_records()
        yield proxy


async def look(proxy: Gateway, agent: str = AGENT) -> dict[str, int]:
    _, answer = await proxy.call("look", token=proxy.issuer.token(sub=agent))
    seen: dict[str, int] = json.loads(answer["result"]["content"][0]["text"])
    return seen


def reason(answer: dict[str, Any]) -> str:
    return str(answer["result"]["_meta"]["com.behavry/decision"]["reason"])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_workers_share_an_agents_child_and_agents_do_not(state: Path) -> None:
    servers = telling(state)
    async with (
        hosting(state) as host,
        before(state, servers) as one,
        before(state.with_name("other"), servers, state) as other,
    ):
        mine = {(await look(proxy))["pid"] for proxy in (one, other)}
        theirs = {(await look(proxy, OTHER_AGENT))["pid"] for proxy in (one, other)}
        mode = host.socket.stat().st_mode & 0o777

    assert 0o600 == mode
    assert (1, 1) == (len(mine), len(theirs))
    assert not mine & theirs
    assert not still_there(mine | theirs)


async def test_a_shared_child_is_one_for_all_agents(state: Path) -> None:
    async with hosting(state), before(state, telling(state, share="server")) as proxy:
        assert await look(proxy) == await look(proxy, OTHER_AGENT)


async def heard(proxy: Gateway, stream: Stream) -> dict[str, Any]:
    """What an agent hears after a prompt more."""
    await proxy.modern("prompts/list")
    await proxy.call("change")
    return dict((await stream.next(CHANGED)).message)


@pytest.mark.parametrize("era", ERAS)
async def test_agents_of_both_eras_hear_that_a_hosted_servers_prompts_changed(
    state: Path, era: str
) -> None:
    async with hosting(state), before(state, telling(state, era)) as proxy:
        sent = await proxy.open_session()
        async with got(proxy, sent) as legacy:
            await legacy.opened()
            assert CHANGED == (await heard(proxy, legacy))["method"]
        async with listening(proxy, {"promptsListChanged": True}) as modern:
            await modern.next("notifications/subscriptions/acknowledged")
            assert CHANGED == (await heard(proxy, modern))["method"]


async def test_a_killed_host_ends_its_children_and_a_new_one_serves_at_once(state: Path) -> None:
    servers = telling(state)
    with apart(state) as host:
        await host.started()
        async with before(state, servers) as proxy:
            first = await look(proxy)
            waiting = asyncio.ensure_future(proxy.call("wait"))
            await until(lambda: len(proxy.records("call.intent")) == 2)
            host.kill()
            _, broken = await waiting
            _, refused = await proxy.call("look")
            alone = still_there({first["pid"]})

            await host.started()
            again = await look(proxy)

            outcomes = [one["status"] for one in proxy.records("call.outcome")]
        parent = host.pid

    assert first["parent"] != os.getpid()
    assert parent == again["parent"] != first["parent"]
    assert not alone | still_there({first["helper"], again["pid"]})
    assert ("upstream_protocol", "upstream_unreachable") == (reason(broken), reason(refused))
    assert ["ok", "indeterminate", "upstream_error", "ok"] == outcomes


async def test_a_second_host_waits_for_the_first(state: Path) -> None:
    """It would end the other's children."""
    servers = telling(state)
    async with hosting(state), before(state, servers) as proxy:
        child = await look(proxy)
        second = Host(state).start(stdout=subprocess.PIPE)
        assert second.stdout is not None
        lines = iter(second.stdout.readline, b"")
        await asyncio.to_thread(next, (one for one in lines if b"another_stdio_host_runs" in one))
        after = await look(proxy)
        second.stdout.close()
        second.kill()
        second.wait(10)

    assert child == after


async def test_a_child_that_is_another_program_now_is_met_anew(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.backends.sites.DOUBT_NS", 0)
    async with hosting(state), before(state, telling(state, "modern")) as proxy:
        first = await look(proxy)
        telling(state, "legacy")
        os.kill(first["pid"], signal.SIGKILL)
        assert not still_there({first["pid"]})
        answers = [(await proxy.call("look"))[1] for _ in range(3)]
        await proxy.offered("notes", "look")
        after = await look(proxy)

    assert {"upstream_protocol"} >= {reason(one) for one in answers if one["result"].get("isError")}
    assert after["pid"] != first["pid"]


async def test_more_children_than_there_is_room_for_are_refused_with_that_reason(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.backends.stdio.PER_TENANT", 1)
    async with hosting(state), before(state, telling(state)) as proxy:
        await look(proxy)
        _, refused = await proxy.call("look", token=proxy.issuer.token(sub=OTHER_AGENT))

    assert "capacity" == reason(refused)


async def test_without_a_host_several_workers_have_no_stdio_servers(state: Path) -> None:
    settings = {
        "BEHAVRY_PROXY_WORKERS": "2",
        "BEHAVRY_COUNTER_STORE_URL": f"unix://{state}/nobody.sock",
    }
    async with gateway(state, telling(state), **settings) as proxy:
        _, listed = await proxy.modern("tools/list")
        _, called = await proxy.call("look")

    assert "not_available_here" == listed["error"]["message"]
    assert called["result"]["isError"]
    assert not (state / "stdio").exists()
