"""How long a newcomer waits: clone, `make up`, first denied call; then the second start.

Runs on any Python 3.11 with nothing installed, because what it measures begins before anything is.
The clone gets caches of its own, empty ones, as far as this project decides where they are; what
the machine's package mirror or module cache holds stays what it is. Aims: 5 minutes and 15 s.

    python3 tests/perf/bench_start.py
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FIRST_AIM_S = 300.0
SECOND_AIM_S = 15.0
STOP_TIMEOUT_S = 30
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "newcomer", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bhv-start-") as where:
        figures = measured(Path(where))
    for name, seconds in figures.items():
        print(f"{name:<34}{seconds:8.1f} s")
    print(json.dumps({name: round(seconds, 2) for name, seconds in figures.items()}))
    first, second = figures["clone to first denied call"], figures["second start"]
    return 0 if first <= FIRST_AIM_S and second <= SECOND_AIM_S else 3


def measured(where: Path) -> dict[str, float]:
    figures: dict[str, float] = {}
    began = last = time.monotonic()

    def lap(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        figures[name], last = now - last, now

    clone, state = where / "clone", where / "state"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    lap("clone")
    subprocess.run(["make", "setup"], cwd=clone, env=environment(where), check=True)
    lap("make setup")
    with up(clone, state, where) as ready:
        lap("make up, first")
        denied_call(ready)
        lap("classify, first denied call")
    figures["clone to first denied call"] = last - began
    last = time.monotonic()
    with up(clone, state, where) as ready:
        lap("second start")
        denied_call(ready)
        lap("denied call after it")
    return figures


def environment(where: Path) -> dict[str, str]:
    """The caller's, less what points into this checkout, with caches that are empty."""
    mine = str(ROOT)
    path = [part for part in os.environ["PATH"].split(os.pathsep) if not part.startswith(mine)]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH"}
        and not name.startswith("BEHAVRY_")
    }
    return kept | {
        "PATH": os.pathsep.join(path),
        "UV_CACHE_DIR": str(where / "uv-cache"),
        "PIP_NO_CACHE_DIR": "1",
        "BEHAVRY_CACHE": str(where / "cache"),
    }


@contextmanager
def up(clone: Path, state: Path, where: Path) -> Iterator[dict[str, Any]]:
    """`make up` from nothing to its JSON object; ended by the signal that Ctrl-C sends."""
    arguments = f"--json --state {state} --port-base 0"
    process = subprocess.Popen(
        ["make", "up", f"UP_ARGS={arguments}"],
        cwd=clone,
        env=environment(where),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield document(process.stdout)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP_TIMEOUT_S)


def document(lines: Any) -> dict[str, Any]:
    """The first JSON object in what make prints, on one line or on many."""
    text = ""
    for raw in lines:
        line = raw.decode()
        if text or line.startswith("{"):
            text += line
            try:
                found = json.loads(text)
            except ValueError:
                continue
            assert isinstance(found, dict)
            return found
    message = "make up ended before it was ready"
    raise SystemExit(message)


def denied_call(ready: dict[str, Any]) -> None:
    """As the newcomer's admin and agent: see the tools, classify one, be refused by policy."""
    agent, control = ready["agents"][0], ready["control_url"]
    secret = Path(agent["secret_file"]).read_text().strip()
    form = {
        "grant_type": "client_credentials",
        "client_id": agent["client_id"],
        "client_secret": secret,
    }
    token = ask(f"{control}/api/v1/auth/token", "POST", form=form)["access_token"]
    git = next(server["mcp_url"] for server in ready["servers"] if server["slug"] == "git")
    admin = Path(ready["admin"]["api_key_file"]).read_text().strip()
    tools = f"{control}/api/v1/servers/git/tools"

    def seen() -> bool:
        mcp(git, token, "tools/list", {})
        return any(tool["name"] == "git_reset" for tool in ask(tools, "GET", admin)["items"])

    def refused() -> bool:
        answer = mcp(git, token, "tools/call", {"name": "git_reset", "arguments": {}})
        result = answer.get("result", {})
        return bool(result.get("isError")) and "Denied" in result["content"][0]["text"]

    wait_for(seen, "git_reset is known")
    body = {"action": "write", "category": "git", "state": "approved"}
    ask(f"{tools}/git_reset", "PUT", admin, body=body)
    wait_for(refused, "git_reset is denied by policy")


def mcp(url: str, token: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": MODERN,
        "mcp-method": method,
        **({"mcp-name": params["name"]} if "name" in params else {}),
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}}
    return ask(url, "POST", token, body=body, headers=headers)


def ask(
    url: str,
    method: str,
    bearer: str | None = None,
    *,
    body: Any = None,
    form: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    sent = dict(headers or {})
    if bearer:
        sent["authorization"] = f"Bearer {bearer}"
    data = None
    if form is not None:
        data = urllib.parse.urlencode(form).encode()
    elif body is not None:
        data, sent["content-type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(url, data, sent, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        raw = answer.read()
    found = json.loads(raw) if raw else {}
    assert isinstance(found, dict)
    return found


def wait_for(true: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    give_up, pause = time.monotonic() + timeout_s, threading.Event()
    while True:
        try:
            if true():
                return
        except urllib.error.URLError:
            pass
        pause.wait(0.1)
        if time.monotonic() > give_up:
            message = f"after {timeout_s:.0f} s still not so: {what}"
            raise SystemExit(message)


if __name__ == "__main__":
    sys.exit(main())
