"""An admin's commands on a running installation: what they do, with which status they end."""

import json
import re
import shlex
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from services.cli import agent, summary
from services.cli.output import CommandFailed
from services.common.postgres import embedded
from tests.fakes import neighbour
from tests.fakes.installation import COMMAND, Installation
from tests.fakes.stack import until
from tests.fakes.tool_server import serving


@pytest.fixture(scope="module")
def known(up: Installation) -> Installation:
    """The demo was shown once: control has heard of the servers' tools, there are records."""
    up.json("demo")
    return up


def _states(up: Installation) -> dict[str, tuple[str, str]]:
    tools = up.json("tools", "list", "git")
    return {tool["name"]: (tool["state"], tool["action"]) for tool in tools}


def test_one_tool_is_classified_and_hidden_again(known: Installation) -> None:
    classified = known.json("tools", "classify", "git", "git_add", "--action", "write")
    after = _states(known)["git_add"]
    hidden = known.json("tools", "hide", "git", "git_add")

    assert [{"tool": "git_add", "status": "approved"}] == classified
    assert ("approved", "write") == after
    assert [{"tool": "git_add", "status": "hidden"}] == hidden
    assert ("hidden", "write") == _states(known)["git_add"]


def test_many_are_classified_at_once(known: Installation) -> None:
    done = known.json("tools", "classify", "git", "git_diff", "git_show", "--action", "read")

    assert [
        {"tool": "git_diff", "status": "approved", "code": None},
        {"tool": "git_show", "status": "approved", "code": None},
    ] == done


def test_all_that_nobody_classified_yet(known: Installation) -> None:
    before = {name for name, (state, _) in _states(known).items() if state == "unclassified"}
    done = known.json("tools", "classify", "git", "--all", "--action", "write")

    assert before
    assert before == {one["tool"] for one in done}
    assert "unclassified" not in {state for state, _ in _states(known).values()}


def test_a_tool_that_no_server_offers_is_refused_by_name(known: Installation) -> None:
    one = known.cli("tools", "classify", "git", "git_nothing", "--action", "read")
    two = known.cli("tools", "classify", "git", "git_nothing", "git_log", "--action", "read")

    assert (1, 1) == (one.returncode, two.returncode)
    assert "not_found" in one.stderr
    assert "git_nothing: refused not_found" in two.stderr
    assert "git_log: approved" in two.stderr


def test_usage_is_status_2(up: Installation) -> None:
    statuses = [
        up.cli("tools", "classify", "git").returncode,
        up.cli("tools", "classify", "git", "--action", "read").returncode,
        up.cli("tools", "classify", "git", "git_log", "--action", "fly").returncode,
        up.cli("fly").returncode,
    ]

    assert [2, 2, 2, 2] == statuses


def test_a_server_of_ones_own(up: Installation) -> None:
    added = up.json("servers", "add", "notes", "--url", "http://127.0.0.1:9/mcp")
    twice = up.cli("servers", "add", "notes", "--url", "http://127.0.0.1:9/mcp")
    listed = {server["slug"]: server for server in up.json("servers", "list")}

    assert ("notes", "untrusted", "http") == (added["domain"], added["trust"], added["transport"])
    assert 1 == twice.returncode
    assert "conflict" in twice.stderr
    assert ["http://127.0.0.1:9/mcp"] == listed["notes"]["urls"]


def test_the_printed_way_to_ones_own_server_leads_to_a_call(
    up: Installation, tmp_path: Path
) -> None:
    with serving(tmp_path / "own") as server:
        assert server.url is not None
        up.json("servers", "add", "own", "--url", server.url)
        granted = up.json("roles", "grant", "git:read", "own:read")
        client = _client(up, "own")
        until(lambda: _listed(client) == [], "the agent may look at it")
        until(lambda: up.json("tools", "list", "own") != [], "its tools are known")
        up.json("tools", "classify", "own", "read_note", "--action", "read")
        until(lambda: _listed(client) == ["read_note"], "the tool is listed")
        allowed = client.call("read_note", {"call": "1", "text": "x"})
        hidden = client.call("write_note", {"call": "2", "text": "x"})
        ran = server.ran()

    assert {"git:read", "own:read"} <= set(granted["permissions"])
    assert not allowed["result"].get("isError")
    assert "Unknown tool: write_note" == hidden["error"]["message"]
    assert 1 == len(ran)


def _client(up: Installation, slug: str) -> agent.Client:
    demo = up.document["agents"][0]
    token = agent.fetch_token(
        up.document["proxy_url"],
        client_id=demo["client_id"],
        client_secret=Path(demo["secret_file"]).read_text().strip(),
    )
    return agent.Client(mcp_url=f"{up.document['proxy_url']}/mcp/v1/{slug}", token=token)


