"""What a tool server over HTTP says beside its answers, and what it is told (mcp.md 2.2, 7, 11)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.proxy.backends.upstream import (
    Listening,
    Request,
    Session,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.calls import Visit
from services.proxy.snapshot import Credential
from tests.fakes import mcp_wire as wire
from tests.fakes import tool_server
from tests.fakes.gateway import until
from tests.fakes.http_leg import Leg, http_leg, texts, visit
from tests.fakes.tool_server import ToolServer

MODERN = {"eras": ("modern",), "stream": True}
LEGACY = {"eras": ("legacy",), "stream": True, "sessions": True}
ERAS = pytest.mark.parametrize("era", [MODERN, LEGACY], ids=["modern", "legacy"])
LOG = {"method": "notifications/message", "params": {"level": "info", "data": "hello"}}
QUESTION = {"method": "roots/list", "params": {}}
LIST_CHANGED = "notifications/tools/list_changed"


@pytest.fixture
async def leg(tmp_path: Path) -> AsyncIterator[Leg]:
    async with http_leg(tmp_path) as made:
        yield made


@pytest.fixture
def here(tools: ToolServer) -> Visit:
    return visit(tools.url)


def sent(tools: ToolServer, method: str) -> list[dict[str, Any]]:
    """Messages of this method that the server was sent."""
    bodies = [orjson.loads(body) for body in tools.bodies_seen() if body]
    return [body for body in bodies if body.get("method") == method]


def answers_sent(tools: ToolServer) -> list[dict[str, Any]]:
    bodies = [orjson.loads(body) for body in tools.bodies_seen() if body]
    return [body for body in bodies if "method" not in body]


# --- beside an answer -------------------------------------------------------------------------


@ERAS
async def test_notifications_are_heard_in_order_before_the_answer(
    leg: Leg, tools: ToolServer, here: Visit, era: dict[str, Any]
) -> None:
    tools.behave(**era, notes=[LOG], progress=2)

    reply = await leg.call(here, "c1", progress="mine")

    assert ["c1 read_note"] == texts(reply)
    progress = "notifications/progress"
    assert [LOG["method"], progress, progress] == [one.method for one in leg.heard]
    assert ["mine", "mine"] == [one.params["progressToken"] for one in leg.heard[1:]]
    [call] = sent(tools, "tools/call")
    assert call["id"] == call["params"]["_meta"]["progressToken"]  # of our own


async def test_who_did_not_ask_for_progress_has_none(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    stray = {"method": "notifications/progress", "params": {"progressToken": 99, "progress": 1}}
    tools.behave(**MODERN, notes=[stray], progress=2)

    await leg.call(here, "c1")
    await leg.call(here, "c2", progress="mine")

    assert ["mine", "mine"] == [one.params["progressToken"] for one in leg.heard]
    assert 2 == leg.dropped  # each stray one


@ERAS
async def test_a_second_answer_is_dropped_and_counted(
    leg: Leg, tools: ToolServer, here: Visit, era: dict[str, Any]
) -> None:
    tools.behave(**era, lie="twice")

    reply = await leg.call(here, "c1")

    assert ["c1 read_note"] == texts(reply)
    await until(lambda: leg.dropped == 1)


async def test_a_legacy_question_is_heard_and_its_answer_arrives(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY, asks=[QUESTION])
    session = await leg.backend.open(here, {"roots": {}})

    running = asyncio.create_task(leg.call(here, "c1", session=session))
    await until(lambda: bool(leg.heard))
    asked = leg.heard[0]
    await leg.backend.tell(here, {"id": asked.id, "result": {"roots": []}}, session)

    assert "roots/list" == asked.method
    assert ["c1 read_note", '{"result":{"roots":[]}}'] == texts(await running)


@pytest.mark.parametrize(
    ("question", "answered"),
    [
        ("ping", '{"result":{}}'),
        ("roots/list", '{"error":{"code":-32601,"message":"not supported"}}'),
    ],
)
async def test_where_nobody_hears_questions_are_answered_here(
    leg: Leg, tools: ToolServer, here: Visit, question: str, answered: str
) -> None:
    """While the server waits for that answer, not after its own."""
    tools.behave(**LEGACY, asks=[{"method": question}])

    reply = await leg.call(here, "c1", deaf=True)

    assert ["c1 read_note", answered] == texts(reply)


async def test_a_server_that_asks_in_a_flood_is_answered_in_part(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    pings = [{"method": "ping", "id": f"p{number}"} for number in range(200)]
    tools.behave(**LEGACY, notes=pings)
    await leg.backend.facts(here)

    assert ["c1 read_note"] == texts(await leg.call(here, "c1"))
    await until(lambda: len(answers_sent(tools)) + leg.dropped == 200)
    assert len(answers_sent(tools)) >= 16
    tools.behave(**LEGACY, notes=pings[:1])
    before = len(answers_sent(tools))
    await leg.call(here, "c2")
    await until(lambda: len(answers_sent(tools)) == before + 1)  # and later ones again


async def test_a_modern_server_asks_nothing_beside_its_answers(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**MODERN, asks=[QUESTION])

    reply = await leg.call(here, "c1")

    assert "-32601" in texts(reply)[1]
    assert [] == leg.heard


# --- given up ---------------------------------------------------------------------------------


async def test_a_modern_request_is_given_up_by_closing_its_stream(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**MODERN, held=True)
    running = asyncio.create_task(leg.call(here, "c1"))
    await until(lambda: tools.ran() == ["c1"])

    running.cancel()

    await until(lambda: tools.given_up() == ["c1"])
    assert [] == sent(tools, "notifications/cancelled")


async def test_a_legacy_server_is_told_what_is_given_up(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY, held=True)
    running = asyncio.create_task(leg.call(here, "c1"))
    await until(lambda: tools.ran() == ["c1"])

    running.cancel()

    await until(lambda: len(sent(tools, "notifications/cancelled")) == 1)
    [call], [told] = sent(tools, "tools/call"), sent(tools, "notifications/cancelled")
    assert call["id"] == told["params"]["requestId"]
    seen = tools.headers_seen()
    assert 1 == len({one["mcp-session-id"] for one in seen[-2:]})  # in the same session


async def test_a_legacy_server_is_told_of_a_request_out_of_time(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY, held=True)

    with pytest.raises(UpstreamFailed, match="upstream_timeout") as failed:
        await leg.call(here, "c1", timeout_s=0.2)

    assert None is failed.value.ran
    await until(lambda: len(sent(tools, "notifications/cancelled")) == 1)


# --- broken off -------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [1, 3])
async def test_a_legacy_stream_that_broke_off_is_taken_up_again(
    leg: Leg, tools: ToolServer, here: Visit, breaks: int
) -> None:
    tools.behave(**LEGACY, breaks=breaks, notes=[LOG])

    reply = await leg.call(here, "c1")

    assert ["c1 read_note"] == texts(reply)
    assert ["c1"] == tools.ran()  # once
    seen = [
        headers
        for method, headers in zip(tools.methods_seen(), tools.headers_seen(), strict=True)
        if method == "GET"
    ]
    assert breaks == len(seen)
    assert [leg.heard[0].event_id] == [one["last-event-id"] for one in seen[:1]]
    assert breaks == len({one["last-event-id"] for one in seen})
    assert all(one["mcp-session-id"] and one["accept"] == "text/event-stream" for one in seen)


async def test_it_is_taken_up_as_long_as_the_request_has_time(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY, breaks=1000)

    with pytest.raises(UpstreamFailed, match="upstream_timeout") as failed:
        await leg.call(here, "c1", timeout_s=0.5)

    assert None is failed.value.ran
    await until(lambda: len(sent(tools, "notifications/cancelled")) == 1)


async def test_the_server_says_how_long_to_wait(leg: Leg, tools: ToolServer, here: Visit) -> None:
    tools.behave(**LEGACY, breaks=1, retry_ms=60_000)

    with pytest.raises(UpstreamFailed, match="upstream_timeout"):
        await leg.call(here, "c1", timeout_s=5)  # that is longer: at once

    assert "GET" not in tools.methods_seen()


async def test_a_modern_stream_that_broke_off_is_over(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**MODERN, breaks=1)

    with pytest.raises(UpstreamFailed, match="upstream_protocol") as failed:
        await leg.call(here, "c1")

    assert None is failed.value.ran
    assert "GET" not in tools.methods_seen()


# --- listened to ------------------------------------------------------------------------------


async def test_a_legacy_session_has_a_stream_of_its_own(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY)
    session = await leg.backend.open(here, {})
    listening = asyncio.create_task(leg.backend.listen(here, Listening(), leg.hear, session))
    await until(lambda: tools.listeners() == 1)

    tools.say(LIST_CHANGED)
    await until(lambda: len(leg.heard) == 1)
    tools.say(None)  # the server ends it

    await listening
    assert [LIST_CHANGED] == [one.method for one in leg.heard]


async def test_a_modern_server_is_asked_for_what_is_listened_to(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**MODERN)
    wanted = {"notifications": {"toolsListChanged": True}}
    listening = asyncio.create_task(leg.backend.listen(here, Listening(params=wanted), leg.hear))
    await until(lambda: tools.listeners() == 1)

    tools.say(LIST_CHANGED)
    await until(lambda: len(leg.heard) == 2)
    tools.say(None)

    await listening
    acknowledged, changed = leg.heard
    assert "notifications/subscriptions/acknowledged" == acknowledged.method
    assert wanted["notifications"] == acknowledged.params["notifications"]
    assert LIST_CHANGED == changed.method


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_who_stops_listening_closes_the_stream(
    leg: Leg, tools: ToolServer, here: Visit, era: str
) -> None:
    tools.behave(eras=(era,), stream=True)
    listening = asyncio.create_task(leg.backend.listen(here, Listening(), leg.hear))
    await until(lambda: tools.listeners() == 1)

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert [] == leg.heard[1:]


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_server_without_such_a_stream_says_so(
    leg: Leg, tools: ToolServer, here: Visit, era: str
) -> None:
    tools.behave(eras=(era,))

    with pytest.raises(UpstreamFailed) as failed:
        await leg.backend.listen(here, Listening(), leg.hear)

    assert 405 == failed.value.status


async def test_listeners_do_not_keep_calls_out(
    leg: Leg, tools: ToolServer, here: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.backends.wire.LISTENING", 2)
    tools.behave(**MODERN)
    running = [
        asyncio.create_task(leg.backend.listen(here, Listening(), leg.hear)) for _ in range(2)
    ]
    await until(lambda: tools.listeners() == 2)

    with pytest.raises(UpstreamFailed, match="capacity") as failed:
        await leg.backend.listen(here, Listening(), leg.hear)

    assert False is failed.value.ran
    assert ["c1 read_note"] == texts(await leg.call(here, "c1"))
    tools.say(None)
    await asyncio.gather(*running)


async def test_so_many_connections_and_a_short_wait_for_one(
    leg: Leg, tools: ToolServer, here: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.backends.wire.PER_SERVER", 2)
    monkeypatch.setattr("services.proxy.backends.wire.WAIT_S", 0.1)
    tools.behave(**MODERN)
    await leg.backend.facts(here)
    tools.behave(**MODERN, held=True)
    running = [asyncio.create_task(leg.call(here, f"c{number}")) for number in range(2)]
    await until(lambda: len(tools.ran()) == 2)

    with pytest.raises(UpstreamFailed, match="capacity") as failed:
        await leg.call(here, "c2")
    monkeypatch.setattr("services.proxy.backends.wire.WAIT_S", 5)
    patient = asyncio.create_task(leg.call(here, "c3"))
    tools.behave(**MODERN)

    assert False is failed.value.ran
    assert ["c3 read_note"] == texts(await patient)
    await asyncio.gather(*running)
    assert ["c0", "c1", "c3"] == sorted(tools.ran())


# --- sessions ---------------------------------------------------------------------------------


async def test_a_session_is_opened_with_what_the_agent_declared(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY)

    session = await leg.backend.open(here, {"elicitation": {"form": {}}})

    assert session is not None
    assert tools.url == session.url
    assert [{}, {"elicitation": {"form": {}}}] == [
        one["params"]["capabilities"] for one in sent(tools, "initialize")
    ]  # the first one found out what the server is


async def test_a_session_belongs_to_its_address(leg: Leg, tools: ToolServer, here: Visit) -> None:
    tools.behave(**LEGACY)
    session = await leg.backend.open(here, {})
    assert session is not None
    moved = visit(f"{tools.url}?moved")

    with pytest.raises(SessionGone):
        await leg.call(moved, "c1", session=session)
    gone = Session("unheard-of", session.version, f"{tools.url}?moved")
    with pytest.raises(SessionGone):
        await leg.backend.tell(moved, {"method": "notifications/x"}, gone)

    assert [] == tools.ran()


async def test_a_session_of_another_entry_ends_without_more_ado(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY)
    session = await leg.backend.open(here, {})
    assert session is not None
    changed = visit(tools.url, first_byte_s=60)
    await leg.call(changed, "c1")
    await until(lambda: "DELETE" in tools.methods_seen())  # the one that was shared

    await leg.backend.close(here, session)
    await leg.call(changed, "c2")

    ended = [
        headers["mcp-session-id"]
        for method, headers in zip(tools.methods_seen(), tools.headers_seen(), strict=True)
        if method == "DELETE"
    ]
    assert 2 == len(set(ended))
    assert session.id == ended[-1]
    assert 3 == len(sent(tools, "initialize"))  # the server was met once for each entry


async def test_no_session_of_the_server_is_shared_by_two_agents(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY)
    other = visit(tools.url, agent="b")
    for number in range(3):
        await leg.call(here, f"a{number}")
        await leg.call(other, f"b{number}")

    used: dict[str, set[str]] = {"a": set(), "b": set()}
    for body, headers in zip(tools.bodies_seen(), tools.headers_seen(), strict=True):
        message = orjson.loads(body or b"{}")
        if message.get("method") == "tools/call":
            used[message["params"]["arguments"]["call"][0]].add(headers["mcp-session-id"])
    assert [1, 1] == [len(ids) for ids in used.values()]
    assert not used["a"] & used["b"]


async def test_a_pooled_session_ends_when_nobody_uses_it(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(**LEGACY)
    await leg.call(here, "c1")

    leg.clock.advance(1_700)
    await leg.backend.sweep()
    await leg.call(here, "c2")
    leg.clock.advance(1_801)
    await leg.backend.sweep()
    await until(lambda: "DELETE" in tools.methods_seen())
    await leg.call(here, "c3")

    assert 2 == len(
        {one["mcp-session-id"] for one in tools.headers_seen() if "mcp-session-id" in one}
    )


# --- addresses and eras -----------------------------------------------------------------------


async def test_addresses_take_turns(leg: Leg, tools: ToolServer, tmp_path: Path) -> None:
    with tool_server.serving(tmp_path / "second") as second:
        both = visit(tools.url, second.url)
        for number in range(6):
            await leg.call(both, f"c{number}")

        assert (3, 3) == (len(tools.ran()), len(second.ran()))


async def test_an_address_that_fails_is_left_alone_for_a_while(leg: Leg, tools: ToolServer) -> None:
    both = visit("http://127.0.0.1:1/mcp", tools.url)

    async def failures(count: int) -> int:
        """Of so many calls."""
        ran = await asyncio.gather(
            *(leg.call(both, f"c{number}") for number in range(count)), return_exceptions=True
        )
        failed = [one for one in ran if isinstance(one, UpstreamFailed)]
        assert {("upstream_unreachable", False)} >= {(one.reason, one.ran) for one in failed}
        return len(failed)

    while await failures(1):  # which era it speaks is asked in turn, too
        continue
    first = sum([await failures(1) for _ in range(20)])
    second = await failures(10)
    leg.clock.advance(10)
    third = sum([await failures(1) for _ in range(10)])

    assert 3 <= first <= 5
    assert (0, 1) == (second, third)


async def test_an_address_that_comes_back_is_found_by_looking(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    await leg.call(here, "c1")
    tools.behave(drop=True)
    for number in range(5):
        with pytest.raises(UpstreamFailed, match="upstream_protocol"):
            await leg.call(here, f"d{number}")
    tools.behave()
    with pytest.raises(UpstreamFailed, match="upstream_unreachable") as failed:
        await leg.call(here, "c2")

    assert False is failed.value.ran
    leg.clock.advance(10)
    assert ["c3 read_note"] == texts(await leg.call(here, "c3"))
    leg.clock.advance(31)
    before = len(sent(tools, "server/discover"))
    await leg.backend.sweep()
    await until(lambda: len(sent(tools, "server/discover")) == before + 1)
    await leg.backend.sweep()
    leg.clock.advance(61)  # nobody uses it any more
    await leg.backend.sweep()
    await leg.call(here, "c4")
    assert before + 1 == len(sent(tools, "server/discover"))


@pytest.mark.parametrize(
    ("first", "then"), [("modern", "legacy"), ("legacy", "modern")], ids=["older", "newer"]
)
async def test_a_server_that_speaks_otherwise_now_is_met_anew(
    leg: Leg, tools: ToolServer, here: Visit, first: str, then: str
) -> None:
    tools.behave(eras=(first,), refuses=True)
    assert first == (await leg.backend.facts(here)).era
    leg.clock.advance(5)
    tools.behave(eras=(then,), refuses=True)

    await asyncio.gather(leg.call(here, "c1"), return_exceptions=True)  # refused

    assert then == (await leg.backend.facts(here)).era
    assert ["c2 read_note"] == texts(await leg.call(here, "c2"))
    assert ["c2"] == tools.ran()


async def test_odd_answers_do_not_make_it_a_stranger_each_time(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    tools.behave(eras=("legacy",), sessions=True)
    await leg.call(here, "c1")
    tools.behave(eras=("legacy",), sessions=True, methods_status={"tools/call": 400})

    for number in range(10):
        leg.clock.advance(1)
        await asyncio.gather(leg.call(here, f"d{number}"), return_exceptions=True)
    tools.behave(eras=("legacy",), sessions=True)
    await leg.call(here, "c2")

    assert len(sent(tools, "initialize")) <= 3
    await until(lambda: tools.methods_seen().count("DELETE") == len(sent(tools, "initialize")) - 1)


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "bare", "identity"])
async def test_compressed_answers_are_read(
    leg: Leg, tools: ToolServer, here: Visit, encoding: str
) -> None:
    tools.behave(encoding=encoding)

    assert ["c1 read_note"] == texts(await leg.call(here, "c1"))


@pytest.mark.parametrize("encoding", ["bomb", "br", "cut"])
async def test_what_is_inflated_has_bounds(
    leg: Leg, tools: ToolServer, here: Visit, encoding: str
) -> None:
    tools.behave(encoding=encoding)

    with pytest.raises(UpstreamFailed, match="upstream_protocol"):
        await leg.call(here, "c1")


async def test_redirects_are_not_followed(leg: Leg, tools: ToolServer, here: Visit) -> None:
    tools.behave(redirect=f"{tools.url}?elsewhere")

    with pytest.raises(UpstreamFailed, match="upstream_protocol") as failed:
        await leg.call(here, "c1")

    assert 307 == failed.value.status
    assert 1 == len(sent(tools, "tools/call"))


async def endless(leg: Leg, repeated: bytes, head: bytes = b"") -> str:
    """How a call ends whose answer goes on like that for ever."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            known = orjson.dumps(wire.discovered(await read_request(reader), "endless"))
            writer.write(OK + b"content-length: %d\r\n\r\n%s" % (len(known), known))
            await read_request(reader)
            writer.write(head)
            while True:
                writer.write(repeated)
                await writer.drain()

    async with await asyncio.start_server(answered, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamFailed) as failed:
            await leg.call(visit(f"http://127.0.0.1:{port}/mcp"), "c1")
        return failed.value.reason


