"""`behavry up` with its real processes: from nothing to ready, seen from other shells, and gone."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.fakes.installation import COMMAND, Installation, starting, still_there
from tests.fakes.postgres import Server, start_server, stop_server


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_it_says_where_everything_is(up: Installation) -> None:
    document = up.document

    assert {
        "proxy_url",
        "control_url",
        "admin",
        "agents",
        "servers",
        "pids",
        "engine",
        "state_dir",
    } == set(document)
    assert {"username", "password_file", "api_key_file"} == set(document["admin"])
    assert ["demo-agent"] == [agent["name"] for agent in document["agents"]]
    assert [
        {"slug": slug, "mcp_url": f"{document['proxy_url']}/mcp/v1/{slug}"}
        for slug in ("time", "git")
    ] == document["servers"]
    assert {"postgres", "audit", "entitlements", "control", "authorizer", "proxy"} <= set(
        document["pids"]
    )
    assert ("opa" in document["pids"]) == (document["engine"] == "opa")


def test_control_answers_at_the_address_that_it_named(up: Installation) -> None:
    with urlopen(f"{up.document['control_url']}/healthz", timeout=5) as answer:
        status = answer.status

    assert 204 == status


def test_status_from_another_shell_sees_all_of_them_ready(up: Installation) -> None:
    status = up.json("status")

    assert status["running"]
    assert {True} == {facts["ready"] for facts in status["processes"].values()}


def test_a_second_up_on_the_same_state_ends_with_the_firsts_pid(up: Installation) -> None:
    second = up.cli("up")

    assert 1 == second.returncode
    assert f"pid {up.process.pid}" in second.stderr


def test_a_taken_port_is_named_with_the_flag(up: Installation, tmp_path: Path) -> None:
    port = up.document["proxy_url"].rsplit(":", 1)[1]
    refused = _run("up", "--state", str(tmp_path / "s"), "--port-base", port)

    assert 1 == refused.returncode
    assert port in refused.stderr
    assert "--port-base" in refused.stderr


@pytest.fixture(scope="module")
def told(up: Installation) -> list[dict[str, Any]]:
    """The demo's story, the first time."""
    story: list[dict[str, Any]] = up.json("demo")
    return story


def test_the_story_can_be_told_again_and_again(
    up: Installation, told: list[dict[str, Any]]
) -> None:
    for story in (told, up.json("demo")):
        decisions = [step["decision"] for step in story]

        assert [
            "hidden",
            "visible",
            "allow",
            "allow",
            "deny",
            "deny",
            "allow",
            "intercept",
            "approved",
            "allow",
            "ok",
        ] == [decision for decision in decisions if decision]
        for step in story:
            if step["decision"] in {"allow", "deny", "intercept", "approved"}:
                assert re.fullmatch(r"[0-9a-f-]{36}", step["record"]), step


@pytest.mark.usefixtures("told")
def test_the_chain_verifies_and_every_record_can_be_shown(up: Installation) -> None:
    newest = up.lines("traces", "--limit", "1")[0]
    shown = json.loads(up.cli("traces", "show", newest["id"]).stdout)
    verified = up.json("audit", "verify")

    assert newest["id"] == shown["id"]
    assert "ok" == verified["verdict"]


def test_a_killed_process_comes_back(up: Installation) -> None:
    before = up.json("status")["processes"]
    for name in ("audit", "postgres", "proxy"):
        os.kill(before[name]["pid"], signal.SIGKILL)
    after = _status_when_ready(up, restarted=("audit", "postgres", "proxy"))

    again = {name for name in before if after[name]["starts"] > before[name]["starts"]}
    assert {"audit", "postgres", "proxy"} == again
    assert "ok" == up.json("audit", "verify")["verdict"]


