"""What goes to the gateway and what the client reads, message by message, in both eras."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web

from services.mcp_stdio.credential import CredentialRefused
from tests.fakes.scripted_gateway import (
    SESSION,
    Asked,
    ScriptedGateway,
    event,
    json,
    result,
    silence,
    stream,
)
from tests.unit.mcp_stdio.conftest import LEGACY, MODERN, relaying

NOTED: dict[str, Any] = {
    "name": "note",
    "inputSchema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "x-mcp-header": "City"},
            "deep": {
                "type": "object",
                "properties": {"n": {"type": "integer", "x-mcp-header": "N"}},
            },
            "free": {"type": "string"},
        },
    },
}
PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}
QUESTION = {"jsonrpc": "2.0", "id": "q-1", "method": "elicitation/create", "params": {}}


# --- modern -------------------------------------------------------------------------------------


async def test_a_modern_request_says_in_headers_what_it_says(gateway: ScriptedGateway) -> None:
    async with relaying(gateway, requester="somebody") as client:
        client.modern("tools/call", {"name": "grüße", "arguments": {"x": 1}}, id="a")
        answer = await client.hear()

    (asked,) = gateway.asked
    named = {name: value for name, value in asked.headers.items() if name.startswith("mcp-")}
    assert {"jsonrpc": "2.0", "id": "a", "result": {"content": []}} == answer
    assert named == {
        "mcp-protocol-version": MODERN,
        "mcp-method": "tools/call",
        "mcp-name": "=?base64?Z3LDvMOfZQ==?=",
    }
    assert ("Bearer bhv_ak_a.b", "somebody") == (
        asked.headers["authorization"],
        asked.headers["x-requester-id"],
    )


async def test_the_client_s_bytes_travel_as_they_came(gateway: ScriptedGateway) -> None:
    line = (
        b'{"jsonrpc": "2.0",  "id": 7, "method": "tools/call", "params": {"name": "n", "arguments":'
        b' {"big": 123456789012345678901234567890}, "_meta": {'
        b'"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}}'
    )
    async with relaying(gateway) as client:
        client.line(line)
        await client.hear()

    assert line == gateway.asked[0].raw


async def test_what_a_listed_tool_wants_repeated_is_repeated(gateway: ScriptedGateway) -> None:
    gateway.tools = [NOTED, {"name": "plain", "inputSchema": {"type": "object"}}]
    arguments = {"city": " Zürich", "deep": {"n": 123456789012345678901}, "free": "x"}
    async with relaying(gateway) as client:
        client.modern("tools/list", id=1)
        await client.hear()
        for name in ("note", "plain"):
            client.modern("tools/call", {"name": name, "arguments": arguments}, id=name)
            await client.hear()

    _, noted, plain = gateway.asked
    sent = {name: value for name, value in noted.headers.items() if "param" in name}
    assert {
        "mcp-param-city": "=?base64?IFrDvHJpY2g=?=",
        "mcp-param-n": "123456789012345678901",
    } == sent
    assert not [name for name in plain.headers if "param" in name]


async def test_a_tool_that_was_listed_elsewhere_is_looked_up_once(gateway: ScriptedGateway) -> None:
    gateway.tools = [NOTED]

    async def strict(asked: Asked, _: web.Request) -> web.Response | None:
        if asked.method == "tools/call" and "mcp-param-city" not in asked.headers:
            refusal = {"code": -32020, "message": "an Mcp-Param header is missing"}
            return json({"jsonrpc": "2.0", "id": asked.message["id"], "error": refusal}, status=400)
        return None

    gateway.script = strict
    async with relaying(gateway) as client:
        client.modern("tools/call", {"name": "note", "arguments": {"city": "Rome"}}, id=1)
        ran = await client.hear()
        client.modern("tools/call", {"name": "note", "arguments": {}}, id=2)
        refused = await client.hear()

    assert "result" in ran
    assert (2, -32020) == (refused["id"], refused["error"]["code"])
    assert [
        "tools/call",
        "tools/list",
        "tools/call",
        "tools/call",
        "tools/list",
    ] == gateway.methods()


async def test_a_modern_request_that_is_given_up_is_a_closed_stream(
    gateway: ScriptedGateway,
) -> None:
    async def slow(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.method != "tools/call":
            return None
        await stream(request, event(PROGRESS))
        await silence()
        return None

    gateway.script = slow
    async with relaying(gateway) as client:
        client.modern("tools/call", {"name": "slow"}, id=5)
        told = await client.hear()
        client.say("notifications/cancelled", {"requestId": 5})
        await gateway.until(lambda: ["tools/call"] == gateway.left)
        client.modern("tools/list", id=6)
        after = await client.hear()

    assert PROGRESS == told
    assert 6 == after["id"]
    assert ["tools/call", "tools/list"] == gateway.methods()


# --- legacy -------------------------------------------------------------------------------------


async def test_a_legacy_session_is_kept_and_ended(gateway: ScriptedGateway) -> None:
    async with relaying(gateway) as client:
        await client.open_session()
        client.say("tools/list", {}, id=1)
        await client.hear()
        await gateway.until(lambda: "GET" in gateway.methods())

    opening, *rest = gateway.asked
    assert "mcp-session-id" not in opening.headers
    assert {(SESSION, LEGACY)} == {
        (one.headers["mcp-session-id"], one.headers["mcp-protocol-version"]) for one in rest
    }
    assert not [one for one in gateway.asked if "mcp-method" in one.headers]
    assert ["initialize", "notifications/initialized"] == gateway.methods()[:2]
    assert 1 == gateway.methods().count("GET")  # 405: there is none, and it is not asked again
    assert "DELETE" == gateway.methods()[-1]


async def test_messages_of_a_stream_arrive_in_their_order_each_on_a_line(
    gateway: ScriptedGateway,
) -> None:
    async def told(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.method != "tools/call":
            return None
        answer = {"jsonrpc": "2.0", "id": asked.message["id"], "result": {"content": []}}
        pretty = msgspec.json.format(msgspec.json.encode(answer), indent=2)
        lines = b"".join(b"data: " + line + b"\r\n" for line in pretty.splitlines())
        return await stream(
            request, b": hello\n\n", event(PROGRESS), event(QUESTION), lines + b"\r\n"
        )

    gateway.script = told
    async with relaying(gateway) as client:
        await client.open_session()
        client.say("tools/call", {"name": "n"}, id=1)
        heard = [await client.hear_raw() for _ in range(3)]
        client.line(b'{"jsonrpc":"2.0","id":"q-1","result":{"action":"accept"}}')
        await gateway.until(lambda: "" in gateway.methods())

    assert not [line for line in heard if b"\n" in line or b"\r" in line]
    first, second, third = (msgspec.json.decode(line) for line in heard)
    assert [PROGRESS, QUESTION, 1] == [first, second, third["id"]]
    (answered,) = [one for one in gateway.asked if one.verb == "POST" and not one.method]
    assert (SESSION, "accept") == (
        answered.headers["mcp-session-id"],
        answered.message["result"]["action"],
    )


async def test_a_legacy_request_that_is_given_up_is_told_and_its_stream_stays(
    gateway: ScriptedGateway,
) -> None:
    go_on = asyncio.Event()

    async def slow(asked: Asked, _: web.Request) -> web.Response | None:
        if asked.method == "tools/call":
            await go_on.wait()
        return None

    gateway.script = slow
    async with relaying(gateway) as client:
        await client.open_session()
        client.say("tools/call", {"name": "slow"}, id=5)
        await gateway.until(lambda: "tools/call" in gateway.methods())
        client.say("notifications/cancelled", {"requestId": 5})
        await gateway.until(lambda: "notifications/cancelled" in gateway.methods())
        left = list(gateway.left)
        go_on.set()
        late = await client.hear()

    assert [] == left
    assert 5 == late["id"]


async def test_the_gateway_s_own_stream_is_followed_and_taken_up_again(
    gateway: ScriptedGateway,
) -> None:
    async def speaks(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.verb != "GET":
            return None
        if asked.headers.get("last-event-id") == "e-1":
            await stream(request, event(QUESTION))
            await silence()
        return await stream(request, b"retry: 100\n\n", event(PROGRESS, id="e-1"))

    gateway.script = speaks
    async with relaying(gateway) as client:
        await client.open_session()
        heard = [await client.hear(), await client.hear()]

    assert [PROGRESS, QUESTION] == heard


@pytest.mark.parametrize("cut", [False, True])
async def test_an_answer_that_breaks_off_goes_on_where_it_was_left(
    gateway: ScriptedGateway, cut: bool
) -> None:
    async def breaks(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        answer = {"jsonrpc": "2.0", "id": 1, "result": {"content": []}}
        match asked.verb, asked.method, asked.headers.get("last-event-id"):
            case "POST", "tools/call", _:
                half = b'id: e-8\ndata: {"half'
                begun = await stream(request, b"id: e-7\nretry: 100\ndata:\n\n", half)
                if cut and request.transport is not None:
                    request.transport.abort()
                return begun
            case "GET", _, "e-7":
                return await stream(request, event(answer))
            case _:
                return None

    gateway.script = breaks
    async with relaying(gateway) as client:
        await client.open_session()
        client.say("tools/call", {"name": "n"}, id=1)
        answer = await client.hear()

    assert {"content": []} == answer["result"]
    assert 1 == gateway.methods().count("tools/call")


async def test_a_session_that_ended_is_opened_anew_and_the_client_knows_of_none(
    gateway: ScriptedGateway,
) -> None:
    ended = {SESSION}

    async def forgets(asked: Asked, _: web.Request) -> web.Response | None:
        if asked.headers.get("mcp-session-id") in ended:
            return json({"jsonrpc": "2.0", "id": None, "error": {"code": 4040}}, status=404)
        if asked.method == "initialize" and "initialize" in gateway.methods()[:-1]:
            found = {"protocolVersion": LEGACY, "capabilities": {}, "serverInfo": {}}
            return result(asked, found, headers={"Mcp-Session-Id": "session-2"})
        return None

    async with relaying(gateway) as client:
        await client.open_session()
        await gateway.until(lambda: "GET" in gateway.methods())
        gateway.script = forgets
        client.say("tools/call", {"name": "n"}, id=1)
        client.say("tools/call", {"name": "n"}, id=2)
        answers = [await client.hear(), await client.hear()]

    assert {1, 2} == {one["id"] for one in answers if "result" in one}
    assert 2 == gateway.methods().count("initialize")
    assert 2 == gateway.methods().count("notifications/initialized")


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        (b'{"a": NaN}', -32700),
        (b"[" * 100_000, -32700),
        (None, -32700),
        (b"[]", -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
    ],
)
async def test_a_line_that_is_no_message_is_answered_and_the_next_is_carried(
    gateway: ScriptedGateway, line: bytes | None, code: int
) -> None:
    async with relaying(gateway) as client:
        client.line(line)
        refused = await client.hear()
        client.modern("tools/list", id=1)
        answer = await client.hear()

    assert (None, code) == (refused["id"], refused["error"]["code"])
    assert 1 == answer["id"]
    assert ["tools/list"] == gateway.methods()


async def test_a_gateway_that_is_away_is_named_and_used_when_it_is_back(
    gateway: ScriptedGateway,
) -> None:
    async with relaying(gateway) as client:
        await gateway.close()
        client.modern("tools/call", {"name": "n"}, id=1)
        away = await client.hear()
        await gateway.open()
        client.modern("tools/call", {"name": "n"}, id=2)
        back = await client.hear()

    unreachable = {"reason": "upstream_unreachable", "retryable": True}
    assert {"code": 5020, "message": "upstream_unreachable", "data": unreachable} == away["error"]
    assert "result" in back
    assert ["the gateway cannot be reached", "the gateway is back"] == client.words


async def test_a_call_that_may_have_arrived_is_not_sent_again_and_a_list_is(
    gateway: ScriptedGateway,
) -> None:
    async def hangs_up(asked: Asked, request: web.Request) -> None:
        if gateway.methods().count(asked.method) == 1 and request.transport is not None:
            request.transport.abort()

    gateway.script = hangs_up
    async with relaying(gateway) as client:
        client.modern("tools/call", {"name": "n"}, id=1)
        lost = await client.hear()
        client.modern("tools/list", id=2)
        listed = await client.hear()

    assert (1, 5021) == (lost["id"], lost["error"]["code"])
    assert (2, {"tools": []}) == (listed["id"], listed["result"])
    assert ["tools/call", "tools/list", "tools/list"] == gateway.methods()


async def test_a_call_whose_stream_ends_without_an_answer_is_answered(
    gateway: ScriptedGateway,
) -> None:
    async def ends(asked: Asked, request: web.Request) -> web.StreamResponse:
        return await stream(request, event(PROGRESS))

    gateway.script = ends
    async with relaying(gateway) as client:
        client.modern("tools/call", {"name": "n"}, id=1)
        heard = [await client.hear(), await client.hear()]

    assert PROGRESS == heard[0]
    assert (1, 5021) == (heard[1]["id"], heard[1]["error"]["code"])
    assert ["tools/call"] == gateway.methods()


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, 4040), (413, 5021), (429, 4290), (503, 5020), (302, 5021), (200, 5021)],
)
async def test_an_answer_without_a_message_is_named(
    gateway: ScriptedGateway, status: int, code: int
) -> None:
    async def bare(_: Asked, __: web.Request) -> web.Response:
        return web.Response(status=status, headers={"location": "http://127.0.0.1:1/"})

    gateway.script = bare
    async with relaying(gateway) as client:
        client.modern("tools/call", {"name": "n"}, id=1)
        answer = await client.hear()

    assert (1, code) == (answer["id"], answer["error"]["code"])
    assert ["tools/call"] == gateway.methods()


async def test_a_refusal_without_an_id_is_an_answer_to_what_was_asked(
    gateway: ScriptedGateway,
) -> None:
    async def refuses(_: Asked, __: web.Request) -> web.Response:
        error = {"code": 4290, "message": "rate_limited"}
        return json({"jsonrpc": "2.0", "id": None, "error": error})

    gateway.script = refuses
    async with relaying(gateway) as client:
        client.modern("tools/list", id="x")

        assert {
            "jsonrpc": "2.0",
            "id": "x",
            "error": {"code": 4290, "message": "rate_limited"},
        } == (await client.hear())


async def test_what_is_no_message_of_the_gateway_s_never_reaches_the_client(
    gateway: ScriptedGateway,
) -> None:
    async def babbles(asked: Asked, request: web.Request) -> web.StreamResponse:
        other = {"jsonrpc": "2.0", "id": 99, "result": {}}
        return await stream(request, event(other), b"data: <html>\n\n")

    gateway.script = babbles
    async with relaying(gateway) as client:
        client.modern("tools/call", {"name": "n"}, id=1)
        answer = await client.hear()

    assert (1, 5021) == (answer["id"], answer["error"]["code"])


async def test_a_refused_credential_is_answered_and_ends_everything(
    gateway: ScriptedGateway,
) -> None:
    async def refuses(_: Asked, __: web.Request) -> web.Response:
        return web.Response(status=401)

    gateway.script = refuses
    answers: list[dict[str, Any]] = []

    async def ask() -> None:
        async with relaying(gateway) as client:
            client.modern("tools/list", id=1)
            answers.append(await client.hear())
            await silence()

    with pytest.raises(BaseExceptionGroup) as ended:
        await ask()

    assert [4010] == [one["error"]["code"] for one in answers]
    assert ended.value.subgroup(CredentialRefused)


async def test_the_end_of_input_gives_up_what_is_under_way(gateway: ScriptedGateway) -> None:
    async def slow(asked: Asked, _: web.Request) -> None:
        if asked.method == "tools/call":
            await silence()

    gateway.script = slow
    async with relaying(gateway) as client:
        await client.open_session()
        client.say("tools/call", {"name": "slow"}, id=1)
        client.modern("tools/call", {"name": "slow"}, id=2)
        await gateway.until(lambda: 2 == gateway.methods().count("tools/call"))

    *_, cancelled, deleted = gateway.asked
    assert ["tools/call", "tools/call"] == gateway.left
    assert 1 == cancelled.message["params"]["requestId"]
    assert "DELETE" == deleted.verb
    assert client.heard.empty()


async def test_two_requests_of_one_id_are_one_too_many(gateway: ScriptedGateway) -> None:
    go_on = asyncio.Event()

    async def slow(_: Asked, __: web.Request) -> None:
        await go_on.wait()

    gateway.script = slow
    async with relaying(gateway) as client:
        client.modern("tools/list", id=1)
        client.modern("tools/list", id=1)
        refused = await client.hear()
        client.modern("tools/list", id="1")
        go_on.set()
        ids = [(await client.hear())["id"] for _ in range(2)]

    assert -32600 == refused["error"]["code"]
    assert {1, "1"} == set(ids)