def _listed(client: agent.Client) -> list[str] | None:
    """None while the server is not known to the gateway or not granted."""
    try:
        return client.list_tools()
    except CommandFailed:
        return None


def test_traces_are_found_by_what_was_decided(known: Installation) -> None:
    denied = known.lines("traces", "--filter", "verdict:deny tool:git_reset", "--limit", "5")
    shown = json.loads(known.cli("traces", "show", denied[0]["id"]).stdout)
    lines = known.cli("traces", "--filter", "tool:git_reset", "--limit", "1").stdout.splitlines()

    assert {("git_reset", "deny", "no_reset")} == {
        (trace["tool"], trace["verdict"], trace["reason"]) for trace in denied
    }
    assert denied[0]["id"] == shown["id"]
    assert 2 == len(lines)
    assert "demo-agent" in lines[1]


def test_a_filter_that_means_nothing_is_refused(up: Installation) -> None:
    refused = up.cli("traces", "--filter", "colour:blue")

    assert 1 == refused.returncode
    assert "invalid_filter" in refused.stderr


def test_a_record_that_does_not_exist_is_not_found(up: Installation) -> None:
    refused = up.cli("traces", "show", "01a1fe09-7d5d-779e-af94-399d9ff93df2")

    assert 1 == refused.returncode
    assert "not_found" in refused.stderr


def test_a_wrong_key_is_status_8(up: Installation, state_dir: Path) -> None:
    key = state_dir / "admin-api-key"
    right = key.read_text()
    key.write_text(right[:-3] + "000")
    refused = up.cli("traces")
    key.write_text(right)

    assert 8 == refused.returncode
    assert right.strip() not in refused.stderr


def test_where_nothing_runs_is_status_7(tmp_path: Path, up: Installation) -> None:
    elsewhere = Installation(
        state_dir=tmp_path / "none",
        process=up.process,
        document={},
        environment=up.environment,
    )

    assert {7} == {
        elsewhere.cli(*command).returncode
        for command in (("status",), ("down",), ("demo",), ("traces",), ("audit", "verify"))
    }


async def test_a_changed_record_is_named_and_is_status_3(
    known: Installation, state_dir: Path
) -> None:
    cluster = embedded.locate(
        state_dir,
        socket_dir=state_dir / "run",
        passfile=state_dir / "passfiles" / f"{embedded.SUPERUSER}.pgpass",
    )
    connection = await asyncpg.connect(cluster.dsn())
    row = await connection.fetchrow(
        "SELECT chain, seq, body FROM audit.events WHERE chain LIKE 'agent:%' AND tenant_id <> $1"
        " ORDER BY seq LIMIT 1",
        neighbour.TENANT,
    )
    assert row is not None
    change = "UPDATE audit.events SET body = $3 WHERE chain = $1 AND seq = $2"
    before = known.cli("audit", "verify")
    await connection.execute(change, row["chain"], row["seq"], row["body"] + b" ")
    tampered = known.cli("audit", "verify", "--json")
    one_chain = known.cli("audit", "verify", "--chain", row["chain"])
    await connection.execute(change, row["chain"], row["seq"], row["body"])
    after = known.cli("audit", "verify")
    await connection.close()
    result = json.loads(tampered.stdout)
    finding = {"chain": row["chain"], "position": row["seq"], "code": "body_mismatch"}

    assert (0, 3, 3, 0) == (
        before.returncode,
        tampered.returncode,
        one_chain.returncode,
        after.returncode,
    )
    assert "tampered" == result["verdict"]
    assert finding == result["findings"][0]
    assert f"{row['chain']} at {row['seq']}: body_mismatch" in one_chain.stdout


# --- Connect, approve, stop: what the first run's text tells ------------------------------------


def _entry(up: Installation, client: str, server: str) -> tuple[str, dict[str, str]]:
    """Address and headers of what `connect` prints, its variables filled in like a client does."""
    text = up.json("connect", client, "--server", server)["text"]
    key = Path(up.document["agents"][0]["key_file"]).read_text().strip()
    if client == "codex":
        entry = tomllib.loads(text)["mcp_servers"][server]
        assert "BEHAVRY_AGENT_KEY" == entry["bearer_token_env_var"]
        return entry["url"], {"Authorization": f"Bearer {key}"}
    document = json.loads(text)
    entry = document["servers" if client == "vscode" else "mcpServers"][server]
    written = entry["headers"]["Authorization"]
    filled = re.sub(r"\$\{(env:BEHAVRY_AGENT_KEY|BEHAVRY_AGENT_KEY|input:[a-z-]+)\}", key, written)
    return entry["url"], {"Authorization": filled}


