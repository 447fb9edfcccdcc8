"""What `up` tells each process: settings that its service knows, all it needs, no secret."""

import importlib
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest

from services.cli import plan, secrets_made
from services.cli.children import Child
from services.cli.engines import Engine
from services.cli.output import CommandFailed, Exit
from services.cli.plan import Plan
from services.cli.state import Remembered, open_state
from services.common.service_settings import ServiceSettings
from services.common.settings import load
from services.proxy.settings import ProxySettings

DSNS = {
    role: f"postgresql://{role}@/behavry?host=/s&passfile=/p/{role}"
    for role in (
        "behavry_audit_writer",
        "behavry_audit_reader",
        "behavry_entitlements",
        "behavry_control",
    )
}


@pytest.fixture
def decided(tmp_path: Path) -> Plan:
    state = open_state(tmp_path / "state")
    secrets_made.make_all(state, plane_id="dp-1")
    return Plan(
        state=state,
        remembered=Remembered(plane_id="dp-1", proxy_port=1, control_port=2, feed_port=3),
        run_dir=state.root / "run",
        engine=Engine.OPA_CHILD,
        production=False,
        caller={
            "PATH": "/bin",
            "BEHAVRY_LOG_LEVEL": "debug",
            "BEHAVRY_DB_URL": "postgresql://owner@/db?passfile=/owner",
            "BEHAVRY_STATE_DIR": "/elsewhere",
            "SOMEBODYS_TOKEN": "not for us",
        },
    )


def _settings_class(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"services.{service}.settings")
    return next(
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, ServiceSettings) and one is not ServiceSettings
    )


@pytest.mark.parametrize("service", plan.SERVICES)
def test_each_service_can_start_with_what_it_is_told(decided: Plan, service: str) -> None:
    program = plan.service(decided, service, DSNS)
    settings: Any = load(_settings_class(service), program.env)

    assert decided.state.root == settings.state_dir
    assert ("development", "standalone", "dp-1", "debug") == (
        settings.env,
        settings.mode,
        settings.plane_id,
        settings.log_level,
    )


@pytest.mark.parametrize("service", plan.SERVICES)
def test_nothing_is_told_that_the_service_does_not_know(decided: Plan, service: str) -> None:
    known = {
        field.metadata["env"] for one in plan.SERVICES for field in fields(_settings_class(one))
    }
    own = set(plan.own_settings(decided, service, DSNS))
    declared = {field.metadata["env"] for field in fields(_settings_class(service))}
    told = {name for name in plan.service(decided, service, DSNS).env if "BEHAVRY" in name}

    assert set() == own - declared
    assert set() == told - known


@pytest.mark.parametrize("service", plan.SERVICES)
def test_files_that_a_service_reads_are_there(decided: Plan, service: str) -> None:
    kind = _settings_class(service)
    settings = load(kind, plan.service(decided, service, DSNS).env)
    missing = [
        str(value.relative_to(decided.state.root))
        for field in fields(kind)
        if field.default is MISSING
        and isinstance(value := getattr(settings, field.name), Path)
        and (value.suffix in {".pem", ".keys", ".json", ".token"} or "admin" in value.name)
        and not value.exists()
    ]

    assert [] == missing


def test_the_caller_s_own_secrets_and_addresses_are_not_handed_on(decided: Plan) -> None:
    env = plan.service(decided, "control", DSNS).env

    assert "SOMEBODYS_TOKEN" not in env
    assert "BEHAVRY_DB_URL" not in env


def test_a_licence_of_the_caller_reaches_the_service_that_checks_it_and_no_other(
    decided: Plan,
) -> None:
    given = replace(decided, caller={**decided.caller, "BEHAVRY_LICENSE": "a licence"})
    told = [
        service
        for service in plan.SERVICES
        if "BEHAVRY_LICENSE" in plan.service(given, service, DSNS).env
    ]

    assert ["entitlements"] == told


def test_no_database_address_reaches_a_service_that_does_not_keep_state(decided: Plan) -> None:
    for service in ("authorizer", "proxy"):
        assert not [name for name in plan.service(decided, service, DSNS).env if "DB_URL" in name]


SHARED = {
    "BEHAVRY_PROXY_WORKERS": "2",
    "BEHAVRY_COUNTER_STORE_URL": "unix:///run/valkey.sock",
    "BEHAVRY_PROXY_ROLE": "stdio-host",
}


def test_several_proxies_and_the_host_of_their_stdio_servers_meet_at_one_socket(
    decided: Plan,
) -> None:
    several = replace(decided, caller={**decided.caller, **SHARED})
    proxy = load(ProxySettings, plan.service(several, "proxy", DSNS).env)
    host = load(ProxySettings, plan.stdio_host(several).env)

    assert several.hosts_stdio
    assert ("proxy", 2, "stdio_host") == (proxy.role, proxy.workers, host.role)
    assert str(several.run_dir / "stdio.sock") == proxy.stdio_socket == host.stdio_socket
    assert f"unix:{several.run_dir}/stdio-host.sock" == host.grpc_listen


@pytest.mark.parametrize(
    "caller",
    [
        {},
        {"BEHAVRY_PROXY_WORKERS": "1"},
        {"BEHAVRY_PROXY_WORKERS": "many"},  # which the proxy refuses by itself
        {**SHARED, "BEHAVRY_PROXY_STDIO_HOST": "unix:/run/theirs.sock"},
    ],
)
def test_one_proxy_hosts_its_own_and_a_host_that_runs_is_left_alone(
    decided: Plan, caller: dict[str, str]
) -> None:
    own = replace(decided, caller={**decided.caller, **caller})
    told = plan.service(own, "proxy", DSNS).env.get("BEHAVRY_PROXY_STDIO_HOST")

    assert not own.hosts_stdio
    assert caller.get("BEHAVRY_PROXY_STDIO_HOST") == told


def test_several_proxies_without_a_store_are_refused_before_anything_starts() -> None:
    with pytest.raises(CommandFailed, match="needs BEHAVRY_COUNTER_STORE_URL") as refused:
        plan.several_proxies({"BEHAVRY_PROXY_WORKERS": "2"})

    assert Exit.USAGE == refused.value.status


async def test_the_processes_behind_the_proxy_are_counted_with_it(decided: Plan) -> None:
    decided.run_dir.mkdir(exist_ok=True)
    program = plan.service(decided, "proxy", DSNS)
    child = Child(program, changed=lambda: None)
    child.pid = 7
    alone = child.pids()
    told = '{"supervisor": 7, "workers": [8, 9], "ready": [8]}'
    (decided.run_dir / "proxy-workers.json").write_text(told)
    among_them = child.pids()
    child.pid = 10  # started again after a kill, and has told nothing yet

    assert ([7], [7, 8, 9], [10]) == (alone, among_them, child.pids())
