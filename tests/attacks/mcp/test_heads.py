"""Requests with wounds in their heads: each is answered, given up, or waits for what it announced;
the proxy lives, says nothing of a crash, and the next request is read as itself.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.mcp import mutations
from tests.attacks.mcp.ground import SERVERS, Ground, message, prepared
from tests.fakes.raw_http import connected, request

CASES = 1000
SEED = 20261121
CALLERS = 16
#: Longer than an answer takes; who announces more than it sends is not answered at all.
PATIENCE_S = 0.5
_STATUSES = {0, 100, 200, 202, 400, 401, 403, 404, 405, 406, 413, 415, 421, 431}
_LINES = (
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"host: x\r\n",
    b"content-length: 0\r\n", b"content-length: +5\r\n", b"content-length: 5, 5\r\n",
    b" folded\r\n",
    b"expect: 100-continue\r\n", b"upgrade: h2c\r\nconnection: upgrade\r\n", b"x:\r\n", b":\r\n",
    b"connection: close\r\n", b"mcp-session-id: \xff\r\n", b"authorization: Bearer \xc3\xa9\r\n",
    b"accept: ;;,,q=\r\n", b"mcp-protocol-version: \x80\r\n", b"x-requester-id: \xf0\x9f\r\n",
    b"mcp-name: \xff\r\n", b"content-type: ;\r\n", b"origin: \xff\r\n", b"x\x00y: 1\r\n", b"\r\n",
    b"cookie: \x7f\r\n", b"mcp-param-\xff: 1\r\n", b"last-event-id: \xff\r\n",
    b"traceparent: x\r\n",
)  # fmt: skip
_STARTS = (
    b"POST /mcp/v1/new HTTP/1.0", b"POST http://evil.example/mcp/v1/new HTTP/1.1",
    b"POST /mcp/v1/new?access_token=%ff HTTP/1.1", b"POST /mcp/v1/n\xc3\xa9 HTTP/1.1",
    b"CONNECT evil.example:443 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"POST /mcp/v1/new HTTP/2.0",
    b"PRI * HTTP/2.0", b"POST /mcp/v1/%6eew HTTP/1.1", b"POST  /mcp/v1/new  HTTP/1.1",
    b"GET /mcp/v1/new HTTP/1.1", b"DELETE /mcp/v1/new HTTP/1.1", b"POST /mcp/v1/new#f HTTP/1.1",
)  # fmt: skip


def wounded(ground: Ground, number: int) -> bytes:
    rng = random.Random(f"heads:{ground.seed}:{number}")
    case = mutations.good(ground.seed, number, SERVERS)
    sent = request(ground.where(case.server), ground.lines(case), case.body)
    head, _, body = sent.partition(b"\r\n\r\n")
    start, _, lines = head.partition(b"\r\n")
    match rng.randrange(4):
        case 0:
            start = rng.choice(_STARTS)
        case 1:
            lines = rng.choice(_LINES) + lines
        case 2:
            lines += b"\r\n" + rng.choice(_LINES).removesuffix(b"\r\n")
        case _:
            return mutations.bent(rng, head) + b"\r\n\r\n" + body
    return b"%s\r\n%s\r\n\r\n%s" % (start, lines, body)


async def caller(ground: Ground, numbers: range, statuses: set[int]) -> None:
    for number in numbers:
        # Each from an address of its own: who fails twenty times is not heard for a minute.
        async with connected(
            ground.url, source=f"127.0.{2 + number // 250}.{1 + number % 250}"
        ) as http:
            try:
                reply = await http.ask(wounded(ground, number), timeout_s=PATIENCE_S)
            except TimeoutError:
                continue
        assert b'"internal error"' not in reply.body, number
        statuses.add(reply.status)


@pytest.mark.parametrize("seed", [SEED])
async def test_whatever_becomes_of_a_head_the_proxy_lives(tmp_path: Path, seed: int) -> None:
    statuses: set[int] = set()
    async with prepared(tmp_path, seed) as ground:
        async with asyncio.TaskGroup() as group:
            for first in range(CALLERS):
                group.create_task(caller(ground, range(first, CASES, CALLERS), statuses))
        good = next(one for one in _good(seed) if one.modern)
        async with connected(ground.url) as http:
            answer = message(await ground.ask(http, good, ""))

    assert statuses <= _STATUSES
    assert {200, 400, 404, 421} <= statuses
    assert "result" in answer


def _good(seed: int) -> Iterator[mutations.Case]:
    return (mutations.good(seed, number, ("new",)) for number in itertools.count(CASES))
