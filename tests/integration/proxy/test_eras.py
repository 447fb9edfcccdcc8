"""Every row of the table of eras (mcp.md 2.1), through a running proxy: what it answers, what it
records, and that nothing of a refused request reaches a tool server.
"""

from typing import Any

from tests.fakes import mcp_wire as wire
from tests.fakes.gateway import BOTH, MODERN_META, Gateway
from tests.fakes.tool_server import ToolServer

NEW = wire.MODERN
OLD, OLDER, OLDEST = wire.LEGACY
UNKNOWN = "2027-01-01"
NEWEST_LEGACY = OLD
KNOWN = [NEW, *wire.LEGACY]
VERSION, CAPABILITIES = wire.VERSION_META, wire.CAPABILITIES_META
#: Of a session that the row opens first.
OPENED = "opened"


def listing(meta: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    given = {**params, **({} if meta is None else {"_meta": meta})}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": given}


def opening(version: Any) -> dict[str, Any]:
    asked = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": asked}


def named(version: Any) -> dict[str, Any]:
    return {VERSION: version, CAPABILITIES: {}}


def sent(version: str | None = None, session: str | None = None, **more: str) -> dict[str, str]:
    """Headers; a modern client always says its method."""
    given = {name.replace("_", "-"): value for name, value in more.items()}
    if version is not None:
        given |= {"mcp-protocol-version": version, "mcp-method": "tools/list"}
    if session is not None:
        given["mcp-session-id"] = session
    return given


#: Row -> (headers, body, the version that it is served by).
SERVED: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "modern, equal": (sent(NEW), listing(MODERN_META), NEW),
    "modern, a session and an event id are ignored": (
        sent(NEW, "b1.1.nonsense", last_event_id="7"), listing(MODERN_META), NEW,
    ),
    "initialize without a header": (sent(), opening(OLD), OLD),
    "initialize, older": (sent(), opening(OLDER), OLDER),
    "initialize, oldest": (sent(), opening(OLDEST), OLDEST),
    "initialize with a legacy header": (sent(OLD), opening(OLDER), OLDER),
    "initialize with an unknown header": (sent(UNKNOWN), opening(OLDER), OLDER),
    "initialize, unknown version": (sent(), opening("2024-11-05"), NEWEST_LEGACY),
    "initialize, modern version": (sent(), opening(NEW), NEWEST_LEGACY),
    "initialize, a version that is none": (sent(), opening(7), NEWEST_LEGACY),
    "session, its version": (sent(OLDER, OPENED), listing(), OLDER),
    "session, no header": (sent(None, OPENED), listing(), OLDER),
}  # fmt: skip

#: Row -> (headers, body, HTTP status, code).
REFUSED: dict[str, tuple[dict[str, str], Any, int, int]] = {
    "modern, no _meta": (sent(NEW), listing(), 400, -32602),
    "modern, no version in the body": (sent(NEW), listing({CAPABILITIES: {}}), 400, -32602),
    "modern, no clientCapabilities": (sent(NEW), listing({VERSION: NEW}), 400, -32602),
    "modern, clientCapabilities no object": (
        sent(NEW), listing({VERSION: NEW, CAPABILITIES: True}), 400, -32602,
    ),
    "modern, another version in the body": (sent(NEW), listing(named(OLD)), 400, -32020),
    "modern, a version that is no string": (sent(NEW), listing(named([NEW])), 400, -32020),
    "no header, modern body": (sent(), listing(MODERN_META), 400, -32020),
    "no header, modern body, session": (sent(None, OPENED), listing(MODERN_META), 400, -32020),
    "no header, modern body of initialize": (
        sent(), {**opening(OLD), "params": {**opening(OLD)["params"], "_meta": named(NEW)}},
        400, -32020,
    ),
    "legacy header, modern body": (sent(OLD), listing(MODERN_META), 400, -32020),
    "unknown header, modern body": (sent(UNKNOWN), listing(MODERN_META), 400, -32020),
    "unknown header, another unknown body": (
        sent(UNKNOWN), listing(named("2028-01-01")), 400, -32020,
    ),
    "unknown header, equal body": (sent(UNKNOWN), listing(named(UNKNOWN)), 400, -32022),
    "unknown header": (sent(UNKNOWN), listing(), 400, -32022),
    "unknown header, session": (sent(UNKNOWN, OPENED), listing(), 400, -32022),
    "a header that would sort last": (sent("9999-99-99", OPENED), listing(), 400, -32022),
    "a modern header with a space in it": (sent("2026-07- 28"), listing(), 400, -32022),
    "legacy header, another than the session's": (sent(OLD, OPENED), listing(), 400, -32600),
    "legacy header, no session": (sent(OLD), listing(), 400, -32600),
    "neither header nor session": (sent(), listing(), 400, -32600),
    "initialize as a notification": (
        sent(), {"jsonrpc": "2.0", "method": "initialize", "params": {}}, 400, -32600,
    ),
    "a batch of the version that had them": (
        sent(None, OPENED), [listing(), {**listing(), "id": 2}], 400, -32600,
    ),
    "a batch of one": (sent(NEW), [listing(MODERN_META)], 400, -32600),
    "an empty batch": (sent(NEW), [], 400, -32600),
    **{
        f"modern, {method} is gone": (
            {**sent(NEW), "mcp-method": method},
            {**listing(MODERN_META), "method": method}, 404, -32601,
        )
        for method in (
            "initialize", "ping", "logging/setLevel", "resources/subscribe",
            "resources/unsubscribe", "tasks/list", "tasks/result", "sampling/createMessage",
            "tools/Call", "x",
        )
    },
    "legacy, a modern method": (
        sent(OLDER, OPENED), {**listing(), "method": "server/discover"}, 200, -32601,
    ),
    "legacy, a method of nobody": (
        sent(OLDER, OPENED), {**listing(), "method": "tools/steal"}, 200, -32601,
    ),
}  # fmt: skip


