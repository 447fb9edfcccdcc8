"""Tool servers as children: what they may see, and what happens when they end (mcp.md 10.1)."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counter
from services.common.telemetry.logging import get_log
from services.proxy.backends.child import start
from services.proxy.backends.stdio import LAUNCHER
from services.proxy.backends.upstream import Request, UpstreamFailed
from tests.fakes.authorizer import AGENT, server_entry
from tests.fakes.children import ROOT
from tests.fakes.gateway import Gateway, gateway
from tests.fakes.installation import still_there
from tests.fakes.stdio_toml import write_toml
from tests.fakes.tool_server import ToolServer

PROBE = """
import json, os, sys, time
for line in sys.stdin:
    message = json.loads(line)
    method, reply = message.get("method"), None
    if method == "initialize":
        reply = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                 "serverInfo": {"name": "probe", "version": "1"}}
    elif method == "tools/list":
        reply = {"tools": [{"name": "look", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        path = message["params"]["arguments"].get("path")
        if path in ("a helper", "a helper apart"):
            if os.fork() == 0:
                if path == "a helper apart":
                    os.setsid()
                time.sleep(20)
            os._exit(0)
        if path == "a long line":
            sys.stdout.write("x" * 17 * 1024 * 1024 + "\\n")
        seen = {"env": sorted(os.environ), "pid": os.getpid(), "group": os.getpgrp(),
                "home": os.environ["HOME"], "cwd": os.getcwd(), "uid": os.getuid(),
                "groups": os.getgroups(), "own": os.access(os.environ["HOME"], os.W_OK),
                "fds": len(os.listdir("/proc/self/fd"))}
        if path:
            try:
                seen["read"] = open(path).read()
            except OSError as failure:
                seen["read"] = type(failure).__name__
        reply = {"content": [{"type": "text", "text": json.dumps(seen)}]}
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        if reply is None:
            answer["error"] = {"code": -32601, "message": "no"}
        else:
            answer["result"] = reply
        print(json.dumps(answer), flush=True)
"""


@asynccontextmanager
async def probing(tmp_path: Path, **entry: Any) -> AsyncIterator[Gateway]:
    state = tmp_path / "state"
    (tmp_path / "probe.py").write_text(PROBE)
    command = {"command": sys.executable, "args": [str(tmp_path / "probe.py")], **entry}
    write_toml(state, "probe", **command)
    server = server_entry(transport="stdio", stdio="probe")
    async with gateway(state, {"probe": server}) as proxy:
        await proxy.offered("probe", "look")
        yield proxy


async def look(proxy: Gateway, path: Path | None = None) -> dict[str, Any]:
    arguments = {} if path is None else {"path": str(path)}
    _, answer = await proxy.call("look", arguments, server="probe")
    seen: dict[str, Any] = json.loads(answer["result"]["content"][0]["text"])
    return seen


async def test_a_child_sees_little_of_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVRY_SOMETHING", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    async with probing(tmp_path, env={"WANTED": "yes"}) as proxy:
        seen = await look(proxy)

        kept = {name for name in seen["env"] if not name.startswith("LC_")}
        assert kept <= {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "WANTED"}
        assert {"HOME", "TMPDIR", "WANTED"} <= kept
        assert seen["group"] == seen["pid"] != os.getpgrp()
        assert seen["home"] != os.environ["HOME"]
        assert seen["fds"] <= 6


def namespaces_allowed() -> bool:
    """By a stock tool, not by what is tested."""
    tried = subprocess.run(["unshare", "--user", "--mount", "true"], check=False)
    return tried.returncode == 0


async def test_our_keys_are_hidden_from_a_child_where_namespaces_allow(tmp_path: Path) -> None:
    async with probing(tmp_path) as proxy:
        key = proxy.state_dir / "keys" / "seal.keys"
        away = f"/proc/{os.getpid()}/root{key}"

        seen = await look(proxy, key)
        around = await look(proxy, Path(away))
        other = await look(proxy, tmp_path / "probe.py")

        assert PROBE == other["read"]
        if not namespaces_allowed():
            pytest.skip("this system forbids namespaces: children of our user see our files")
        assert "FileNotFoundError" == seen["read"]
        assert around["read"] in {"FileNotFoundError", "PermissionError"}


async def test_what_the_command_line_names_stays_visible(tmp_path: Path) -> None:
    inside = tmp_path / "state" / "scratch"
    inside.mkdir(parents=True)
    (inside / "note").write_text("mine")
    async with probing(tmp_path, cwd=str(inside)) as proxy:
        seen = await look(proxy, inside / "note")

        assert ("mine", str(inside)) == (seen["read"], seen["cwd"])
        assert "mine" != (await look(proxy, proxy.state_dir / "keys" / "digest.keys"))["read"]


NOBODY = 65534
#: One that other users can start.
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or ""
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not PYTHON, reason="only root starts what others run"
)


@pytest.fixture
def passable() -> Iterator[Path]:
    """Where another user can go; pytest's own directories are for one."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@as_root
async def test_a_child_of_another_user_is_nobody_here(passable: Path) -> None:
    async with probing(passable, command=PYTHON, uid=NOBODY) as proxy:
        seen = await look(proxy)
        read = [
            (await look(proxy, proxy.state_dir / path))["read"]
            for path in ("keys/seal.keys", "stdio.toml")
        ]
        other = await look(proxy, passable / "probe.py")

    assert (NOBODY, [], True) == (seen["uid"], seen["groups"], seen["own"])
    assert seen["group"] == seen["pid"]
    assert {"PermissionError", "FileNotFoundError"} >= set(read)
    assert PROBE == other["read"]
    assert still_there({seen["pid"]}) == set()


@as_root
def test_whoever_cannot_become_that_user_starts_nothing(passable: Path) -> None:
    """Neither who is not root, nor where that user has no home."""
    (passable / "closed").mkdir(mode=0o700)
    (passable / "open").mkdir(mode=0o700)
    os.chown(passable / "open", NOBODY, -1)
    shutil.copy(LAUNCHER, passable / "launch.py")
    said = [
        subprocess.run(
            [PYTHON, "-I", "-S", str(passable / "launch.py"), "--uid", str(uid),
             "--home", str(passable / home), "--", "/bin/echo", "started"],
            user=user, capture_output=True, check=False, cwd="/",
        )
        for uid, user, home in ((1, NOBODY, "open"), (NOBODY, 0, "closed"), (NOBODY, 0, "open"))
    ]  # fmt: skip

    assert [b"", b"", b"started\n"] == [one.stdout for one in said]
    assert b"PermissionError" in said[0].stderr
    assert b"its home cannot be reached" in said[1].stderr


@as_root
async def test_a_link_in_a_childs_home_leads_nobody_elsewhere(passable: Path) -> None:
    """What belongs to another user is not given to it by what stands in its home."""
    ours = passable / "ours"
    ours.mkdir(mode=0o700)
    async with probing(passable, command=PYTHON, uid=NOBODY) as proxy:
        seen = await look(proxy)
        (Path(seen["home"]) / "tmp").rmdir()
        (Path(seen["home"]) / "tmp").symlink_to(ours)
        os.kill(seen["pid"], signal.SIGKILL)
        assert set() == still_there({seen["pid"]})
        async with asyncio.timeout(5):
            while (await proxy.call("look", server="probe"))[1]["result"].get("isError"):
                pass

    assert 0 == ours.stat().st_uid


async def test_one_child_serves_all_calls_of_an_agent(tmp_path: Path) -> None:
    async with probing(tmp_path) as proxy:
        pids = {(await look(proxy))["pid"] for _ in range(5)}

        assert 1 == len(pids)


async def test_a_child_that_nobody_uses_ends_and_the_next_call_starts_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.app.SWEEP_S", 0.02)
    async with probing(tmp_path) as proxy:
        first, same = (await look(proxy))["pid"], (await look(proxy))["pid"]
        monkeypatch.setattr("services.proxy.backends.stdio.IDLE_NS", -1)
        assert set() == await asyncio.to_thread(still_there, {first})
        monkeypatch.setattr("services.proxy.backends.stdio.IDLE_NS", 600 * 10**9)
        other = (await look(proxy))["pid"]

    assert first == same != other


async def test_a_killed_child_is_started_again_and_its_call_ends(tmp_path: Path) -> None:
    async with probing(tmp_path) as proxy:
        first = (await look(proxy))["pid"]
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(5):
            while True:
                _, answer = await proxy.call("look", server="probe")
                if not answer["result"].get("isError"):
                    break

        assert first != json.loads(answer["result"]["content"][0]["text"])["pid"]
        intents = {one["id"] for one in proxy.records("call.intent")}
        assert intents == {one["decision"] for one in proxy.records("call.outcome")}


@pytest.mark.parametrize("helper", ["a helper", "a helper apart"])
async def test_a_child_that_ends_is_missed_whoever_holds_its_line(
    tmp_path: Path, helper: str
) -> None:
    """What it started may live on, in its group or in another one: nobody answers there."""
    async with probing(tmp_path) as proxy:
        first = (await look(proxy))["pid"]
        async with asyncio.timeout(20):
            _, ended = await proxy.call("look", {"path": helper}, server="probe")
            while (await proxy.call("look", server="probe"))[1]["result"].get("isError"):
                pass
        fds = len(list(Path("/proc/self/fd").iterdir()))
        second = (await look(proxy))["pid"]
        os.kill(second, signal.SIGKILL)
        async with asyncio.timeout(20):
            while (await proxy.call("look", server="probe"))[1]["result"].get("isError"):
                pass
        left = len(list(Path("/proc/self/fd").iterdir()))

    assert "upstream_protocol" == ended["result"]["_meta"]["com.behavry/decision"]["reason"]
    assert first != second
    assert left <= fds + 1


async def test_a_line_of_17_mib_ends_the_child_and_its_calls(tmp_path: Path) -> None:
    async with probing(tmp_path) as proxy:
        first = (await look(proxy))["pid"]
        _, failed = await proxy.call("look", {"path": "a long line"}, server="probe")

        said = failed["result"]["_meta"]["com.behavry/decision"]
        assert "upstream_protocol" == said["reason"]
        assert not still_there({first})
        statuses = [one["status"] for one in proxy.records("call.outcome")]
        assert ["ok", "indeterminate"] == statuses


async def test_children_end_with_the_proxy(tmp_path: Path) -> None:
    async with probing(tmp_path) as proxy:
        pid = (await look(proxy))["pid"]

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("user", ["", pytest.param("65534", marks=as_root)])
def test_a_child_dies_with_a_killed_parent(tmp_path: Path, user: str) -> None:
    other = ["--uid", user, "--home", "/tmp"] if user else []
    parent = (
        "import os, signal, subprocess, sys\n"
        "line = [sys.executable, '-I', '-S', sys.argv[1], '--parent', str(os.getpid()), '--hide',"
        " sys.argv[2], *sys.argv[3:], '--', 'sh', '-c', 'echo $$; exec sleep 60']\n"
        "child = subprocess.Popen(line, stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline().decode(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", parent, str(LAUNCHER), str(tmp_path), *other],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    pid = int(ended.stdout)

    assert -signal.SIGKILL == ended.returncode
    assert not still_there({pid})


@pytest.mark.parametrize("name", ["nobody", "../probe", ""])
async def test_an_unknown_name_is_not_available_here(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    write_toml(state, "probe", command=sys.executable)
    server = server_entry(transport="stdio", stdio=name)
    async with gateway(state, {"probe": server}) as proxy:
        _, listed = await proxy.modern("tools/list", server="probe")

        assert "not_available_here" == listed["error"]["message"]


async def test_a_command_that_cannot_start_is_not_started_again_and_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    write_toml(state, "probe", command="/nonexistent/tool-server")
    server = server_entry(transport="stdio", stdio="probe")
    async with gateway(state, {"probe": server}) as proxy:
        answers = [(await proxy.modern("tools/list", server="probe"))[1] for _ in range(5)]

        assert {"upstream_unreachable", "upstream_protocol"} >= {
            one["error"]["message"] for one in answers
        }
        assert 2 >= proxy.running.counters.read()["proxy.upstream.connections"]


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o644, 0o640])
async def test_a_file_that_others_may_read_or_write_is_not_used(tmp_path: Path, mode: int) -> None:
    state = tmp_path / "state"
    write_toml(state, "probe", command=sys.executable)
    (state / "stdio.toml").chmod(mode)
    server = server_entry(transport="stdio", stdio="probe")
    async with gateway(state, {"probe": server}) as proxy:
        _, listed = await proxy.modern("tools/list", server="probe")

        assert "not_available_here" == listed["error"]["message"]


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "ends": ({"drop": True}, "upstream_protocol"),
    "talks nonsense, then ends": ({"drop": True, "lie": "not_json"}, "upstream_protocol"),
}


@pytest.mark.parametrize(("told", "reason"), FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("eras", [("modern", "legacy"), ("legacy",)], ids=["modern", "legacy"])
async def test_a_failing_child_ends_the_call_with_a_reason(
    tmp_path: Path, told: dict[str, Any], reason: str, eras: tuple[str, ...]
) -> None:
    (tmp_path / "tools").mkdir()
    tools = ToolServer(tmp_path / "tools")
    tools.behave(eras=eras)
    command, arguments = tools.stdio_command()
    state = tmp_path / "state"
    write_toml(state, "notes", command=command, args=list(arguments), cwd=str(ROOT))
    server = server_entry(transport="stdio", stdio="notes")
    async with gateway(state, {"notes": server}) as proxy:
        await proxy.offered("notes", "read_note")
        await proxy.call("read_note", {"call": "c1"})
        tools.behave(eras=eras, **told)

        _, failed = await proxy.call("read_note", {"call": "c2"})

        assert reason == failed["result"]["_meta"]["com.behavry/decision"]["reason"]
        statuses = [one["status"] for one in proxy.records("call.outcome")]
        assert ["ok", "indeterminate"] == statuses
        assert ["c1", "c2"] == tools.ran()


async def test_a_child_that_reads_nothing_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that are given up are not piled up before it."""
    monkeypatch.setattr("services.proxy.backends.conversation.CANCEL_S", 0.05)
    child = await start(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={}, cwd=None, dropped=Counter(), spawn=Supervisor(get_log("test")).once,
    )  # fmt: skip
    running = asyncio.get_running_loop().create_task(child.run())
    request = Request(method="tools/call", params={"x": "y" * 1_000_000}, timeout_s=0.1)
    for _ in range(5):
        with pytest.raises(UpstreamFailed, match="upstream_timeout"):
            await child.talk.ask(request)

    assert child.unread < 2_000_000
    os.killpg(child.pid, signal.SIGKILL)
    await running
    await child.stop()


async def test_children_that_start_at_once_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.backends.stdio.PER_TENANT", 2)
    async with probing(tmp_path) as proxy:  # one runs
        agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
        others = [f"0199d0d0-0000-7000-8000-00000000010{n}" for n in range(4)]
        await proxy.authorizer.publish(agents={**agents, **dict.fromkeys(others, agents[AGENT])})
        await proxy.settled()
        answers = await asyncio.gather(*[
            proxy.call("look", {}, server="probe", token=proxy.issuer.token(sub=other))
            for other in others
        ])  # fmt: skip

    reasons = [
        answer["result"]["_meta"]["com.behavry/decision"]["reason"]
        for _, answer in answers
        if answer["result"].get("isError")
    ]
    assert ["capacity"] * 3 == reasons
