"""What a fresh installation has to try: an agent, two tool servers, three roles, two policies, a
scratch repository.

Everything goes through control's published REST API, as an admin would do it; what exists already
is left as it is, so every start may call `ensure`. The agent may read the time and read and write
the repository: that `git_commit` waits for a person and `git_reset` is refused is the policies'
doing, not missing permissions.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from services.cli import summary
from services.cli.output import CommandFailed, Exit
from services.cli.plan import Plan
from services.cli.rest import Control, read_key, segment
from services.cli.state import State
from services.common.postgres.embedded import write_secret

AGENT = "demo-agent"
ROLES = {
    "time:read": ["time:read"],
    "git:read": ["git:read"],
    "git:write": ["git:write"],
}
SERVERS = ("time", "git")

_POLICY = """\
package behavry.tenant.t{tenant}.{key}

import rego.v1

verdicts contains {{
	"result": "{result}",
	"code": "{code}",
	"reason": "{reason}",
	"obligations": [],
}} if {{
	input.request.server == "git"
	input.request.tool == "{tool}"
}}
"""
POLICIES = (
    {
        "key": "commit_needs_a_person",
        "tool": "git_commit",
        "result": "intercept",
        "code": "commit_needs_a_person",
        "reason": "a commit waits for a person's consent",
    },
    {
        "key": "no_reset",
        "tool": "git_reset",
        "result": "deny",
        "code": "no_reset",
        "reason": "resetting a repository is not allowed",
    },
)


def ensure(plan: Plan) -> summary.Demo:
    """Make what is missing. Blocks; run it in a thread."""
    control = Control(url=plan.control_url, credential=read_key(plan.state.admin_api_key))
    _scratch_repository(plan.state.demo_repo)
    _stdio_programs(plan.state)
    _roles(control)
    _servers(control)
    _policies(control)
    agent = _agent(control, plan)
    return summary.Demo(agents=[agent], servers=list(SERVERS))


def _scratch_repository(path: Path) -> None:
    """A repository with one commit, whose history is its own business."""
    if (path / ".git").exists():
        return
    git = shutil.which("git")
    if git is None:
        raise CommandFailed(
            "the demo data needs git (or start with --no-demo-data)", status=Exit.USAGE
        )
    path.mkdir(mode=0o700, exist_ok=True)
    readme = path / "README.md"
    readme.write_text("# Scratch repository\n\nWhat the demo agent works on.\n")
    environment = {"PATH": os.defpath, "HOME": str(path), "GIT_CONFIG_NOSYSTEM": "1"}
    for arguments in (
        ["init", "--quiet"],
        ["symbolic-ref", "HEAD", "refs/heads/main"],
        ["config", "user.name", "Demo"],
        ["config", "user.email", "demo@example.invalid"],
        ["config", "commit.gpgsign", "false"],
        ["add", "README.md"],
        ["commit", "--quiet", "--message", "Begin"],
    ):
        subprocess.run(
            [git, "-C", str(path), *arguments], check=True, env=environment, capture_output=True
        )
    readme.write_text(readme.read_text() + "\nAn edit that is not committed yet.\n")


def stdio_document(state: State) -> str:
    """The programs that the proxy may start for servers of transport `stdio`, by name (TOML)."""
    modules = {
        "time": ["mcp_server_time", "--local-timezone", "UTC"],
        "git": ["mcp_server_git", "--repository", str(state.demo_repo)],
    }
    python = json.dumps(sys.executable)
    # A TOML string takes JSON's escapes, a TOML array its brackets.
    return "\n".join(
        f"[{name}]\ncommand = {python}\nargs = {json.dumps(['-m', *arguments])}\n"
        for name, arguments in modules.items()
    )


def _stdio_programs(state: State) -> None:
    if not state.stdio.exists():
        write_secret(state.stdio, stdio_document(state))


def _roles(control: Control) -> None:
    existing = {role["name"] for role in control.items("/api/v1/roles")}
    for name, permissions in ROLES.items():
        if name not in existing:
            control.put(f"/api/v1/roles/{segment(name)}", {"permissions": permissions})


def _servers(control: Control) -> None:
    existing = {server["slug"] for server in control.items("/api/v1/servers")}
    for slug in SERVERS:
        if slug not in existing:
            control.post(
                "/api/v1/servers",
                {
                    "slug": slug,
                    "domain": slug,
                    "trust": "trusted",
                    "transport": "stdio",
                    "stdio": slug,
                },
            )


def _policies(control: Control) -> None:
    existing = {policy["key"] for policy in control.items("/api/v1/policies")}
    tenant = control.get("/api/v1/me")["tenant"]["id"].replace("-", "")
    for policy in POLICIES:
        if policy["key"] in existing:
            continue
        made = control.post(
            "/api/v1/policies",
            {
                "key": policy["key"],
                "source": _POLICY.format(tenant=tenant, **policy),
                "tests": _cases(policy),
            },
        )
        control.post(f"/api/v1/policies/{made['id']}:enforce", key=f"demo-{made['id']}")


def _cases(policy: dict[str, str]) -> list[dict[str, Any]]:
    """The named tool gets the policy's result, its neighbour gets no word from it."""
    return [
        {
            "name": policy["tool"],
            "input": {"request": {"server": "git", "tool": policy["tool"]}},
            "expect": policy["result"],
        },
        {
            "name": "another tool",
            "input": {"request": {"server": "git", "tool": "git_status"}},
            "expect": "none",
        },
    ]


def _agent(control: Control, plan: Plan) -> summary.DemoAgent:
    """The agent and the files of its secret. A lost file gets a new secret; other agents are left
    alone.
    """
    state = plan.state
    agent = summary.DemoAgent(
        name=AGENT,
        client_id="",
        secret_file=state.agents / f"{AGENT}.secret",
        key_file=state.agents / f"{AGENT}.key",
        client_file=state.agents / f"{AGENT}.mcp.json",
    )
    found = next((one for one in control.items("/api/v1/agents") if one["name"] == AGENT), None)
    if found is None:
        made = control.post(
            "/api/v1/agents",
            {"name": AGENT, "type": "assistant", "class": "default", "roles": sorted(ROLES)},
        )
    elif agent.secret_file.exists():
        made = {"client_id": found["client_id"]}
    else:
        made = control.post(f"/api/v1/agents/{found['id']}:rotate")
        made.setdefault("client_id", found["client_id"])
    if secret := made.get("client_secret"):
        _write_credentials(plan, agent, made["client_id"], secret)
    return summary.DemoAgent(
        name=AGENT,
        client_id=made["client_id"],
        secret_file=agent.secret_file,
        key_file=agent.key_file,
        client_file=agent.client_file,
    )


def _write_credentials(plan: Plan, agent: summary.DemoAgent, client_id: str, secret: str) -> None:
    key = f"bhv_ak_{client_id}.{secret}"
    snippet = summary.client_snippet(f"{plan.proxy_url}/mcp/v1/{SERVERS[0]}", key)
    for path, text in (
        (agent.key_file, key),
        (agent.client_file, json.dumps(snippet, indent=2)),
        (agent.secret_file, secret),  # last: it says that the others are there
    ):
        path.unlink(missing_ok=True)
        write_secret(path, text + "\n")