async def a_session(proxy: Gateway) -> str:
    await proxy.post(opening(OLDER))
    return proxy.session


def with_session(headers: dict[str, str], session: str) -> dict[str, str]:
    given = {**headers}
    if given.get("mcp-session-id") == OPENED:
        given["mcp-session-id"] = session
    return given


async def test_each_row_that_is_served_is_served_in_its_era(proxy: Gateway) -> None:
    session = await a_session(proxy)

    found = {}
    for row, (headers, body, _) in SERVED.items():
        status, answer = await proxy.post(body, headers=with_session(headers, session))
        assert 200 == status, row
        result = answer["result"]
        found[row] = result.get("protocolVersion") or (NEW if "resultType" in result else OLDER)

    assert {row: version for row, (_, _, version) in SERVED.items()} == found
    assert [] == proxy.records("call.rejected")


async def test_each_row_that_is_refused_is_in_the_chain_and_goes_nowhere(
    proxy: Gateway, tools: ToolServer
) -> None:
    session = await a_session(proxy)
    before = tools.bodies_seen()

    found = {}
    for row, (headers, body, _, _) in REFUSED.items():
        status, answer = await proxy.post(body, headers=with_session(headers, session))
        found[row] = (status, answer["error"]["code"])

    assert {row: (status, code) for row, (_, _, status, code) in REFUSED.items()} == found
    recorded = [(one["chain"], one["error"]) for one in proxy.records("call.rejected")]
    assert [(f"agent:{proxy.agent}", str(code)) for _, _, _, code in REFUSED.values()] == recorded
    assert before == tools.bodies_seen()


async def test_an_unknown_version_is_answered_with_the_known_ones(proxy: Gateway) -> None:
    _, answer = await proxy.post(listing(), headers=sent(UNKNOWN))

    assert {"supported": KNOWN, "requested": UNKNOWN} == answer["error"]["data"]


async def test_where_there_is_no_session_nothing_is_got_or_ended(proxy: Gateway) -> None:
    session = await a_session(proxy)

    async def status(verb: str, **more: str) -> int:
        headers = {
            "authorization": f"Bearer {proxy.issuer.token()}",
            "accept": BOTH,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        async with proxy.http.request(verb, proxy.mcp(), headers=headers) as response:
            if response.status == 405:
                assert "POST" in response.headers["allow"]
            return response.status

    for verb in ("GET", "DELETE"):
        assert 405 == await status(verb)
        assert 405 == await status(verb, mcp_protocol_version=OLD)
        assert 405 == await status(verb, mcp_protocol_version=NEW, mcp_session_id=session)
    assert 404 == await status("DELETE", mcp_session_id="b1.1.nonsense")
    assert 204 == await status("DELETE", mcp_session_id=session, mcp_protocol_version=OLDER)
    assert 404 == await status("DELETE", mcp_session_id=session)
