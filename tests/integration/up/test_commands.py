"""An admin's commands on a running installation: what they do, with which status they end."""

import json
from pathlib import Path

import asyncpg
import pytest

from services.cli import agent
from services.cli.output import CommandFailed
from services.common.postgres import embedded
from tests.fakes.installation import Installation
from tests.fakes.stack import until
from tests.fakes.tool_server import serving

GIT_ACTIONS = {"git_status": "read", "git_log": "read", "git_add": "write"}


@pytest.fixture
def known(up: Installation) -> Installation:
    """The demo agent has looked, so control has heard of the servers' tools."""
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
        "SELECT chain, seq, body FROM audit.events WHERE chain LIKE 'agent:%' ORDER BY seq LIMIT 1"
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
