"""Sessions of the legacy era, opened as a client opens them, without a client library."""

import urllib.request

import msgspec


def opened(url: str, token: str | None, version: str) -> str | None:
    """The session's id, where the server gives one."""
    asked = {
        "protocolVersion": version,
        "capabilities": {},
        "clientInfo": {"name": "load", "version": "1"},
    }
    first = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": asked}
    session = _posted(url, token, first, {})
    sent = {"mcp-protocol-version": version}
    if session is not None:
        sent["mcp-session-id"] = session
    _posted(url, token, {"jsonrpc": "2.0", "method": "notifications/initialized"}, sent)
    return session


def _posted(
    url: str, token: str | None, body: dict[str, object], headers: dict[str, str]
) -> str | None:
    sent = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        **headers,
    }
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, msgspec.json.encode(body), sent, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
        found: str | None = answer.headers.get("mcp-session-id")
    return found
