"""All five services on this machine, as a user starts them: `behavry up --json` in a fresh state.

Starts and stops the real thing and speaks to it only by the doors that a user has: the command,
the REST API, the MCP endpoint. Knows no service's inside.
"""

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes import moved_in
from tests.fakes.children import ROOT
from tests.fakes.neighbour import unseen

READY_TIMEOUT_S: Final = 90
STOP_TIMEOUT_S: Final = 30
LIMITS: Final = "/api/v1/settings/limits"
MAX_PER_MINUTE: Final = 1_000_000


class AdminFiles(msgspec.Struct, frozen=True, kw_only=True):
    username: str
    password_file: str
    api_key_file: str


class AgentFiles(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    client_id: str
    secret_file: str


class ServerUrl(msgspec.Struct, frozen=True, kw_only=True):
    slug: str
    mcp_url: str


class Up(msgspec.Struct, frozen=True, kw_only=True):
    """The object that `behavry up --json` prints when it is ready."""

    proxy_url: str
    control_url: str
    admin: AdminFiles
    agents: list[AgentFiles]
    servers: list[ServerUrl]
    pids: dict[str, list[int]]
    engine: str
    state_dir: str


class Refused(Exception):
    """An answer outside 2xx."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class Rest:
    """The REST API with an API key, plainly: JSON in, JSON out, `Refused` else."""

    def __init__(self, base: str, api_key: str, *, sees_neighbour: bool = False) -> None:
        self._base = base.rstrip("/")
        self._sees_neighbour = sees_neighbour
        self._headers = {"authorization": f"Bearer {api_key}"}

    def get(self, path: str, **query: Any) -> Any:
        asked = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        return self.call("GET", asked)

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        return self.call("POST", path, {} if body is None else body, headers=headers)

    def put(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Any:
        return self.call("PUT", path, body, headers=headers)

    def call(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Any:
        data = None if body is None else msgspec.json.encode(body)
        sent = {**self._headers, **({"content-type": "application/json"} if data else {})}
        sent |= headers or {}
        url = self._base + path
        return fetch(url, method, data, sent, sees_neighbour=self._sees_neighbour)


def fetch(
    url: str,
    method: str,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    sees_neighbour: bool = False,
) -> Any:
    """`sees_neighbour`: whoever asks may be told of the second tenant of neighbour.py."""
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw, told = answer.read(), answer.headers
    except urllib.error.HTTPError as refused:
        raw = refused.read()
        if not sees_neighbour:
            unseen(raw, refused.headers.items())
        raise Refused(refused.code, _json_or_text(raw)) from None
    if not sees_neighbour:
        unseen(raw, told.items())
    return _json_or_text(raw)


def _last_event(stream: str) -> Any:
    lines = [line for line in stream.splitlines() if line.startswith("data:")]
    return msgspec.json.decode(lines[-1].removeprefix("data:").strip())


def _json_or_text(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw) if raw else None
    except msgspec.DecodeError:
        return raw.decode(errors="replace")


class Stack:
    """A running installation, its admin's API client, and the agents made on the way."""

    def __init__(self, up: Up, process: subprocess.Popen[bytes]) -> None:
        self.up = up
        self.process = process
        self.rest = Rest(up.control_url, Path(up.admin.api_key_file).read_text().strip())

    def token(self, client_id: str, client_secret: str) -> str:
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        answer = fetch(
            f"{self.up.control_url.rstrip('/')}/api/v1/auth/token",
            "POST",
            urllib.parse.urlencode(form).encode(),
            {"content-type": "application/x-www-form-urlencoded"},
        )
        return str(answer["access_token"])

    def mcp_url(self, slug: str) -> str:
        return f"{self.up.proxy_url.rstrip('/')}/mcp/v1/{slug}"

    def ask(self, slug: str, token: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """One modern MCP request, without a client library."""
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": wire.MODERN,
            "mcp-method": method,
        }
        if "name" in params:
            headers["mcp-name"] = params["name"]
        meta = {
            wire.VERSION_META: wire.MODERN,
            wire.CLIENT_META: {"name": "tests", "version": "1"},
            wire.CAPABILITIES_META: {},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        answer = fetch(self.mcp_url(slug), "POST", msgspec.json.encode(body), headers)
        if isinstance(answer, str):  # it took long enough to become a stream
            answer = _last_event(answer)
        assert isinstance(answer, dict)
        return answer

    def add_agent(self, name: str, roles: list[str]) -> dict[str, Any]:
        body = {"name": name, "class": "default", "type": "autonomous", "roles": roles}
        agent = self.rest.post("/api/v1/agents", body)
        assert isinstance(agent, dict)
        return agent

    def add_http_server(self, slug: str, url: str) -> None:
        body = {
            "slug": slug,
            "domain": slug,
            "trust": "trusted",
            "transport": "http",
            "urls": [url],
            "era": "auto",
            "credential": {"kind": "none"},
        }
        self.rest.post("/api/v1/servers", body)

    def raise_limits(self) -> None:
        """For whoever calls faster than any agent should. The limits stay on; they are in force
        with whatever is changed after this and then seen to hold.
        """
        held = self.rest.get(LIMITS)
        names = ("agent_per_minute", "agent_burst", "tenant_per_minute")
        rates = {**held["rates"], **dict.fromkeys(names, MAX_PER_MINUTE)}
        self.rest.put(LIMITS, {**held, "rates": rates}, headers={"if-match": "*"})

    def tool_states(self, slug: str) -> dict[str, str]:
        items = self.rest.get(f"/api/v1/servers/{slug}/tools")["items"]
        return {item["name"]: item["state"] for item in items}

    def listed(self, slug: str, token: str) -> list[str]:
        try:
            answer = self.ask(slug, token, "tools/list", {})
        except Refused as refused:
            if refused.status == 404:  # the server is not known to the proxy yet
                return []
            raise
        return [tool["name"] for tool in answer.get("result", {}).get("tools", [])]

    def approve(self, slug: str, token: str, actions: Mapping[str, str], category: str) -> None:
        """An agent's first look makes the tools known; then the admin classifies them in bulk."""

        def seen() -> bool:
            self.listed(slug, token)
            return actions.keys() <= self.tool_states(slug).keys()

        until(seen, f"the tools of {slug} are known to control")
        items = [
            {"tool": tool, "action": action, "category": category}
            for tool, action in actions.items()
        ]
        self.rest.post(f"/api/v1/servers/{slug}/tools:classify", {"items": items})

    def tenant(self) -> str:
        return str(self.rest.get("/api/v1/me")["tenant"]["id"])

    def jwks(self) -> dict[str, Any]:
        keys = fetch(f"{self.up.control_url.rstrip('/')}/.well-known/jwks.json", "GET")
        assert isinstance(keys, dict)
        return keys

    def processes(self) -> dict[str, dict[str, Any]]:
        """Name -> `{pid, ready, starts}` now: a process that was restarted has another pid.

        What `behavry status --json` shows, from the file that it reads.
        """
        running = Path(self.up.state_dir) / "running.json"
        return dict(msgspec.json.decode(running.read_bytes())["processes"])

    def pids(self) -> dict[str, int]:
        """Of what runs at this moment."""
        known = {name: one["pid"] for name, one in self.processes().items()}
        return {name: int(pid) for name, pid in known.items() if pid is not None}

    def chain_of(self, agent: str) -> list[dict[str, Any]]:
        """The records of an agent's calls, newest first, page by page."""
        query: dict[str, Any] = {"filter": f"agent:{agent} type:call.*", "page_size": 500}
        records: list[dict[str, Any]] = []
        while True:
            page = patiently(lambda: self.rest.get("/api/v1/traces", **query))
            records += [item["decision"]["record"] for item in page["items"]]
            if not page.get("next_page_token"):
                return records
            query["page_token"] = page["next_page_token"]

    def chained(self) -> int:
        """How many records of agents' calls are in the chains."""
        heads = self.rest.get("/api/v1/audit/heads")["items"]
        return sum(int(head["position"]) for head in heads if head["chain"].startswith("agent:"))


def until(
    true: Callable[[], bool], what: str, timeout_s: float = 20, *, look_again_s: float = 0.05
) -> None:
    """Looks again until it is so. For what lives in another process and cannot be waited on."""
    give_up = time.monotonic() + timeout_s
    pause = threading.Event()
    while not true():
        if time.monotonic() > give_up:
            message = f"after {timeout_s} s still not so: {what}"
            raise TimeoutError(message)
        pause.wait(look_again_s)


def patiently(ask: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Asks again while a service behind control is restarting or overloaded (503)."""
    give_up = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        try:
            return ask()
        except Refused as refused:
            if refused.status != 503 or time.monotonic() > give_up:
                raise
        pause.wait(0.5)


@contextmanager
def running(
    state: Path,
    *,
    engine: str = "auto",
    env: Mapping[str, str] | None = None,
    beside_neighbour: bool = False,
) -> Iterator[Stack]:
    """`behavry up` until the block ends; then SIGTERM, and nothing of it may be left. With a second
    tenant in it that is left alone, or without (what measures).
    """
    with (state.parent / f"{state.name}.err").open("ab") as errors:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "services.cli", "up", "--json"),
                *("--state", str(state), "--port-base", "0"),
            ],
            cwd=ROOT,
            env={**os.environ, "BEHAVRY_AUTHORIZER_ENGINE": engine, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        stack = Stack(_ready(process, Path(errors.name)), process)
        if beside_neighbour:
            moved_in.move_in(state)
        yield stack
        if beside_neighbour:
            moved_in.left_alone(state)
    finally:
        stop(process)


def _ready(process: subprocess.Popen[bytes], errors: Path) -> Up:
    timer = threading.Timer(READY_TIMEOUT_S, process.terminate)
    timer.start()
    try:
        assert process.stdout is not None
        text = b""
        for line in process.stdout:
            text += line
            try:
                return msgspec.json.decode(text, type=Up)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                continue
    finally:
        timer.cancel()
    tail = errors.read_bytes()[-2000:].decode(errors="replace")
    message = f"behavry up ended before it was ready: {text!r}\n{tail}"
    raise RuntimeError(message)


def stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT_S)
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