async def read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    found: dict[str, Any] = orjson.loads(await reader.readexactly(length))
    return found


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "repeated"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK, b"a: b\r\n" * 100),
        (OK + b"x: ", b"y" * 10_000),
        (b"", b"y" * 1000),
    ],
    ids=["interim answers", "headers", "a header", "nothing of HTTP"],
)
async def test_a_head_without_end_is_not_waited_for(leg: Leg, head: bytes, repeated: bytes) -> None:
    assert "upstream_protocol" == await endless(leg, repeated, head)


@pytest.mark.parametrize(
    "head",
    [
        b"content-type: text/event-stream\r\n\r\ndata: ",
        b"content-type: application/json\r\n\r\n",
    ],
    ids=["an event", "a body"],
)
async def test_an_answer_over_the_limit_stops_the_reading(leg: Leg, head: bytes) -> None:
    assert "inbound_blocked" == await endless(leg, b"x" * 1_000_000, OK + head)


# --- the server's credential ------------------------------------------------------------------


async def test_a_refused_token_is_renewed_once(leg: Leg, tools: ToolServer) -> None:
    credential = Credential(
        kind="client_credentials",
        token_url="http://127.0.0.1/token",
        client_id="c",
        client_secret="secret://client",
    )
    (leg.secrets_dir / "client").write_text("s")
    here = visit(tools.url, credential=credential, headers={"x-team": "blue"})
    await leg.call(here, "c1")
    tools.behave(methods_status={"tools/call": 401})

    with pytest.raises(UpstreamFailed, match="upstream_auth") as failed:
        await leg.call(here, "c2")

    assert (False, ["c1"]) == (failed.value.ran, tools.ran())
    seen = [one["authorization"] for one in tools.headers_seen()]
    assert ["Bearer t1", "Bearer t2"] == seen[-2:]
    assert {"Bearer t1"} == set(seen[:-1])
    assert {"blue"} == {one["x-team"] for one in tools.headers_seen()}


async def test_everybody_else_is_served_while_one_waits(
    leg: Leg, tools: ToolServer, here: Visit
) -> None:
    """Fifty agents at once, each with its own progress: nothing crosses."""
    tools.behave(**LEGACY, progress=2)
    heard: dict[int, list[Any]] = {number: [] for number in range(50)}

    async def one(number: int) -> None:
        mine = visit(tools.url, agent=f"a{number}")
        await leg.backend.facts(mine)
        params = {"name": "read_note", "arguments": {"call": f"c{number}"}}
        request = Request(method="tools/call", params=params, progress=f"p{number}")

        def hear(said: Any) -> None:
            heard[number].append(said.params["progressToken"])

        reply = await leg.backend.ask(mine, request, None, hear)
        assert [f"c{number} read_note"] == texts(reply)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(one(number))

    assert {number: [f"p{number}"] * 2 for number in range(50)} == heard