def _status_when_ready(
    up: Installation, *, restarted: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """What `status` says once everything is ready again; each asking takes a while of its own."""
    processes: dict[str, Any] = {}
    for _ in range(60):
        processes = json.loads(up.cli("status", "--json").stdout).get("processes", {})
        again = all(processes[name]["starts"] > 1 for name in restarted)
        if again and all(facts["ready"] for facts in processes.values()):
            return processes
    raise AssertionError(processes)


def _secrets(state: Path) -> dict[str, str]:
    """Every generated secret by its file. Of keys and password lines, the part that is secret."""
    found = {}
    for path in state.rglob("*"):
        inside = path.relative_to(state).parts[0]
        if not path.is_file() or inside not in {
            "keys",
            "peers",
            "passfiles",
            "agents",
            "admin-password",
            "admin-api-key",
            "session.json",
        }:
            continue
        text = path.read_text().strip()
        if "PRIVATE KEY" in text:
            text = text.splitlines()[2]
        elif path.suffix == ".pgpass":
            text = text.rsplit(":", 1)[1]
        elif path.name == "session.json":
            text = json.loads(text)["token"]
        elif path.suffix == ".json":
            text = text.split("Bearer ", 1)[1].split('"')[0]
        found[str(path.relative_to(state))] = text
    return found


@pytest.mark.usefixtures("told")
def test_no_secret_is_in_any_process_s_arguments_environment_or_log(
    up: Installation, state_dir: Path
) -> None:
    up.json("login", "--password-file", str(state_dir / "admin-password"))
    secrets = _secrets(state_dir)
    processes = {name: facts["pid"] for name, facts in up.json("status")["processes"].items()} | {
        "up": up.process.pid
    }
    places = {}
    for name, pid in processes.items():
        places[f"{name} arguments"] = Path(f"/proc/{pid}/cmdline").read_bytes()
        if name != "up":
            places[f"{name} environment"] = Path(f"/proc/{pid}/environ").read_bytes()
            places[f"{name} log"] = (state_dir / "logs" / f"{name}.log").read_bytes()
    for pid in up.everything() - set(processes.values()):
        places[f"{pid} arguments"] = Path(f"/proc/{pid}/cmdline").read_bytes()
        places[f"{pid} environment"] = Path(f"/proc/{pid}/environ").read_bytes()
    hits = [
        (place, file)
        for place, content in places.items()
        for file, secret in secrets.items()
        if secret.encode() in content
    ]
    blind = [
        place
        for place, content in places.items()
        if not place[0].isdigit() and state_dir.name.encode() not in content
    ]

    assert len(secrets) >= 20
    assert "session.json" in secrets
    assert all(len(secret) >= 20 for secret in secrets.values())
    assert [] == hits
    assert [] == blind


def test_files_are_closed_to_others(up: Installation, state_dir: Path) -> None:
    opened = [
        str(path)
        for path in (state_dir, *state_dir.iterdir())
        if path.name != "demo-repo" and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    secret = [
        name
        for name in _secrets(state_dir)
        if stat.S_IMODE((state_dir / name).stat().st_mode) & 0o077
    ]

    assert ([], []) == (opened, secret)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="other kernels tell a child nothing")
def test_what_was_ended_or_killed_leaves_no_process_and_the_same_state_resumes(
    up: Installation, state_dir: Path
) -> None:
    """1. SIGTERM  2. the next start resumes  3. kill -9  4. the next start heals  5. `down`."""
    agents = up.document["agents"]
    secrets = _secrets(state_dir)
    before = up.everything()
    status = up.stop()  # 1
    left = [still_there(before)]
    with starting(state_dir, "--port-base", "0", "--engine", "embedded") as second:  # 2
        resumed = second.document
        before = second.everything()
        second.stop(signal.SIGKILL)  # 3
        left.append(still_there(before, within_s=20))
    with starting(state_dir, "--port-base", "0", "--engine", "embedded") as third:  # 4
        verified = third.json("audit", "verify")["verdict"]
        story = [step["decision"] for step in third.json("demo")]
        before = third.everything()
        down = third.cli("down")  # 5
    left.append(still_there(before))

    assert (0, 0, [set()] * 3) == (status, down.returncode, left)
    assert (up.document["proxy_url"], up.document["control_url"], agents) == (
        resumed["proxy_url"],
        resumed["control_url"],
        resumed["agents"],
    )
    assert secrets == _secrets(state_dir)
    assert "ok" == verified
    assert ["intercept", "approved", "allow", "ok"] == story[-4:]


def test_production_refuses_embedded_parts(tmp_path: Path) -> None:
    database = _run("up", "--state", str(tmp_path / "s"), BEHAVRY_ENV="production")
    engine = _run(
        "up",
        "--state",
        str(tmp_path / "s"),
        "--db-url",
        "postgresql://someone@127.0.0.1/none?passfile=/nowhere",
        "--engine",
        "embedded",
        BEHAVRY_ENV="production",
    )

    assert (2, 2) == (database.returncode, engine.returncode)
    assert "--db-url" in database.stderr
    assert "BEHAVRY_AUTHORIZER_ENGINE" in engine.stderr


def test_a_database_url_with_a_password_is_refused_without_repeating_it(tmp_path: Path) -> None:
    refused = _run("up", "--state", str(tmp_path / "s"), "--db-url", "postgresql://u:hunter2@/db")

    assert 2 == refused.returncode
    assert "hunter2" not in refused.stderr


def test_a_database_that_nobody_serves_ends_the_start(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"postgresql://u@127.0.0.1:{closed.getsockname()[1]}/db"
        failed = _run("up", "--state", str(tmp_path / "s"), "--port-base", "0", "--db-url", url)

    assert 1 == failed.returncode
    assert "database" in failed.stderr


@pytest.fixture
def own_server() -> Iterator[Server]:
    """Not the session's: `up` gives the roles passwords of its own."""
    with tempfile.TemporaryDirectory(prefix="bvpg-") as directory:
        server = start_server(Path(directory))
        yield server
        stop_server(server)


def test_a_server_of_ones_own_takes_the_embedded_ones_place(
    own_server: Server, tmp_path: Path
) -> None:
    database = own_server.create_database(())
    options = ("--db-url", database.admin_dsn, "--port-base", "0", "--engine", "embedded")
    with starting(tmp_path / "s", *options, "--no-demo-data") as running:
        document = running.document
        status = running.json("status")

    assert "postgres" not in document["pids"]
    assert ([], []) == (document["agents"], document["servers"])
    assert all(facts["ready"] for facts in status["processes"].values())
    assert not (tmp_path / "s" / "db").exists()
