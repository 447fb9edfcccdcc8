"""`behavry doctor` on an installation that does not run, with faults put into it one by one."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.cli.doctor import bypasses, machine, running
from services.cli.doctor.checks import Check, Installation
from services.cli.state import Remembered, State
from services.common.clock import SystemClock
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

NOW_S = 1_800_000_000


@pytest.fixture
def installation(state_dir: Path, tmp_path: Path, control: RestControl) -> Installation:
    state = State(state_dir)
    for directory in (state.keys, state.secrets):
        directory.mkdir(mode=0o700)
    (state_dir / "bundles").mkdir(mode=0o700)
    marks = {"max_serial": 7, "confirmed_s": NOW_S - 5, "clock_mark_s": NOW_S - 5}
    (state_dir / "bundles" / "marks.json").write_text(json.dumps(marks))
    for place in ("home", "project"):
        (tmp_path / place).mkdir()
    return Installation(
        state=state,
        remembered=Remembered(plane_id="dp-1", proxy_port=9, control_port=control.port),
        document={"engine": "opa", "processes": {"proxy": {"ready": True, "starts": 1}}},
        running=1,
        now_s=NOW_S,
        project=tmp_path / "project",
        home=tmp_path / "home",
        environment={},
    )


def _marked(installation: Installation, **marks: int) -> None:
    file = installation.state.root / "bundles" / "marks.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **marks}))


def _found(checks: Any) -> dict[str, Check]:
    return {check.id: check for check in checks}


def test_files_that_stand_open_are_named_and_closed(installation: Installation) -> None:
    before = _found(machine.permissions(installation))["state.permissions"]
    key = installation.state.keys / "jwt.pem"
    key.write_text("x")
    key.chmod(0o640)
    opened = _found(machine.permissions(installation))["state.permissions"]
    for path in machine.open_files(installation.state):
        machine.close(path)
    after = _found(machine.permissions(installation))["state.permissions"]

    assert ("ok", "fail", "ok") == (before.state, opened.state, after.state)
    assert str(key) in opened.why
    assert 0o600 == key.stat().st_mode & 0o777


def test_a_clock_that_went_back_is_found(installation: Installation) -> None:
    right = _found(machine.clock(installation))["clock"]
    _marked(installation, clock_mark_s=NOW_S + 301)
    wrong = _found(machine.clock(installation))["clock"]

    assert ("ok", "fail") == (right.state, wrong.state)
    assert "301 s" in wrong.why


@pytest.mark.parametrize(
    ("used", "state"), [(70_000_000, "warn"), (30_000_000, "ok"), (80_000_000, "fail")]
)
def test_an_outbox_that_fills_up_is_found(
    installation: Installation, used: int, state: str
) -> None:
    directory = installation.state.root / "outbox" / "proxy" / "w0"
    directory.mkdir(parents=True)
    with (directory / "segment").open("wb") as file:
        os.truncate(file.fileno(), used)
    installation.environment["BEHAVRY_OUTBOX_MAX_BYTES"] = "80000000"
    found = _found(machine.outbox(installation))

    assert (state, "ok") == (found["outbox.proxy"].state, found["outbox.authorizer"].state)


def test_records_that_were_set_aside_are_told(installation: Installation) -> None:
    directory = installation.state.root / "outbox" / "authorizer" / "w0"
    directory.mkdir(parents=True)
    (directory / "1.boot.set-aside").touch()

    assert "warn" == _found(machine.outbox(installation))["outbox.authorizer.set_aside"].state


def test_a_stop_of_this_machine_is_not_forgotten(installation: Installation) -> None:
    none = _found(machine.local_stops(installation))["stops.local"]
    installation.state.kill_file.touch()
    all_of_it = _found(machine.local_stops(installation))["stops.local"]

    assert ("ok", "warn") == (none.state, all_of_it.state)
    assert "fleet" in all_of_it.why


@pytest.mark.parametrize(("age", "state"), [(5, "ok"), (61, "warn"), (300, "fail")])
def test_a_policy_that_nobody_confirms_is_found(
    installation: Installation, age: int, state: str
) -> None:
    _marked(installation, confirmed_s=NOW_S - age)
    found = _found(running.bundle(installation))["bundle"]

    assert (state, True) == (found.state, f"serial 7, confirmed {age} s ago" == found.why)


def test_no_policy_at_all_is_found(installation: Installation) -> None:
    (installation.state.root / "bundles" / "marks.json").unlink()

    assert "fail" == _found(running.bundle(installation))["bundle"].state


def test_a_process_that_is_not_ready_is_named_with_its_log(installation: Installation) -> None:
    installation.document["processes"]["audit"] = {"ready": False, "starts": 9}
    found = _found(running.processes(installation))

    assert ("ok", "fail") == (found["processes.proxy"].state, found["processes.audit"].state)
    assert "audit.log" in found["processes.audit"].fix


def test_a_port_that_somebody_else_took_is_found(installation: Installation) -> None:
    stopped = replace(installation, running=None)
    (taken,) = running.ports(stopped)
    free = replace(stopped.remembered, control_port=None, proxy_port=None)
    (unused,) = running.ports(replace(stopped, remembered=free))

    assert ("fail", "ok") == (taken.state, unused.state)
    assert str(installation.remembered.control_port) in taken.why
    assert [] == list(running.ports(installation))


def test_sockets_that_nobody_serves_are_found(installation: Installation) -> None:
    assert {"fail"} == {check.state for check in running.grpc_health(installation)}


def test_doors_and_keys(installation: Installation, control: RestControl) -> None:
    control.answers["GET /readyz"] = (204, None)
    control.answers["GET /.well-known/jwks.json"] = (200, {"keys": [{}]})
    doors = _found(running.http(installation))
    served = _found(running.jwks(installation))["jwks"]
    control.answers["GET /readyz"] = (503, None)
    control.answers["GET /.well-known/jwks.json"] = (200, {"keys": []})
    not_ready = _found(running.http(installation))
    empty = _found(running.jwks(installation))["jwks"]

    assert ("fail", "ok", "fail") == (
        doors["http.proxy"].state,
        doors["http.control"].state,
        not_ready["http.control"].state,
    )
    assert ("ok", "fail") == (served.state, empty.state)


def test_a_key_that_control_refuses_is_found(
    installation: Installation, control: RestControl
) -> None:
    control.problem("GET /api/v1/license", 401, "unauthenticated")

    assert "fail" == _found(running.plan(installation))["license"].state


@pytest.mark.parametrize(
    ("enabled", "failing", "state"), [(0, 0, "ok"), (2, 0, "ok"), (2, 1, "warn")]
)
def test_notices_that_do_not_arrive_are_found(
    installation: Installation, control: RestControl, enabled: int, failing: int, state: str
) -> None:
    health = {"enabled": enabled, "failing": failing, "failing_since": "2026-01-01T00:00:00Z"}
    control.answers["GET /api/v1/settings/notifications/health"] = (200, health)

    assert state == _found(running.notifications(installation))["notifications"].state


@pytest.mark.parametrize(
    ("until", "state"),
    [(None, "ok"), ("2027-03-01T00:00:00Z", "ok"), ("2027-01-20T00:00:00Z", "warn")],
)
def test_a_licence_that_ends_soon_is_told(
    installation: Installation, control: RestControl, until: str | None, state: str
) -> None:
    held = {"plan": "trial", "status": "EXPIRING", "stale": False, "expires_at": until}
    control.answers["GET /api/v1/license"] = (200, held)

    assert state == _found(running.plan(installation))["license"].state


# --- Clients that go past the gateway -----------------------------------------------------------

GATEWAY = {"url": "http://localhost:9/mcp/v1/notes/key"}


@pytest.fixture
def notes(control: RestControl, installation: Installation) -> None:
    """Two servers behind the gateway, one of each transport."""
    item = {"slug": "notes", "urls": ["http://127.0.0.1:7000/mcp"]}
    control.answers["GET /api/v1/servers"] = (200, {"items": [item], "next_page_token": ""})
    installation.state.stdio.write_text(
        '[git]\ncommand = "/opt/python"\nargs = ["-m", "mcp_server_git", "--repository", "x"]\n'
    )


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize(
    ("entry", "state"),
    [
        (GATEWAY, "ok"),
        ({"url": "http://localhost:7000/mcp/"}, "fail"),
        ({"command": "uvx", "args": ["mcp-server-git", "--repository", "y"]}, "fail"),
        ({"command": "python", "args": ["-m", "mcp_server_git"]}, "fail"),
        ({"command": "mcp-server-git"}, "fail"),
        ({"url": "https://elsewhere.example/mcp"}, "warn"),
        ({"command": "npx", "args": ["-y", "other"]}, "warn"),
        ({"command": 3}, "warn"),
        ("text", "warn"),
    ],
)
def test_a_client_s_entry_is_judged_by_where_it_leads(
    installation: Installation, entry: Any, state: str
) -> None:
    file = installation.project / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"mcpServers": {"gateway": GATEWAY, "x": entry}}))
    found = _found(bypasses.clients(installation))

    assert state == found["clients.cursor"].state
    assert ("x" in found["clients.cursor"].why) == (state != "ok")


@pytest.mark.usefixtures("notes")
def test_files_of_the_home_and_of_each_project_are_looked_at(installation: Installation) -> None:
    direct = {"url": "http://127.0.0.1:7000/mcp"}
    (installation.home / ".claude.json").write_text(
        json.dumps({"projects": {"/p": {"mcpServers": {"x": direct}}}})
    )
    (installation.home / ".codex").mkdir()
    (installation.home / ".codex" / "config.toml").write_text(
        '[mcp_servers.y]\nurl = "http://127.0.0.1:7000/mcp"\n'
    )
    (installation.project / ".mcp.json").write_text("{ not json")
    found = list(bypasses.clients(installation))

    assert [
        ("clients.claude-code", "fail"),
        ("clients.claude-code", "warn"),
        ("clients.codex", "fail"),
    ] == sorted((check.id, check.state) for check in found)


# --- The command --------------------------------------------------------------------------------


def test_every_check_says_how_it_stands_and_a_fault_is_status_3(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    told = run("doctor", "--json")
    document = json.loads(told.out)
    states = {check["id"]: check["state"] for check in document["checks"]}

    assert (3, False) == (told.status, document["ok"])
    assert ("fail", "unknown", "fail") == (
        states["processes"],
        states["grpc.proxy"],
        states["http.proxy"],
    )
    assert {"ok", "warn", "fail", "unknown"} >= set(states.values())
    assert all(check["fix"] for check in document["checks"] if check["state"] in {"warn", "fail"})


def test_without_an_installation_it_is_status_7(run: Run, tmp_path: Path) -> None:
    assert 7 == run("doctor", "--state", str(tmp_path / "none")).status


def test_the_real_clock_is_used(run: Run, state_dir: Path, tmp_path: Path) -> None:
    (state_dir / "bundles").mkdir()
    mark = SystemClock().now_ns() // 1_000_000_000 + 1_000
    (state_dir / "bundles" / "marks.json").write_text(json.dumps({"clock_mark_s": mark}))
    checks = json.loads(run("doctor", "--json").out)["checks"]

    assert "fail" == next(check["state"] for check in checks if check["id"] == "clock")