@pytest.mark.parametrize("client", ["claude-code", "cursor", "vscode", "codex"])
def test_what_connect_prints_reaches_the_gateway(known: Installation, client: str) -> None:
    url, headers = _entry(known, client, "time")
    token = agent.Token(
        access_token=headers["Authorization"].removeprefix("Bearer "),
        agent_id="",
        session_id="",
        expires_in=0,
    )
    right = agent.Client(mcp_url=url, token=token).call("get_current_time", {"timezone": "UTC"})
    wrong = agent.Client(mcp_url=url, token=replace(token, access_token="bhv_ak_x.y"))

    assert not right["result"].get("isError")
    with pytest.raises(CommandFailed):
        wrong.list_tools()


def _writer(up: Installation) -> agent.Client:
    """The demo agent where it may add and commit, whatever other tests did to the tools."""
    client = _client(up, "git")
    up.json("tools", "classify", "git", "git_add", "git_commit", "--action", "write")
    until(lambda: {"git_add", "git_commit"} <= set(client.list_tools()), "it sees both", 5)
    return client


def test_a_person_at_the_command_line_lets_a_waiting_call_run(
    known: Installation, state_dir: Path
) -> None:
    password = str(state_dir / "admin-password")
    client = _writer(known)
    readme = state_dir / "demo-repo" / "README.md"
    readme.write_text(readme.read_text() + "\nFrom the command line.\n")
    repository = {"repo_path": str(readme.parent)}
    client.call("git_add", {**repository, "files": [readme.name]})
    with ThreadPoolExecutor(1) as held:
        calling = held.submit(
            client.call, "git_commit", {**repository, "message": "By hand"}, timeout_s=70
        )
        until(lambda: known.lines("escalations", "list") != [], "it is in the inbox")
        (waiting,) = known.lines("escalations", "list")
        by_a_machine = known.cli("escalations", "approve", waiting["id"])
        signed_in = known.json("login", "--password-file", password)
        approved = known.lines("escalations", "approve", waiting["id"], "--reason", "looks right")
        answer = calling.result(timeout=20)
    again = known.cli("escalations", "approve", waiting["id"])
    whoami = known.json("whoami")
    known.cli("logout")

    assert (8, "admin", ["approved"]) == (
        by_a_machine.returncode,
        signed_in["role"],
        [one["state"] for one in approved],
    )
    assert "committed" in answer["result"]["content"][0]["text"]
    assert 1 == again.returncode
    assert "escalation_closed" in again.stderr
    assert ("user", "api_key") == (whoami["kind"], known.json("whoami")["kind"])


def test_a_person_at_the_command_line_refuses_a_waiting_call(
    known: Installation, state_dir: Path
) -> None:
    client = _writer(known)
    arguments = {"repo_path": str(state_dir / "demo-repo"), "message": "Not this one"}
    known.json("login", "--password-file", str(state_dir / "admin-password"))
    with ThreadPoolExecutor(1) as held:
        calling = held.submit(client.call, "git_commit", arguments, timeout_s=70)
        until(lambda: known.lines("escalations", "list") != [], "it is in the inbox")
        (waiting,) = known.lines("escalations", "list")
        denied = known.lines("escalations", "deny", waiting["id"], "--reason", "not today")
        answer = calling.result(timeout=20)
    known.cli("logout")

    assert ["denied"] == [one["state"] for one in denied]
    assert answer["result"]["isError"]
    assert "escalation_denied" == answer["result"]["_meta"]["com.behavry/decision"]["reason"]


def _is_stopped(client: agent.Client) -> bool:
    answer = client.call("get_current_time", {"timezone": "UTC"})
    return bool(answer.get("result", {}).get("isError"))


def test_this_machine_stops_an_agent_by_itself_and_gives_it_back(known: Installation) -> None:
    client = _client(known, "time")
    before = _is_stopped(client)
    told = known.cli("agents", "suspend", "demo-agent", "--local", "--reason", "drill")
    until(lambda: _is_stopped(client), "it is stopped", 2)
    warned = {check["id"]: check["state"] for check in known.json("doctor")["checks"]}
    given_back = known.cli("agents", "suspend", "demo-agent", "--local", "--off")
    until(lambda: not _is_stopped(client), "it works again", 2)

    assert not before
    assert (0, 0) == (told.returncode, given_back.returncode)
    assert "warn" == warned["stops.local"]


