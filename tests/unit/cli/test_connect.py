"""`behavry connect` on files as people have them: one entry changes, the rest keeps its bytes."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.cli.clients import files, jsonc, toml_text
from services.cli.clients.catalogue import CODE_CLIENTS, FILE_CLIENTS, Endpoint
from services.cli.clients.jsonc import CannotEdit, Malformed
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

ENDPOINT = Endpoint(server="git", gateway="http://127.0.0.1:9")
ENTRY = {"url": "http://gw/mcp/v1/git/key"}
COMMENTED = """\
{
    // Servers of this project.
    "mcpServers": {
        "files": { "command": "npx", "args": ["-y", "files"] }, // keep me
        /* the old one */
        "mail": {
            "url": "https://mail.example/mcp", // by name
        }
    },
    "other": [1, 2,   3], // and me
}
"""
CURSOR = '{\n\t"mcpServers": {\n\t\t"a": {"url": "http://x"}\n\t},\n\t"z": 1.50\n}\n'
CODEX = """\
# My settings
model = "gpt-5"   # the good one

[mcp_servers.docs]
command = "docs"
args = ["--all",
  "[mcp_servers.git]",
]

# profiles below
[profiles.fast]
model = 'small'
"""


# --- JSON with comments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{ }\n",
        '{"mcpServers": {}}',
        '{"mcpServers":{"a":{"url":"x"}}}',
        '{"a": 1}',
        CURSOR,
        COMMENTED,
        COMMENTED.replace("\n", "\r\n"),
        "\ufeff" + CURSOR,
        '{\n  "mcpServers": {\n    // none yet\n  }\n}\n',
        '{\n  "a": "\\u007b // no comment",\n  "b": "}"\n}',
    ],
)
def test_an_entry_is_put_in_and_taken_out_and_the_rest_stays(text: str) -> None:
    before = jsonc.parse(text)
    added = jsonc.edit(text, ("mcpServers", "git"), ENTRY)
    again = jsonc.edit(added, ("mcpServers", "git"), ENTRY)
    removed = jsonc.remove(added, ("mcpServers", "git"))
    after = jsonc.parse(removed)

    assert ENTRY == jsonc.parse(added)["mcpServers"]["git"]
    assert added == again
    assert {"mcpServers": {}, **before} == {"mcpServers": {}, **after}
    assert [line for line in text.splitlines() if "//" in line and "no comment" not in line] == [
        line for line in removed.splitlines() if "//" in line and "no comment" not in line
    ]


def test_lines_of_others_are_not_touched() -> None:
    added = jsonc.edit(COMMENTED, ("mcpServers", "git"), ENTRY)
    lines = added.splitlines()

    assert [] == [line for line in COMMENTED.splitlines() if line not in [*lines, "        }"]]
    assert '        "git": {' in lines
    assert COMMENTED == jsonc.remove(added, ("mcpServers", "git")).replace(
        "        },\n    }", "        }\n    }"
    )


def test_a_value_is_replaced_in_its_place() -> None:
    changed = jsonc.edit(COMMENTED, ("mcpServers", "files"), ENTRY)

    assert ["files", "mail"] == list(jsonc.parse(changed)["mcpServers"])
    assert "// keep me" in changed
    assert "npx" not in changed


def test_a_comment_goes_with_the_entry_that_it_speaks_of_and_with_no_other() -> None:
    text = '{"s": {"git": {\n  "url": "x" // mine\n} /* behind */, // here\n"b": 1 // of b\n}}'
    changed = jsonc.edit(text, ("s", "git"), ENTRY)
    removed = jsonc.remove(text, ("s", "git"))

    assert {"s": {"git": ENTRY, "b": 1}} == jsonc.parse(changed)
    assert {"s": {"b": 1}} == jsonc.parse(removed)
    for after in (changed, removed):
        assert "mine" not in after
        assert "// here" in after
        assert "// of b" in after


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_any_of_several_goes(victim: str) -> None:
    for text in (
        '{"s": {"a": 1, "b": {"x": [1, {}]}, "c": 3}}',
        '{"s": {\n  "a": 1, // of a\n  "b": {"x": [1, {}]},\n  // of c\n  "c": 3\n}}',
        '{"s": {"a": 1,\n"b": {"x": [1, {}]}, "c": 3,}}',
    ):
        left = jsonc.parse(jsonc.remove(text, ("s", victim)))
        expected = {"a": 1, "b": {"x": [1, {}]}, "c": 3}
        del expected[victim]
        assert {"s": expected} == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1",
        '{"a": 1 "b": 2}',
        '{"a": 1, "a": 2}',
        "{'a': 1}",
        '{"a": 01}',
        '{"a": tru}',
        '{"a": "\x01"}',
        '{"a": 1} trailing',
        "/* open",
        '{"a": NaN}',
        "[" * 80 + "]" * 80,
    ],
)
def test_what_is_not_json_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(Malformed):
        jsonc.edit(text, ("mcpServers", "git"), ENTRY)


@pytest.mark.parametrize("text", ['{"mcpServers": []}', '{"mcpServers": "x"}', "[]", "3"])
def test_a_table_that_is_none_is_left_alone(text: str) -> None:
    with pytest.raises(CannotEdit):
        jsonc.edit(text, ("mcpServers", "git"), ENTRY)


# --- TOML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "x = 1", CODEX, CODEX.replace("\n", "\r\n"), CODEX + "[[a]]\nb = 1\n"]
)
def test_a_table_is_put_in_and_taken_out_and_the_rest_stays(text: str) -> None:
    table = {"url": "http://gw/mcp/v1/git/key", "bearer_token_env_var": "K"}
    added = toml_text.edit(text, ("mcp_servers", "git"), table)
    again = toml_text.edit(added, ("mcp_servers", "git"), table)
    changed = toml_text.edit(added, ("mcp_servers", "git"), {**table, "bearer_token_env_var": "L"})
    removed = toml_text.remove(changed, ("mcp_servers", "git"))

    assert added.startswith(text)
    assert added == again
    assert "L" == tomllib.loads(changed)["mcp_servers"]["git"]["bearer_token_env_var"]
    assert tomllib.loads(text) == tomllib.loads(removed)
    assert removed.startswith(text)


def test_sub_tables_go_with_it_and_comments_stay() -> None:
    text = (
        '[mcp_servers.git]\n# mine\ncommand = "git"\n[mcp_servers.git.env]\nA = "1"\n\n'
        "# of the next\n[next]\nb = 2\n"
    )
    changed = toml_text.edit(text, ("mcp_servers", "git"), {"url": "u"})

    assert {"mcp_servers": {"git": {"url": "u"}}, "next": {"b": 2}} == tomllib.loads(changed)
    assert "# mine\n" in changed
    assert "# of the next\n[next]\nb = 2\n" in changed


@pytest.mark.parametrize(
    "text",
    [
        'mcp_servers.git.url = "x"\n',
        'mcp_servers = { git = { url = "x" } }\n',
        "mcp_servers = 3\n",
        '[mcp_servers]\ngit = { url = "x" }\n',
    ],
)
def test_another_form_is_left_alone(text: str) -> None:
    with pytest.raises(CannotEdit):
        toml_text.edit(text, ("mcp_servers", "git"), {"url": "u"})


def test_what_is_not_toml_is_refused() -> None:
    with pytest.raises(Malformed):
        toml_text.edit("[a\n", ("mcp_servers", "git"), {"url": "u"})


# --- Clients ------------------------------------------------------------------------------------

#: They read the key from a variable, or ask for it; the others' files hold it.
KEYLESS = [name for name, client in FILE_CLIENTS.items() if not client.holds_key]
KEY = "bhv_ak_0193.made-up_for~tests"


@pytest.mark.parametrize("name", KEYLESS)
def test_no_entry_holds_a_secret_and_each_names_the_gateway(name: str) -> None:
    client = FILE_CLIENTS[name]
    text = files.with_entry(client, ENDPOINT, None)

    assert "connected" == files.shown(client, ENDPOINT, text).state
    assert "bhv_ak_" not in text
    assert 1 == text.count("http://127.0.0.1:9/mcp/v1/git/key")
    assert client.entry(ENDPOINT) == files.configured(client, text)["git"]


def test_vs_code_asks_once_for_all_servers_and_no_more_when_the_last_has_gone() -> None:
    client = FILE_CLIENTS["vscode"]
    time = Endpoint(server="time", gateway=ENDPOINT.gateway)
    mine = '{"inputs": [{"type": "promptString", "id": "mine"}]}'
    both = files.with_entry(client, time, files.with_entry(client, ENDPOINT, mine))
    one = files.without_entry(client, time, both)
    none = files.without_entry(client, ENDPOINT, one)
    ids = [[one["id"] for one in jsonc.parse(text)["inputs"]] for text in (both, one, none)]

    assert [["mine", "behavry-agent-key"], ["mine", "behavry-agent-key"], ["mine"]] == ids


@pytest.mark.parametrize("name", CODE_CLIENTS)
def test_a_snippet_is_a_program_with_the_key_from_the_environment(name: str) -> None:
    snippet = CODE_CLIENTS[name].snippet(ENDPOINT)
    constants = [
        node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)
    ]

    assert "http://127.0.0.1:9/mcp/v1/git/key" in constants
    assert "BEHAVRY_AGENT_KEY" in constants


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def server(control: RestControl) -> None:
    page = {"items": [{"slug": "git"}], "next_page_token": ""}
    control.answers["GET /api/v1/servers"] = (200, page)


def _paths(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.iterdir() if path.name != "state")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("claude-code", COMMENTED),
        ("cursor", CURSOR),
        ("vscode", '{\n  // mine\n  "servers": {}\n}\n'),
        ("codex", CODEX),
    ],
)
def test_write_shows_backs_up_and_a_second_run_changes_nothing(
    run: Run, tmp_path: Path, name: str, text: str
) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    file.chmod(0o640)
    options = (name, "--server", "git", "--file", str(file))
    absent = run("connect", *options, "--status")
    dry = run("connect", *options, "--write", "--dry-run")
    unasked = run("connect", *options, "--write")
    untouched = file.read_text()
    wrote = run("connect", *options, "--write", "--yes")
    (backup,) = [path for path in _paths(tmp_path) if path.suffix == ".bak"]
    written = file.read_text()
    status = run("connect", *options, "--status")
    again = run("connect", *options, "--write", "--yes")

    assert (3, 0, 2, text) == (absent.status, dry.status, unasked.status, untouched)
    assert "+" in dry.out
    assert (0, "", text, 0o640) == (
        wrote.status,
        wrote.out,
        backup.read_text(),
        file.stat().st_mode & 0o777,
    )
    assert "/mcp/v1/git/key" in wrote.err
    assert (0, 0, written) == (status.status, again.status, file.read_text())
    assert 2 == len(_paths(tmp_path))


@pytest.mark.usefixtures("server")
def test_remove_takes_ours_alone(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text('{"mcpServers": {"git": {"url": "https://elsewhere/mcp"}}}')
    options = ("cursor", "--server", "git", "--file", str(file))
    foreign = run("connect", *options, "--remove", "--yes")
    kept = file.read_text()
    run("connect", *options, "--write", "--yes")
    removed = run("connect", *options, "--remove", "--yes")
    nothing = run("connect", *options, "--remove", "--yes")

    assert (1, '{"mcpServers": {"git": {"url": "https://elsewhere/mcp"}}}') == (
        foreign.status,
        kept,
    )
    assert (0, 0) == (removed.status, nothing.status)
    assert {"mcpServers": {}} == json.loads(file.read_text())


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("name", "text"), [("cursor", '{"mcpServers": {'), ("codex", "[a\n")])
def test_a_malformed_file_is_never_written(run: Run, tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    options = (name, "--server", "git", "--file", str(file))
    statuses = [
        run("connect", *options, "--write", "--yes").status,
        run("connect", *options, "--remove", "--yes").status,
        run("connect", *options, "--status").status,
    ]

    assert ([1, 1, 1], text, [file]) == (statuses, file.read_text(), _paths(tmp_path))


@pytest.mark.usefixtures("server")
def test_a_link_is_followed_and_a_new_file_is_closed(run: Run, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "mcp.json"
    real.parent.mkdir()
    real.write_text("{}")
    link = tmp_path / "mcp.json"
    link.symlink_to(real)
    new = tmp_path / "new" / "mcp.json"
    for file in (link, new):
        run("connect", "cursor", "--server", "git", "--file", str(file), "--write", "--yes")

    assert link.is_symlink()
    assert "git" in real.read_text()
    assert 0o600 == new.stat().st_mode & 0o777


@pytest.mark.usefixtures("server")
def test_a_server_that_does_not_exist_is_named_with_those_that_do(run: Run) -> None:
    refused = run("connect", "cursor", "--server", "gti")

    assert (1, "") == (refused.status, refused.out)
    assert "git" in refused.err


@pytest.mark.usefixtures("server")
def test_claude_desktop_starts_our_program_and_no_key_is_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVRY_AGENT_KEY", KEY)

    told = run("connect", "claude-desktop", "--server", "git")

    (entry,) = json.loads(told.out)["mcpServers"].values()
    assert "behavry-mcp-stdio" == Path(entry["command"]).name
    assert ["--server-url"] == entry["args"][:-1]
    assert entry["args"][-1].endswith("/mcp/v1/git/key")
    assert {"BEHAVRY_AGENT_KEY": "..."} == entry["env"]
    assert KEY not in told.out + told.err


@pytest.mark.usefixtures("server")
def test_claude_desktop_s_file_holds_the_key_for_its_owner_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "claude_desktop_config.json"
    file.write_text('{"mcpServers": {"mine": {"command": "m"}}}')
    file.chmod(0o644)
    options = ("claude-desktop", "--server", "git", "--file", str(file))
    monkeypatch.delenv("BEHAVRY_AGENT_KEY", raising=False)
    keyless = run("connect", *options, "--write", "--yes")
    untouched = file.read_text()
    monkeypatch.setenv("BEHAVRY_AGENT_KEY", KEY)
    wrote = run("connect", *options, "--write", "--yes")
    held = json.loads(file.read_text())["mcpServers"]
    monkeypatch.delenv("BEHAVRY_AGENT_KEY")
    status = run("connect", *options, "--status")
    monkeypatch.setenv("BEHAVRY_AGENT_KEY", f"{KEY}2")
    renewed = run("connect", *options, "--write", "--yes")
    again = json.loads(file.read_text())["mcpServers"]["git"]["env"]
    removed = run("connect", *options, "--remove", "--yes")

    assert (2, '{"mcpServers": {"mine": {"command": "m"}}}') == (keyless.status, untouched)
    assert (0, 0, 0, 0) == (wrote.status, status.status, renewed.status, removed.status)
    assert ({"command": "m"}, KEY) == (held["mine"], held["git"]["env"]["BEHAVRY_AGENT_KEY"])
    assert f"{KEY}2" == again["BEHAVRY_AGENT_KEY"]
    assert {"mine": {"command": "m"}} == json.loads(file.read_text())["mcpServers"]
    assert {0o600} == {path.stat().st_mode & 0o777 for path in _paths(tmp_path)}
    for ran in (keyless, wrote, status, renewed, removed):
        assert KEY not in ran.out + ran.err


@pytest.mark.parametrize("key", ["...", "", None])
def test_an_entry_without_a_key_does_not_connect(key: str | None) -> None:
    client = FILE_CLIENTS["claude-desktop"]
    entry = client.entry(ENDPOINT) | {"env": {} if key is None else {"BEHAVRY_AGENT_KEY": key}}
    text = json.dumps({"mcpServers": {"git": entry}})

    assert "stale" == files.shown(client, ENDPOINT, text).state


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", [*FILE_CLIENTS, *CODE_CLIENTS])
def test_what_is_printed_is_data_alone(run: Run, name: str) -> None:
    told = run("connect", name, "--server", "git")
    shown: Any = run("connect", name, "--server", "git", "--json").out

    assert 0 == told.status
    if name in CODE_CLIENTS:
        ast.parse(told.out)
    elif name == "codex":
        tomllib.loads(told.out)
    else:
        json.loads(told.out)
    assert told.out.strip() in {
        json.loads(shown).get("text", "").strip(),
        json.loads(shown).get("snippet", "").strip(),
    }


@pytest.mark.parametrize("name", ["a b", "$(x)", "", "1A"])
def test_a_variable_s_name_is_nothing_else(run: Run, name: str) -> None:
    options = ("--server", "git", "--gateway", "https://gw.example", "--key-env", name)

    assert 2 == run("connect", "cursor", *options).status


def test_another_gateway_needs_no_installation(run: Run, tmp_path: Path) -> None:
    told = run(
        "connect",
        "cursor",
        "--server",
        "git",
        "--gateway",
        "https://gw.example/",
        "--state",
        str(tmp_path / "none"),
    )

    assert 0 == told.status
    assert re.search(r'"https://gw.example/mcp/v1/git/key"', told.out)
