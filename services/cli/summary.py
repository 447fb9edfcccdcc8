"""What `up` says when everything is ready: one document, as JSON for programs and as a page for
people.

Decides wording and the document's keys. No secret is in it: paths of the files that hold them.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli import plan
from services.cli.children import Children
from services.cli.clients.catalogue import KEY_VARIABLE
from services.cli.output import emit, emit_text
from services.common.service_settings import default_state_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAgent:
    """The agent that the demo data made."""

    name: str
    client_id: str
    secret_file: Path
    key_file: Path
    client_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo data consists of."""

    agents: list[DemoAgent]
    servers: list[str]


def processes(children: Children) -> dict[str, dict[str, Any]]:
    """State of each process, for `behavry status`."""
    return {
        child.program.name: {"pid": child.pid, "ready": child.is_ready, "starts": child.starts}
        for child in children.all
    }


def document(decided: plan.Plan, children: Children, demo: Demo | None) -> dict[str, Any]:
    """The object of `up --json`."""
    state = decided.state
    return {
        "proxy_url": decided.proxy_url,
        "control_url": decided.control_url,
        "admin": {
            "username": "admin",
            "password_file": str(state.admin_password),
            "api_key_file": str(state.admin_api_key),
        },
        "agents": [
            {
                "name": agent.name,
                "client_id": agent.client_id,
                "secret_file": str(agent.secret_file),
                "key_file": str(agent.key_file),
            }
            for agent in (demo.agents if demo else [])
        ],
        "servers": [
            {"slug": slug, "mcp_url": f"{decided.proxy_url}/mcp/v1/{slug}"}
            for slug in (demo.servers if demo else [])
        ],
        "pids": children.pids(),
        "engine": decided.engine.setting,
        "state_dir": str(state.root),
    }


def show(document: dict[str, Any], *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        emit(document)
    else:
        emit_text(page(document))


def client_snippet(mcp_url: str, key: str) -> dict[str, Any]:
    """The usual configuration of an MCP client, for the static-key form of an endpoint."""
    name = mcp_url.rsplit("/", 1)[1]
    headers = {"Authorization": f"Bearer {key}"}
    return {"mcpServers": {name: {"type": "http", "url": f"{mcp_url}/key", "headers": headers}}}


def page(document: dict[str, Any]) -> str:
    """For people."""
    control, state = document["control_url"], document["state_dir"]
    admin = document["admin"]
    behavry, where = _command(), _state_option(Path(state))
    lines = [
        "Behavry is ready.",
        "",
        f"  API                 {control}",
        f"  admin sign-in       {admin['username']}, password in {admin['password_file']}",
        f"  policy engine       {document['engine']}",
        f"  state               {state}",
    ]
    lines += [
        f"  MCP endpoint        {server['mcp_url']}  ({server['slug']})"
        for server in document["servers"]
    ]
    if document["agents"]:
        lines += _first_run(document, behavry, where)
    lines += [
        "",
        "Your own server behind it:",
        f"  {behavry} servers add SLUG --url http://127.0.0.1:9000/mcp{where}",
        f"  {behavry} roles grant git:read SLUG:read{where}      (a role of the demo agent)",
        f"  {behavry} connect claude-code --server SLUG --write{where}",
        "  let the agent list the server's tools once, then say what they do:",
        f"  {behavry} tools classify SLUG TOOL --action read{where}",
        f"  All of it is the REST API's too: {control}/openapi.json",
        "",
        f"Something wrong?  {behavry} doctor{where}",
        f"Stop everything an agent does, now:  {behavry} kill --help",
        f"Ctrl-C or `{behavry} down{where}` ends the services; the same command resumes.",
    ]
    return "\n".join(lines)


def _first_run(document: dict[str, Any], behavry: str, where: str) -> list[str]:
    """From a client that sees nothing to a person who decides, with what the demo data brings."""
    agent, password = document["agents"][0], document["admin"]["password_file"]
    repository = Path(document["state_dir"]) / "demo-repo"
    return [
        "",
        f"Five steps, in another terminal (`{behavry} demo{where}` shows all of them by itself):",
        "",
        f"1. Connect an MCP client, as {agent['name']}. `connect --help` names the clients.",
        f'     export {KEY_VARIABLE}="$(cat {agent["key_file"]})"',
        f"     {behavry} connect claude-code --server git --write{where}",
        "   Start the client there. It sees no tool: nobody has said yet what they do.",
        "2. Classify what it may see.",
        f"     {behavry} tools list git{where}",
        f"     {behavry} tools classify git git_status git_log --action read{where}",
        f"     {behavry} tools classify git git_add git_commit git_reset --action write{where}",
        "3. Allow: ask your client for the git status of",
        f"     {repository}",
        "   The agent's roles permit it, no policy objects, the server answers.",
        "4. Deny: ask it to reset that repository. A policy refuses:",
        f"     {behavry} policy show no_reset{where}",
        "5. Approve: ask it to add README.md and commit. The call waits for you:",
        f"     {behavry} login --password-file {password}{where}",
        f"     {behavry} escalations list{where}",
        f"     {behavry} escalations approve ID{where}",
        "   (a client that opens pages shows you the same question in the browser)",
        "",
        "Everything was recorded, and whether nobody changed the records can be checked:",
        f"     {behavry} traces{where}",
        f"     {behavry} audit verify{where}",
    ]


def _command() -> str:
    """How the reader calls this program: by the path that was just used where PATH has no other."""
    program = Path(sys.argv[0])
    if program.name != "behavry":
        return f"{sys.executable} -m services.cli"
    return "behavry" if shutil.which("behavry") == str(program) else str(program)


def _state_option(state: Path) -> str:
    return "" if state == default_state_dir({}).resolve() else f" --state {state}"
