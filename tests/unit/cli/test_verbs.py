"""Every operation of the REST API has its command, and every command can be asked what it does."""

import re
from importlib.metadata import version

import pytest
from fastapi.routing import APIRoute

from services.control.api.routers import ROUTERS
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

AGENT = "/api/v1/agents/{agent_id:uuid}"
ESCALATION = "/api/v1/escalations/{escalation_id:uuid}"
POLICY = "/api/v1/policies/{policy_id:uuid}"
USER = "/api/v1/users/{user_id:uuid}"
TENANT = "/api/v1/tenants/{tenant_id:uuid}"
NOTIFICATIONS = "/api/v1/settings/notifications"
COMMANDS = {
    "GET /api/v1/agents": "agents list",
    "POST /api/v1/agents": "agents enroll",
    f"GET {AGENT}": "agents show",
    f"GET {AGENT}/restrictions": "agents restrictions",
    f"DELETE {AGENT}/secrets/{{secret_id:uuid}}": "agents delete-secret",
    f"POST {AGENT}:restrict": "agents restrict",
    f"POST {AGENT}:resume": "agents resume",
    f"POST {AGENT}:revoke": "agents revoke",
    f"POST {AGENT}:rotate": "agents rotate",
    f"POST {AGENT}:suspend": "agents suspend",
    f"POST {AGENT}:unrestrict": "agents unrestrict",
    "GET /api/v1/api-keys": "api-keys list",
    "POST /api/v1/api-keys": "api-keys create",
    "DELETE /api/v1/api-keys/{key_id}": "api-keys revoke",
    "POST /api/v1/api-keys/{key_id}:rotate": "api-keys rotate",
    "GET /api/v1/audit/heads": "audit heads",
    "POST /api/v1/audit/verify": "audit verify",
    "POST /api/v1/auth/device/authorize": "login",
    "POST /api/v1/auth/device/token": "login",
    "POST /api/v1/auth/login": "login",
    "POST /api/v1/auth/logout": "logout",
    "POST /api/v1/auth/password:forgot": "password forgot",
    "POST /api/v1/auth/password:reset": "password reset",
    "POST /api/v1/auth/second-factor": "login",
    "POST /api/v1/auth/step-up": "escalations approve",
    "POST /api/v1/enroll": "agents enroll",
    "POST /api/v1/enrollment-tokens": "enrollment-tokens create",
    "GET /api/v1/escalations": "escalations list",
    f"GET {ESCALATION}": "escalations show",
    f"POST {ESCALATION}:approve": "escalations approve",
    f"POST {ESCALATION}:cancel": "escalations cancel",
    f"POST {ESCALATION}:deny": "escalations deny",
    f"POST {ESCALATION}:revoke": "escalations revoke",
    "GET /api/v1/jobs/{job_id:uuid}": "jobs show",
    "GET /api/v1/kill-switch": "kill list",
    "POST /api/v1/kill-switch": "kill",
    "GET /api/v1/kill-switch/{switch_id:uuid}": "kill show",
    "POST /api/v1/kill-switch/{switch_id:uuid}:release": "kill",
    "GET /api/v1/context-gate/summary": "tools summary",
    "GET /api/v1/license": "license show",
    "POST /api/v1/license/activate": "license activate",
    "GET /api/v1/invites": "invites list",
    "POST /api/v1/invites": "invites create",
    "DELETE /api/v1/invites/{invite_id:uuid}": "invites revoke",
    "POST /api/v1/invites:accept": "invites accept",
    "GET /api/v1/me": "whoami",
    "GET /api/v1/me/mfa": "mfa list",
    "DELETE /api/v1/me/mfa/{factor_id:uuid}": "mfa remove",
    "POST /api/v1/me/mfa/recovery-codes": "mfa recovery-codes",
    "POST /api/v1/me/mfa/totp": "mfa add",
    "POST /api/v1/me/mfa/totp/{factor_id:uuid}:confirm": "mfa add",
    "POST /api/v1/me/password": "password change",
    "GET /api/v1/me/sessions": "sessions list",
    "DELETE /api/v1/me/sessions/{session_id:uuid}": "sessions end",
    "POST /api/v1/me/sessions:end-others": "sessions end-others",
    "GET /api/v1/plan-features": "license plans",
    "GET /api/v1/policies": "policy list",
    "POST /api/v1/policies": "policy push",
    f"GET {POLICY}": "policy show",
    f"PUT {POLICY}": "policy push",
    f"GET {POLICY}/versions": "policy versions",
    f"POST {POLICY}:enforce": "policy promote",
    f"POST {POLICY}:retire": "policy retire",
    f"POST {POLICY}:rollback": "policy rollback",
    f"POST {POLICY}:shadow": "policy promote",
    "POST /api/v1/policies:check": "policy check",
    "GET /api/v1/roles": "roles list",
    "GET /api/v1/roles/{name}": "roles revoke",
    "PUT /api/v1/roles/{name}": "roles grant",
    "GET /api/v1/servers": "servers list",
    "POST /api/v1/servers": "servers add",
    "GET /api/v1/servers/{server}": "servers show",
    "PATCH /api/v1/servers/{server}": "servers update",
    "DELETE /api/v1/servers/{server}": "servers remove",
    "GET /api/v1/servers/{server}/tools": "tools list",
    "PUT /api/v1/servers/{server}/tools/{tool:path}": "tools classify",
    "POST /api/v1/servers/{server}/tools:classify": "tools classify",
    "GET /api/v1/settings/auth": "sign-in show",
    "PUT /api/v1/settings/auth": "sign-in propose",
    "POST /api/v1/settings/auth:test": "sign-in test",
    f"POST {TENANT}/auth:approve": "sign-in approve",
    "GET /api/v1/settings/limits": "limits show",
    "PUT /api/v1/settings/limits": "limits set",
    f"GET {NOTIFICATIONS}": "notifications list",
    f"POST {NOTIFICATIONS}": "notifications add webhook",
    f"POST {NOTIFICATIONS}/deliveries/{{delivery_id:uuid}}:redeliver": "notifications redeliver",
    f"GET {NOTIFICATIONS}/health": "doctor",
    f"GET {NOTIFICATIONS}/{{destination_id:uuid}}": "notifications show",
    f"PATCH {NOTIFICATIONS}/{{destination_id:uuid}}": "notifications disable",
    f"DELETE {NOTIFICATIONS}/{{destination_id:uuid}}": "notifications remove",
    f"GET {NOTIFICATIONS}/{{destination_id:uuid}}/deliveries": "notifications deliveries",
    f"POST {NOTIFICATIONS}/{{destination_id:uuid}}:test": "notifications test",
    "GET /api/v1/tenants": "tenants list",
    "POST /api/v1/tenants": "tenants create",
    f"GET {TENANT}": "tenants show",
    f"GET {TENANT}/features": "tenants features",
    f"POST {TENANT}/features": "tenants features",
    f"PUT {TENANT}/plan": "tenants plan",
    f"POST {TENANT}:resume": "tenants resume",
    f"POST {TENANT}:suspend": "tenants suspend",
    "GET /api/v1/users": "users list",
    f"DELETE {USER}": "users delete",
    f"GET {USER}": "users show",
    f"PATCH {USER}": "users role",
    f"POST {USER}:deactivate": "users deactivate",
    f"POST {USER}:reactivate": "users reactivate",
    f"POST {USER}:reset-password": "users reset-password",
    "GET /api/v1/traces": "traces list",
    "GET /api/v1/traces/{trace_id:uuid}": "traces show",
}
#: What agents, planes and identity providers ask for themselves.
NOT_FOR_PEOPLE = {
    "POST /api/v1/auth/backchannel-logout",
    "POST /api/v1/auth/token",
    "GET /api/v1/policy/bundle",
}
#: Passkeys and identity providers answer browsers alone.
IN_BROWSERS = {
    "GET /api/v1/auth/callback",
    "GET /api/v1/auth/login",
    "POST /api/v1/auth/step-up:begin",
    "POST /api/v1/me/mfa/passkeys",
    "POST /api/v1/me/mfa/passkeys:begin",
}


