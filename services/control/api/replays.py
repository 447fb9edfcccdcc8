"""`Idempotency-Key` on POST: the same request again is answered as the first was, and done once.

1. the guard claims the key, after role and before body  2. the handler works  3. its answer is kept
before it leaves. A refusal gives the key back; who is cut short keeps it, for nobody knows whether
it was done. Answers are kept without one-time secrets.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.postgres.pool import tenant_tx
from services.control import idempotency
from services.control.api.bodies import POLICY_MAX_BYTES, read_capped
from services.control.api.context import Call, control_of
from services.control.problems import Refusal
from services.control.store import idempotency as store
from services.control.store.idempotency import Claimed

_HEADER: Final = idempotency.HEADER.encode()
_CLAIM: Final = "idempotency_claim"


class Replayed(Exception):
    """The key's first request was answered: this is its answer."""

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__()
        self.response = Response(
            answer or None,
            status_code=status,
            media_type="application/json" if answer else None,
            headers={"idempotency-replayed": "true"},
        )


async def claim(call: Call) -> None:
    """Raises Replayed, IDEMPOTENCY_IN_FLIGHT or IDEMPOTENCY_MISMATCH."""
    request, control = call.request, call.control
    key = request.headers.get(idempotency.HEADER)
    if key is None or request.method != "POST":
        return
    if not idempotency.is_key(key):
        raise Refusal("INVALID_ARGUMENT", "Idempotency-Key has 1 to 128 visible ASCII characters.")
    body = await read_capped(request, POLICY_MAX_BYTES)
    request.state.raw_body = body
    what = Claimed(
        tenant=call.tenant,
        principal=call.principal.label,
        route=request.scope["route"].path,
        key=key,
    )
    sent = idempotency.fingerprint(request.url.path, request.scope["query_string"], body)
    async with tenant_tx(control.pool, call.tenant) as connection:
        earlier = await store.claim(connection, what, request_sha256=sent, now=call.now)
    if earlier is None:
        setattr(request.state, _CLAIM, what)
        return
    if earlier.request_sha256 != sent:
        raise Refusal("IDEMPOTENCY_MISMATCH", "This key came with another request before.")
    if earlier.status is None:
        raise Refusal("IDEMPOTENCY_IN_FLIGHT", "The first request with this key has no answer yet.")
    raise Replayed(earlier.status, earlier.answer or b"")


class Replays:
    """Keeps the answers of claimed requests before they leave."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _HEADER not in dict(scope["headers"]):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def hold(message: Message) -> None:
            messages.append(message)

        request = Request(scope)
        try:
            await self._app(scope, receive, hold)
        except asyncio.CancelledError:
            raise
        except BaseException:  # a failure of ours; whatever it is, it goes on outwards
            await _settle(request, 500, b"")
            raise
        body = b"".join(message.get("body", b"") for message in messages)
        await _settle(request, messages[0]["status"], body)
        for message in messages:
            await send(message)


async def _settle(request: Request, status: int, body: bytes) -> None:
    what: Claimed | None = getattr(request.state, _CLAIM, None)
    if what is None:
        return
    async with tenant_tx(control_of(request).pool, what.tenant) as connection:
        if status < 400:
            answer = idempotency.kept_answer(body)
            await store.complete(connection, what, status=status, answer=answer)
        else:
            await store.release(connection, what)


async def replay(_: Request, replayed: Exception) -> Response:
    assert isinstance(replayed, Replayed)  # noqa: S101  # registered for it
    return replayed.response
