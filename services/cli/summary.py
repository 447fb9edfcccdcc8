"""What `up` says when everything is ready: one document, as JSON for programs and as a page for
people.

Decides wording and the document's keys. No secret is in it: paths of the files that hold them.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli import plan
from services.cli.children import Children
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
    lines = [
        "Behavry is ready.",
        "",
        f"  API and dashboard   {control}",
        f"  admin sign-in       {admin['username']}, password in {admin['password_file']}",
        f"  policy engine       {document['engine']}",
        f"  state               {state}",
    ]
    lines += [
        f"  MCP endpoint        {server['mcp_url']}  ({server['slug']})"
        for server in document["servers"]
    ]
    if document["agents"]:
        lines += _connect(document)
    behavry, where = _command(), _state_option(Path(state))
    lines += [
        "",
        "Try next, in another terminal:",
        f"  {behavry} demo{where}      one governed call of each kind, with its records",
        f"  {behavry} traces{where}    what was decided",
        f"  {behavry} tools list git{where}",
        "",
        "Your own server behind it:",
        f"  {behavry} servers add SLUG --url http://127.0.0.1:9000/mcp{where}",
        f"  {behavry} roles grant git:read SLUG:read{where}      (a role of the demo agent)",
        "  let the agent list the server's tools once, then say what they do:",
        f"  {behavry} tools classify SLUG TOOL --action read{where}",
        f"  All of it is the REST API's too: {control}/openapi.json",
        "",
        f"Ctrl-C or `{behavry} down{where}` stops everything; the same command resumes.",
    ]
    return "\n".join(lines)


def _connect(document: dict[str, Any]) -> list[str]:
    agent, server = document["agents"][0], document["servers"][0]
    snippet = json.dumps(
        client_snippet(server["mcp_url"], f"<key in {agent['key_file']}>"), indent=2
    )
    client_file = Path(agent["key_file"]).with_suffix(".mcp.json")
    return [
        "",
        f"Connect a client as {agent['name']} (ready with its key in {client_file}):",
        *(f"  {line}" for line in snippet.splitlines()),
    ]


def _command() -> str:
    """How the reader calls this program: by the path that was just used where PATH has no other."""
    program = Path(sys.argv[0])
    if program.name != "behavry":
        return f"{sys.executable} -m services.cli"
    return "behavry" if shutil.which("behavry") == str(program) else str(program)


def _state_option(state: Path) -> str:
    return "" if state == default_state_dir({}).resolve() else f" --state {state}"