def test_control_stops_a_server_and_a_person_gives_it_back(
    known: Installation, state_dir: Path
) -> None:
    client = _client(known, "time")
    options = ("--scope", "server", "--subject", "time", "--reason", "a planned drill")
    unconfirmed = known.cli("kill", *options, "--no-input")
    thrown = known.json("kill", *options, "--confirm", "time")
    until(lambda: _is_stopped(client), "it is stopped", 2)
    by_a_machine = known.cli("kill", "--release", thrown["id"], "--reason", "drill over")
    known.json("login", "--password-file", str(state_dir / "admin-password"))
    released = known.json("kill", "--release", thrown["id"], "--reason", "drill over")
    known.cli("logout")
    until(lambda: not _is_stopped(client), "it works again", 5)

    assert (2, 8, "off") == (unconfirmed.returncode, by_a_machine.returncode, released["state"])


def test_a_running_installation_is_well_and_its_faults_are_found(
    known: Installation, state_dir: Path, tmp_path: Path
) -> None:
    healthy = known.json("doctor")
    key = state_dir / "keys" / "seal.keys"
    key.chmod(0o644)
    opened = known.cli("doctor", "--json")
    mended = known.cli("doctor", "--fix", "--json")
    failed = [one["id"] for one in json.loads(opened.stdout)["checks"] if one["state"] == "fail"]
    states = {one["id"]: one["state"] for one in healthy["checks"]}

    assert (3, ["state.permissions"], 0) == (opened.returncode, failed, mended.returncode)
    assert {"ok"} == {
        states[name]
        for name in ("grpc.authorizer", "http.proxy", "bundle", "jwks", "migrations.control")
    }


def test_a_policy_goes_from_a_file_to_a_decision_and_back(
    known: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "no_diff.rego"
    where = ("--server", "time", "--tool", "convert_time", "--directory", str(tmp_path))
    made = known.cli("policy", "new", "no_diff", *where)
    tested = known.json("policy", "test", str(file))
    known.json("policy", "push", str(file))
    promoted = known.json("policy", "promote", "no_diff")
    arguments = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    client = _client(known, "time")

    def refused() -> bool:
        return bool(client.call("convert_time", arguments)["result"].get("isError"))

    until(refused, "the policy counts", 5)
    retired = known.json("policy", "retire", "no_diff", "--confirm", "no_diff")
    until(lambda: not refused(), "it counts no more", 5)
    file.write_text(file.read_text().replace('"result": "deny"', '"result": "perhaps"'))
    rejected = known.cli("policy", "test", str(file))

    assert (0, 2, 3) == (made.returncode, tested["tests_passed"], rejected.returncode)
    assert ("enforce", "retired") == (promoted["state"], retired["state"])


def test_an_agent_enrols_itself_with_a_token_once(known: Installation, tmp_path: Path) -> None:
    token, key = tmp_path / "token", tmp_path / "key"
    known.json("enrollment-tokens", "create", "ci", "--role", "time:read", "--out", str(token))
    made = known.json("agents", "enroll", "ci-1", "--token-file", str(token), "--out", str(key))
    again = known.cli("agents", "enroll", "ci-2", "--token-file", str(token))
    revoked = known.json("agents", "revoke", "ci-1", "--confirm", "ci-1")
    resumed = known.cli("agents", "resume", "ci-1")

    assert key.read_text().startswith(f"bhv_ak_{made['client_id']}.")
    assert (8, "revoked", 1) == (again.returncode, revoked["status"], resumed.returncode)


def test_limits_change_only_where_they_are_named(known: Installation) -> None:
    before = json.loads(known.cli("limits", "show").stdout)
    changed = known.json("limits", "set", "--agent-burst", "101", "--tool", "git/git_log=9")
    back = known.json("limits", "set", "--agent-burst", "100", "--tool", "git/git_log=0")
    wrong = known.cli("limits", "set", "--tool", "git=9")

    assert {**before["rates"], "agent_burst": 101, "tools": {"git": {"git_log": 9}}} == (
        changed["rates"]
    )
    assert (before, 2) == (back, wrong.returncode)


def test_the_commands_of_the_first_run_are_there_as_printed(
    known: Installation, tmp_path: Path
) -> None:
    page = summary.page(known.document).split("Your own server")[0]
    lines = [line.strip() for line in page.splitlines() if " -m services.cli " in line]
    printed = [shlex.split(line)[3:] for line in lines if not line.startswith(("Five", "export"))]
    runnable = [words for words in printed if "connect" not in words and "ID" not in words]
    statuses = {
        " ".join(words): subprocess.run(
            [*COMMAND, *words], capture_output=True, timeout=60, check=False, cwd=tmp_path
        ).returncode
        for words in runnable
    }
    known.cli("logout")

    assert {"connect", "tools", "policy", "login", "escalations", "traces", "audit"} == {
        words[0] for words in printed
    }
    assert {0} == set(statuses.values()), statuses
