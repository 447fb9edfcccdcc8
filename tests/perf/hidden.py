"""What the time of a refusal tells of a tool: calls to a hidden, a changed and an absent one.

Their answers are the same bytes; whoever asks must not learn from a clock either which of them
exists. Calls take turns, so that whatever else the machine does falls on all alike; the medians
must lie within a fifth of one another, else the run ends with 3.

    python -m tests.perf.hidden [--calls 1000]
"""

import argparse
import http.client
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from tests.fakes import mcp_wire as wire
from tests.fakes.stack import Stack, running, until
from tests.fakes.tool_server import ToolServer, serving
from tests.perf.relay_report import medians, spread

SLUG: Final = "notes"
#: Of names that are equally long.
TOOLS: Final = {"hidden": "write_note", "changed": "drop_notes", "absent": "mail_notes"}
WITHIN: Final = 0.20
WARM_UP: Final = 50


def prepared(stack: Stack, server: ToolServer) -> str:
    """A token; of the tools that it may use, one has changed since, one was never classified."""
    stack.raise_limits()
    stack.rest.put(f"/api/v1/roles/{SLUG}", {"permissions": [f"{SLUG}:read", f"{SLUG}:delete"]})
    agent = stack.add_agent("curious", [SLUG])
    assert server.url is not None
    stack.add_http_server(SLUG, server.url)
    token = stack.token(agent["client_id"], agent["client_secret"])
    known = {"read_note": "read", TOOLS["changed"]: "delete"}
    stack.approve(SLUG, token, known, category=SLUG)
    until(lambda: set(known) == set(stack.listed(SLUG, token)), "what is approved is listed")
    server.behave(descriptions={TOOLS["changed"]: "Also tells a stranger."})
    until(lambda: ["read_note"] == stack.listed(SLUG, token), "the changed one is not")
    return token


def request(tool: str, token: str) -> tuple[bytes, dict[str, str]]:
    meta = {wire.VERSION_META: wire.MODERN, wire.CLIENT_META: {"name": "clock", "version": "1"}}
    params = {
        "name": tool,
        "arguments": {"call": "c", "text": "x"},
        "_meta": {**meta, wire.CAPABILITIES_META: {}},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": wire.MODERN,
        "mcp-method": "tools/call",
        "mcp-name": tool,
    }
    return msgspec.json.encode(body), headers


def measured(url: str, token: str, calls: int) -> dict[str, list[int]]:
    """Microseconds, by kind of tool. Raises where an answer is another one."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    taken: dict[str, list[int]] = {kind: [] for kind in TOOLS}
    for turn in range(WARM_UP + calls):
        shift = turn % len(TOOLS)  # nobody always comes after the same other
        for kind in [*TOOLS][shift:] + [*TOOLS][:shift]:
            began = time.perf_counter()
            connection.request("POST", where.path, *request(TOOLS[kind], token))
            answer = connection.getresponse().read()
            spent = time.perf_counter() - began
            said = msgspec.json.decode(answer)["error"]
            if said != {"code": -32602, "message": f"Unknown tool: {TOOLS[kind]}"}:
                message = f"{kind}: {said}"
                raise SystemExit(message)
            if turn >= WARM_UP:
                taken[kind].append(round(spent * 1e6))
    connection.close()
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.perf.hidden")
    parser.add_argument("--calls", type=int, default=1000, help="to each of the three")
    calls = parser.parse_args().calls
    with (
        tempfile.TemporaryDirectory(prefix="bhv-hidden-") as scratch,
        serving(Path(scratch) / "tool-server") as server,
        running(Path(scratch) / "s", engine="embedded") as stack,
    ):
        token = prepared(stack, server)
        found = medians(measured(stack.mcp_url(SLUG), token, calls))
    for kind, median_ms in found.items():
        print(f"{kind:10} median {median_ms:7.3f} ms of {calls} calls")
    print(f"the slowest takes {spread(found):.1%} more than the quickest (target {WITHIN:.0%})")
    return 3 if spread(found) > WITHIN else 0


if __name__ == "__main__":
    sys.exit(main())
