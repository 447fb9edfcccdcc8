"""Tokens: when they are renewed, what a refusal is, and that one trade serves all who wait."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from services.mcp_stdio.credential import (
    CredentialRefused,
    SessionEnded,
    TokenAnswer,
    Tokens,
    Unavailable,
)
from services.mcp_stdio.gateway import client_session
from services.mcp_stdio.token_endpoint import TokenEndpoint
from tests.fakes.clock import ManualClock
from tests.fakes.scripted_gateway import Asked, ScriptedGateway, json
from tests.unit.mcp_stdio.conftest import relaying

LIFE_S = 100


class Desk:
    """Gives tokens by number, or does what it is told next."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told: list[Exception] = []

    async def __call__(self, session: str) -> TokenAnswer:
        self.asked.append(session)
        await asyncio.sleep(0)
        if self.told:
            raise self.told.pop(0)
        return TokenAnswer(f"t-{len(self.asked)}", LIFE_S, "s-1")


async def test_a_token_is_renewed_at_four_fifths_of_its_life_in_its_session() -> None:
    desk, clock = Desk(), ManualClock()
    tokens = Tokens(desk, clock)
    first = await asyncio.gather(tokens.bearer(), tokens.bearer())
    clock.advance(LIFE_S * 0.79)
    same = await tokens.bearer()
    clock.advance(LIFE_S * 0.02)
    renewed = await tokens.bearer()

    assert (["t-1", "t-1"], "t-1", "t-2") == ([*first], same, renewed)
    assert ["", "s-1"] == desk.asked


async def test_a_live_token_outlasts_an_endpoint_that_is_away_and_no_longer() -> None:
    desk, clock = Desk(), ManualClock()
    tokens = Tokens(desk, clock)
    await tokens.bearer()
    clock.advance(LIFE_S * 0.9)
    desk.told = [Unavailable(), Unavailable()]
    kept = await tokens.bearer()
    clock.advance(LIFE_S)

    assert "t-1" == kept
    with pytest.raises(Unavailable):
        await tokens.bearer()


async def test_a_session_that_ended_is_followed_by_a_new_one() -> None:
    desk = Desk()
    tokens = Tokens(desk, ManualClock())
    await tokens.bearer()
    desk.told = [SessionEnded()]

    await tokens.renew("t-1")
    await tokens.renew("t-1")  # somebody else was told the same: it is renewed already

    assert ["", "s-1", ""] == desk.asked


async def test_a_token_that_is_refused_is_renewed_once(gateway: ScriptedGateway) -> None:
    good = {"t-2"}

    async def strict(asked: Asked, _: web.Request) -> web.Response | None:
        if asked.headers["authorization"].removeprefix("Bearer ") not in good:
            return web.Response(status=401)
        return None

    gateway.script = strict
    desk = Desk()
    async with relaying(gateway, Tokens(desk, ManualClock())) as client:
        client.modern("tools/call", {"name": "n"}, id=1)
        answer = await client.hear()

    assert "result" in answer
    assert 2 == len(desk.asked)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (401, {"error": "invalid_client"}, CredentialRefused),
        (403, {"error": "agent_suspended"}, CredentialRefused),
        (400, {"error": "invalid_grant"}, SessionEnded),
        (404, {}, CredentialRefused),
    ],
)
async def test_what_the_endpoint_s_answers_mean(
    gateway: ScriptedGateway, status: int, body: dict[str, Any], outcome: type[Exception]
) -> None:
    async def refuses(_: Asked, __: web.Request) -> web.Response:
        return json(body, status=status)

    gateway.script = refuses
    async with client_session(None) as http:
        ask = TokenEndpoint(http, gateway.url, client_id="i", client_secret="hidden")
        with pytest.raises(outcome) as raised:
            await ask("s-1")

    assert "hidden" not in str(raised.value)
    assert b"client_secret=hidden&session=s-1" in gateway.asked[0].raw


async def test_an_endpoint_that_is_busy_is_asked_again(gateway: ScriptedGateway) -> None:
    async def busy_once(_: Asked, __: web.Request) -> web.Response:
        if len(gateway.asked) == 1:
            return json({"error": "rate_limited"}, status=429)
        return json({"access_token": "t", "expires_in": 9, "session_id": "s"})

    gateway.script = busy_once
    async with client_session(None) as http:
        ask = TokenEndpoint(http, gateway.url, client_id="i", client_secret="x")

        assert TokenAnswer("t", 9, "s") == await ask("")
    assert b"session=" not in gateway.asked[0].raw
