"""No secret that an installation made stands in a command line, an environment or a log.

Looks into every process of a running installation after it has been used. The same look finds a
value that was planted in each of the three places: a search that finds nothing must be able to.
"""

from pathlib import Path

from tests.fakes.stack import Stack, fetch, until
from tests.fakes.tool_server import ToolServer
from tests.journeys.agents import register
from tests.journeys.conftest import PLANTED

MADE_SECRET_IN = ("peers/*.token", "keys/*.keys", "keys/*.pem", "passfiles/*", "agents/*.secret")
SHORTEST = 16


def secrets_of(stack: Stack) -> dict[str, str]:
    """Every generated value, by where it is kept."""
    state = Path(stack.up.state_dir)
    files = [file for pattern in MADE_SECRET_IN for file in sorted(state.glob(pattern))]
    files += [Path(stack.up.admin.password_file), Path(stack.up.admin.api_key_file)]
    found: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines()):
            value = line.rpartition(":")[2] if file.parent.name == "passfiles" else line
            if value and not value.startswith("-----"):
                found[f"{file.relative_to(state)}:{number}"] = value
    return found


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


def logs(stack: Stack) -> dict[str, str]:
    kept = Path(stack.up.state_dir) / "logs"
    return {file.stem: file.read_text(errors="replace") for file in sorted(kept.iterdir())}


def test_no_secret_is_where_others_can_read_it(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    assert tool_server.url is not None
    running_stack.add_http_server("notes", tool_server.url)
    agent = register(running_stack, "careful", "notes:read")
    running_stack.approve("notes", agent.token, {"read_note": "read"}, category="notes")
    until(lambda: bool(running_stack.listed("notes", agent.token)), "the tool is listed")
    running_stack.ask("notes", agent.token, "tools/call", {"name": "read_note", "arguments": {}})
    password = Path(running_stack.up.admin.password_file).read_text().strip()
    sign_in(running_stack, password)
    made = secrets_of(running_stack) | {
        "agent's secret": agent.secret,
        "agent's token": agent.token,
    }

    assert len(made) > 15
    assert {} == {name: value for name, value in made.items() if len(value) < SHORTEST}
    read: dict[str, str] = {}
    for name, pid in running_stack.pids().items():
        read[f"{name} arguments"] = arguments(pid)
        read[f"{name} environment"] = environment(pid)
    read |= {f"{name} log": text for name, text in logs(running_stack).items()}
    hits = [
        f"{name} in {place}" for place, text in read.items() for name in made if made[name] in text
    ]

    assert [] == hits


def test_the_search_finds_what_is_there(running_stack: Stack) -> None:
    pids = running_stack.pids()
    written = logs(running_stack)

    assert {True} == {PLANTED in environment(pid) for pid in pids.values()}
    assert any(PLANTED in arguments(pid) for pid in pids.values())
    for service in ("proxy", "authorizer", "audit", "control", "entitlements"):
        assert f"services.{service}" in arguments(pids[service])
        assert PLANTED in written[service], service


def sign_in(stack: Stack, password: str) -> None:
    fetch(
        f"{stack.up.control_url}/api/v1/auth/login",
        "POST",
        f'{{"username":"{stack.up.admin.username}","password":"{password}"}}'.encode(),
        {"content-type": "application/json"},
    )
