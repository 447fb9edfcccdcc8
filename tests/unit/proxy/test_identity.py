"""Agent keys: traded once, kept while they live, renewed before they end, refused for a while."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from services.common.clock import SystemClock
from services.proxy.identity import ControlAway, Identity, Traded, Unauthenticated
from tests.fakes.clock import ManualClock
from tests.fakes.gateway import AUDIENCE, ISSUER, Issuer

KEY = b"bhv_ak_client-1.secret-1"
HERE = "http://127.0.0.1:8700/mcp/v1/notes"


class Control:
    """Trades as told."""

    def __init__(self, issuer: Issuer, clock: ManualClock) -> None:
        self.trades: list[tuple[str, str, str | None]] = []
        self.refuse = self.is_away = False
        self.looked = 0
        self._issuer = issuer
        self._clock = clock
        self.gate = asyncio.Event()
        self.gate.set()

    async def trade(self, client_id: str, client_secret: str, session: str | None) -> Traded | None:
        self.trades.append((client_id, client_secret, session))
        await self.gate.wait()
        if self.is_away:
            raise ControlAway
        if self.refuse:
            return None
        now_s = self._clock.now_ns() // 10**9
        return Traded(self._issuer.token(iat=now_s, nbf=now_s, exp=now_s + 900), 900)

    async def away(self) -> bool:
        self.looked += 1
        return self.is_away


class Door:
    def __init__(self, *, grace_s: int = 0) -> None:
        self.issuer = issuer = Issuer()
        self.clock = ManualClock(wall_ns=SystemClock().now_ns())
        self.control = Control(issuer, self.clock)
        self.background: list[Callable[[], Any]] = []
        self.identity = Identity(
            issuer=ISSUER,
            plane_audience=AUDIENCE,
            trader=self.control,
            clock=self.clock,
            spawn=lambda _, run: self.background.append(run),
            grace_s=grace_s,
        )
        self.identity.set_keys(ISSUER, issuer.jwks()["jwks"])

    def token(self, **changes: Any) -> bytes:
        now_s = self.clock.now_ns() // 10**9
        times = {"iat": now_s, "nbf": now_s, "exp": now_s + 900}
        return self.issuer.token(**{**times, **changes}).encode()

    async def enter(self, credential: bytes = KEY) -> str:
        known = self.identity.recall(credential, HERE)
        return (known or await self.identity.prove(credential, HERE)).agent


async def test_a_key_is_traded_once() -> None:
    door = Door()

    agents = {await door.enter() for _ in range(5)}

    assert 1 == len(agents)
    assert [("client-1", "secret-1", None)] == door.control.trades


async def test_callers_that_come_together_share_one_trade() -> None:
    door = Door()
    door.control.gate.clear()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(door.enter()) for _ in range(5)]
        await asyncio.sleep(0)
        door.control.gate.set()

    assert 1 == len({task.result() for task in waiting})
    assert 1 == len(door.control.trades)


async def test_it_is_renewed_at_80_percent_in_the_background_with_its_session() -> None:
    door = Door()
    await door.enter()
    door.clock.advance(719)
    await door.enter()
    assert [] == door.background
    door.clock.advance(2)
    await door.enter()
    await door.enter()

    assert 1 == len(door.background)
    await door.background[0]()
    assert door.control.trades[-1][2] is not None
    door.clock.advance(300)
    await door.enter()
    assert 2 == len(door.control.trades)


async def test_a_refused_key_is_remembered_for_ten_seconds() -> None:
    door = Door()
    door.control.refuse = True
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await door.enter()
    assert 1 == len(door.control.trades)
    door.control.refuse = False
    door.clock.advance(11)

    await door.enter()

    assert 2 == len(door.control.trades)


async def test_without_control_live_keys_go_on_and_new_ones_do_not() -> None:
    door = Door()
    await door.enter()
    door.control.is_away = True

    await door.enter()
    with pytest.raises(ControlAway):
        await door.enter(b"bhv_ak_client-2.secret-2")


async def test_a_revoked_session_means_another_trade() -> None:
    door = Door()
    await door.enter()
    door.identity.forget(KEY)

    await door.enter()

    assert 2 == len(door.control.trades)


async def test_a_withdrawn_signing_key_takes_its_tokens_with_it() -> None:
    door = Door()
    await door.enter()
    door.identity.set_keys(ISSUER, Issuer().jwks()["jwks"] | {"keys": []})

    with pytest.raises(Unauthenticated):
        await door.enter()


@pytest.mark.parametrize(
    "key", [b"bhv_ak_", b"bhv_ak_x", b"bhv_ak_.y", b"bhv_ak_x.", b"bhv_ak_x." + b"y" * 600, b"\xff"]
)
async def test_what_is_no_key_is_not_even_asked_about(key: bytes) -> None:
    door = Door()

    with pytest.raises(Unauthenticated):
        await door.enter(key)

    assert [] == door.control.trades


async def test_an_expired_token_is_forgotten() -> None:
    door = Door()
    now_s = door.clock.now_ns() // 10**9
    token = Issuer.token(door.control._issuer, iat=now_s, nbf=now_s, exp=now_s + 60).encode()
    await door.enter(token)
    door.clock.advance(91)

    assert door.identity.recall(token, HERE) is None
    with pytest.raises(Unauthenticated):
        await door.enter(token)


# --- while control is away ----------------------------------------------------------------------


@pytest.mark.parametrize("credential", ["key", "token"])
async def test_who_was_let_in_goes_on_while_control_is_away_and_no_longer(credential: str) -> None:
    door = Door(grace_s=3600)
    given = KEY if credential == "key" else door.token()
    await door.enter(given)
    door.clock.advance(931)
    door.control.is_away = True
    looked = door.control.looked
    caller = await door.identity.prove(given, HERE)
    door.clock.advance(3500)
    late = await door.identity.prove(given, HERE)

    assert (True, True) == (caller.graced, late.graced)
    assert looked < door.control.looked
    door.clock.advance(200)  # an hour after its end
    with pytest.raises((Unauthenticated, ControlAway)):
        await door.identity.prove(given, HERE)


async def test_a_token_that_ended_is_none_while_control_could_give_another() -> None:
    door = Door(grace_s=3600)
    token = door.token()
    await door.enter(token)
    door.clock.advance(931)

    with pytest.raises(Unauthenticated, match="token_expired"):
        await door.enter(token)
    door.control.is_away = True
    assert (await door.identity.prove(token, HERE)).graced
    door.control.is_away = False  # and control is back
    with pytest.raises(Unauthenticated, match="token_expired"):
        await door.enter(token)


async def test_only_a_session_that_was_let_in_before_goes_on() -> None:
    door = Door(grace_s=3600)
    seen, never = door.token(sid="s-1"), door.token(sid="s-2")
    await door.enter(seen)
    again = door.token(sid="s-1", jti="another")  # of the same session
    door.clock.advance(931)
    door.control.is_away = True

    assert (await door.identity.prove(again, HERE)).graced
    with pytest.raises(Unauthenticated, match="token_expired"):
        await door.enter(never)
    forged = Issuer().token(sid="s-1", exp=1).encode()
    with pytest.raises(Unauthenticated, match="invalid_token"):
        await door.enter(forged)
    elsewhere = door.token(sid="s-1", aud="behavry:dp:other", exp=door.clock.now_ns() // 10**9 - 60)
    with pytest.raises(Unauthenticated, match="invalid_audience"):
        await door.enter(elsewhere)


async def test_without_grace_the_end_is_the_end() -> None:
    door = Door()
    token = door.token()
    await door.enter(token)
    door.clock.advance(931)
    door.control.is_away = True

    with pytest.raises(Unauthenticated, match="token_expired"):
        await door.enter(token)
    assert 0 == door.control.looked