def _operations() -> set[str]:
    return {
        f"{method} {route.path}"
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.path.startswith("/api/v1")
        for method in route.methods or ()
    }


def test_every_operation_has_its_command() -> None:
    assert set(COMMANDS) | NOT_FOR_PEOPLE | IN_BROWSERS == _operations()


@pytest.mark.parametrize("command", ["agents enroll", "kill", "policy test", "traces", "doctor"])
def test_a_command_says_what_it_does(run: Run, command: str) -> None:
    told = run(*command.split(), "--help")

    assert (0, "") == (told.status, told.err)
    assert f"Usage: behavry {command}" in told.out


def test_the_version_is_the_installed_one(run: Run) -> None:
    assert f"{version('behavry')}\n" == run("--version").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_every_command(run: Run, shell: str) -> None:
    """To print it, each command's module is loaded and its options are read."""
    told = run("completion", shell)
    words = {word for command in COMMANDS.values() for word in command.split()}

    assert 0 == told.status
    assert set() == {word for word in words if word not in told.out}


def test_no_command_takes_a_secret_as_an_argument(run: Run) -> None:
    """What is named like one is a file that holds it, a reference to it, or a variable's name."""
    options = set(re.findall(r"(?<!\S)--[a-z-]+", run("completion", "bash").out.replace("'", " ")))
    secret = re.compile(r"password|secret|token|key")

    assert {
        "--key",  # secret://NAME, refused otherwise
        "--key-env",
        "--new-password-file",
        "--password",  # secret://NAME, refused otherwise
        "--password-file",
        "--routing-key",  # secret://NAME, refused otherwise
        "--token-file",
    } == {one for one in options if secret.search(one)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("webhook", "x", "--url", "https://x", "--key", "hunter2"),
        ("pagerduty", "x", "--routing-key", "hunter2"),
        ("email", "x", "--host", "h", "--sender", "a@b", "--to", "a@b", "--password", "hunter2"),
        ("slack", "x", "--url", "https://hooks.example/hunter2"),
    ],
)
def test_a_value_where_a_reference_belongs_goes_nowhere(
    run: Run, control: RestControl, arguments: tuple[str, ...]
) -> None:
    told = run("notifications", "add", *arguments)

    assert (2, []) == (told.status, control.seen)
    assert "hunter2" not in told.err + told.out
