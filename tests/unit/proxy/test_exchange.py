"""What an HTTP answer of a tool server means, and what is said beside it (mcp.md 2.2, 7)."""

import contextlib
from typing import Any

import orjson
import pytest

from services.common.telemetry.counters import Counter
from services.proxy.backends.connection import Response
from services.proxy.backends.exchange import Exchange
from services.proxy.backends.upstream import Heard, Reply, SessionGone, UpstreamFailed

NUMBER = 1
RESULT = {"jsonrpc": "2.0", "id": NUMBER, "result": {"ok": True}}
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x"}}
ASK = {"jsonrpc": "2.0", "id": "q", "method": "roots/list"}


class Talk:
    """One exchange with everything that it brought."""

    def __init__(self, *, asks: bool = True, deaf: bool = False) -> None:
        self.heard: list[Heard] = []
        self.said: list[Any] = []
        self.dropped = Counter()
        self.exchange = Exchange(
            NUMBER,
            self.dropped,
            self.said.append,
            hear=None if deaf else self.heard.append,
            asks=asks,
        )

    def body(self, tree: Any, status: int = 200, **reading: Any) -> Reply:
        raw = tree if isinstance(tree, bytes) else orjson.dumps(tree)
        headers = {"content-type": "application/json"}
        response = Response(status, headers, bytearray(raw))
        return self.exchange.reply(response, **{"modern": False, **reading})

    def events(self, *trees: Any) -> bool:
        return self.exchange.feed(b"".join(b"data: %s\n\n" % orjson.dumps(one) for one in trees))


def test_a_batch_is_split_wherever_it_comes() -> None:
    """2025-03-26."""
    stream, whole = Talk(), Talk()

    assert stream.events([NOTE, RESULT, ASK])
    reply = whole.body([NOTE, RESULT])

    assert {"ok": True} == reply.result
    assert RESULT == stream.exchange.answer
    for talk in (stream, whole):
        assert ["notifications/message"] == [one.method for one in talk.heard]
    assert 1 == stream.dropped.value  # what came after the answer


@pytest.mark.parametrize(
    "odd",
    [
        {**RESULT, "id": 2},
        {**RESULT, "id": "1"},
        {**RESULT, "id": True},
        {**RESULT, "id": 1.0},
        {**RESULT, "id": None},
        {"jsonrpc": "2.0", "id": NUMBER},
        "text",
        7,
        {**NOTE, "method": 5},
        {**NOTE, "params": []},
        {**ASK, "id": 1.5},
    ],
    ids=str,
)
def test_what_answers_nothing_is_dropped_and_counted(odd: Any) -> None:
    talk = Talk()

    assert not talk.events(odd)
    assert talk.events(RESULT)

    assert RESULT == talk.exchange.answer
    assert (1, []) == (talk.dropped.value, talk.heard)


def test_the_first_answer_is_the_answer() -> None:
    talk = Talk()

    talk.events(RESULT, {**RESULT, "result": {"ok": False}}, NOTE)

    assert RESULT == talk.exchange.answer
    assert (2, []) == (talk.dropped.value, talk.heard)


@pytest.mark.parametrize(
    ("asks", "deaf", "relayed"), [(True, False, 1), (False, False, 0), (True, True, 0)]
)
def test_a_question_is_heard_or_refused(asks: bool, deaf: bool, relayed: int) -> None:
    talk = Talk(asks=asks, deaf=deaf)

    talk.events(ASK, {**ASK, "id": 5, "method": "ping"})

    assert relayed == len(talk.heard)
    assert {"id": 5, "result": {}} in talk.said
    assert 2 - relayed == len(talk.said)


def test_an_answer_that_is_too_long_is_blocked_and_one_that_is_none_is_a_failure() -> None:
    long, odd = Talk(), Talk()
    stream = Response(200, {"content-type": "text/event-stream"}, streams=True)

    assert long.exchange.feed(b"data: " + b"x" * (8 * 1024 * 1024 + 1))
    assert odd.exchange.feed(b"data: {]\n\n")

    for talk, reason in ((long, "inbound_blocked"), (odd, "upstream_protocol")):
        with pytest.raises(UpstreamFailed, match=reason) as failed:
            talk.exchange.reply(stream, modern=True)
        assert None is failed.value.ran


def error(code: int, id: Any = NUMBER) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": "no"}}


@pytest.mark.parametrize(
    ("status", "tree", "reason", "ran"),
    [
        (401, error(-32600), "upstream_auth", False),
        (403, b"", "upstream_auth", False),
        (429, RESULT, "upstream_rate_limited", False),
        (500, b"", "upstream_protocol", None),
        (500, RESULT, "upstream_protocol", None),
        (502, b"<html>", "upstream_unreachable", None),
        (503, b"", "upstream_unreachable", None),
        (204, b"", "upstream_protocol", None),
        (302, RESULT, "upstream_protocol", None),
        (200, b"{]", "upstream_protocol", None),
        (200, {**RESULT, "result": []}, "upstream_protocol", None),
        (200, {**RESULT, "id": 2}, "upstream_protocol", None),
        (200, error(-32600, None), "upstream_protocol", None),
    ],
)
def test_statuses_and_bodies_that_are_no_answer(
    status: int, tree: Any, reason: str, ran: bool | None
) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        Talk().body(tree, status)

    assert (reason, ran, status) == (failed.value.reason, failed.value.ran, failed.value.status)


@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_an_error_of_the_servers_own_is_an_answer(status: int) -> None:
    reply = Talk().body(error(-32602), status)

    assert (None, -32602, status) == (reply.result, (reply.error or {})["code"], reply.status)


def test_only_in_a_session_can_it_be_gone() -> None:
    with pytest.raises(SessionGone):
        Talk().body(b"", 404, in_session=True)
    with pytest.raises(UpstreamFailed, match="upstream_protocol"):
        Talk().body(b"", 404, in_session=False)


@pytest.mark.parametrize(
    ("modern", "status", "tree", "shaped"),
    [
        (True, 400, b"", True),
        (True, 405, b"", True),
        (True, 404, error(-32601, None), True),
        (True, 404, error(-32601), False),
        (True, 400, error(-32602), False),
        (True, 400, error(-32022), True),
        (True, 400, error(-32022, None), True),
        (True, 400, error(-32020), False),
        (True, 400, error(-32021), False),
        (True, 500, b"", False),
        (True, 200, RESULT, False),
        (False, 400, error(-32020), True),
        (False, 400, error(-32021, None), True),
        (False, 400, error(-32000, None), True),
        (False, 200, error(-32602), False),
        (False, 503, b"", False),
    ],
)
def test_which_answers_are_of_the_other_era(
    modern: bool, status: int, tree: Any, shaped: bool
) -> None:
    talk = Talk()
    with contextlib.suppress(UpstreamFailed):
        talk.body(tree, status, modern=modern)

    assert shaped == talk.exchange.era_shaped
