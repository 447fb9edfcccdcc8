"""A small MCP client for the demo: one agent, JSON-RPC over Streamable HTTP in the protocol's
2026-07-28 form.

Decides nothing about tools; it says what it sent and what came back. Real agents use their own
client.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from services.cli import wire
from services.cli.output import CommandFailed, Exit

VERSION = "2026-07-28"
_META = "io.modelcontextprotocol"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What the token endpoint answered."""

    access_token: str = field(repr=False)
    agent_id: str
    session_id: str
    expires_in: int


def fetch_token(proxy_url: str, *, client_id: str, client_secret: str) -> Token:
    """Client credentials at the proxy, which relays to the token endpoint."""
    form = {
        "grant_type": "client_credentials",
        "client_id": client_id,
        "client_secret": client_secret,
    }
    answer = wire.send(
        "POST",
        f"{proxy_url}/api/v1/auth/token",
        headers={"content-type": "application/x-www-form-urlencoded"},
        body=urlencode(form).encode(),
    )
    body = answer.json()
    if answer.status != 200:
        reason = body.get("error") or body.get("code") or answer.status
        raise CommandFailed(f"no token: {reason}", status=Exit.NOT_SIGNED_IN)
    return Token(
        access_token=body["access_token"],
        agent_id=body["agent_id"],
        session_id=body["session_id"],
        expires_in=body["expires_in"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One agent at one server's endpoint."""

    mcp_url: str
    token: Token
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def list_tools(self) -> list[str]:
        """The names that this agent sees, page after page."""
        names: list[str] = []
        cursor: str | None = None
        while True:
            answer = self.request("tools/list", {} if cursor is None else {"cursor": cursor})
            if "error" in answer:
                raise CommandFailed(f"tools/list failed: {answer['error']['message']}")
            names += [tool["name"] for tool in answer["result"]["tools"]]
            cursor = answer["result"].get("nextCursor")
            if cursor is None:
                return names

    def call(
        self, tool: str, arguments: dict[str, Any], *, timeout_s: float = wire.TIMEOUT_S
    ) -> dict[str, Any]:
        """The JSON-RPC answer, whatever it is."""
        params = {"name": tool, "arguments": arguments}
        return self.request("tools/call", params, name=tool, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        params: dict[str, Any],
        *,
        name: str | None = None,
        timeout_s: float = wire.TIMEOUT_S,
    ) -> dict[str, Any]:
        message = {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": method,
            "params": {
                **params,
                "_meta": {
                    f"{_META}/protocolVersion": VERSION,
                    f"{_META}/clientInfo": {"name": "behavry-demo", "version": "1"},
                    f"{_META}/clientCapabilities": {},
                },
            },
        }
        headers = {
            "authorization": f"Bearer {self.token.access_token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": VERSION,
            "mcp-method": method,
        }
        if name is not None:
            headers["mcp-name"] = name
        body = json.dumps(message).encode()
        answer = wire.send("POST", self.mcp_url, headers=headers, body=body, timeout_s=timeout_s)
        return _message(answer)


def _message(answer: wire.Answer) -> dict[str, Any]:
    """The response in a JSON body, or the last event of a stream."""
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        events = answer.body.decode().replace("\r\n", "\n").split("\n\n")
        data = [
            "\n".join(line[5:].lstrip() for line in event.split("\n") if line.startswith("data:"))
            for event in events
        ]
        found = [json.loads(text) for text in data if text]
        message = next((one for one in reversed(found) if "result" in one or "error" in one), None)
    else:
        message = answer.json()
    if not isinstance(message, dict) or not {"result", "error"} & message.keys():
        raise CommandFailed(f"the endpoint answered HTTP {answer.status} without an MCP message")
    return message
