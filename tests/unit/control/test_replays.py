"""A request that was cut short keeps its idempotency key: nobody knows whether it was done."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Never

import pytest
from starlette.types import Message, Receive, Scope, Send

from services.common.ids import NIL_TENANT
from services.control.api.replays import Replays
from services.control.store.idempotency import Claimed

CLAIMED = Claimed(tenant=NIL_TENANT, principal="key:1", route="/agents", key="k1")


class Asked(Exception):
    """The claims' table was reached for."""


class Pool:
    @property
    def connections(self) -> Never:
        raise Asked


async def end_by(failure: BaseException) -> None:
    """A request whose claim is made, and whose handler ends so."""

    async def handler(_: Scope, __: Receive, ___: Send) -> None:
        raise failure

    async def receive() -> Message:
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError

    scope = {
        "type": "http",
        "headers": [(b"idempotency-key", b"k1")],
        "state": {"idempotency_claim": CLAIMED},
        "app": SimpleNamespace(state=SimpleNamespace(control=SimpleNamespace(pool=Pool()))),
    }
    await Replays(handler)(scope, receive, send)


async def test_a_request_that_is_cut_short_keeps_its_key() -> None:
    with pytest.raises(asyncio.CancelledError):
        await end_by(asyncio.CancelledError())


async def test_a_request_that_fails_gives_its_key_back() -> None:
    with pytest.raises(Asked):
        await end_by(RuntimeError("a failure of ours"))
