"""The outermost middleware: request id, admission, headers of every answer, one log line, and the
last handler: what nobody expected leaves as a fixed text.

One of the places that may catch everything (style rule 21).
"""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import is_uuid, uuid7
from services.common.telemetry.logging import Log, describe
from services.control.api import faults
from services.control.problems import Refusal

#: Answered even when everything else is refused.
UNCOUNTED: Final = frozenset({"/healthz", "/readyz"})
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_CSP: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class Edge:
    def __init__(self, app: ASGIApp, *, clock: Clock, log: Log, max_in_flight: int) -> None:
        self._app = app
        self._clock = clock
        self._log = log
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope, self._clock)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        counted = scope["path"] not in UNCOUNTED
        started = self._clock.monotonic_ns()
        try:
            if counted and self._in_flight >= self._max_in_flight:
                await self._refuse(
                    scope, receive, answer, Refusal("OVERLOADED", "Try again in a moment.")
                )
            else:
                self._in_flight += counted
                try:
                    await self._app(scope, receive, answer.send)
                finally:
                    self._in_flight -= counted
        except Exception as failure:  # the outermost handler
            self._log.error("request_failed", request_id=request_id, error=describe(failure))
            if answer.status == 0:
                internal = BehavryError("INTERNAL", "Tell the operator the request id.")
                await self._refuse(scope, receive, answer, internal)
        if counted:
            self._log.info(
                "request",
                method=scope["method"],
                route=faults.instance_of(scope),
                status=answer.status,
                request_id=request_id,
                us=(self._clock.monotonic_ns() - started) // 1_000,
            )

    async def _refuse(
        self, scope: Scope, receive: Receive, answer: _Answer, error: BehavryError
    ) -> None:
        response = faults.answer(
            error,
            instance=faults.instance_of(scope),
            request_id=answer.request_id,
            page=faults.is_page(scope),
        )
        await response(scope, receive, answer.send)


class _Answer:
    """Adds what every answer carries, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["x-content-type-options"] = "nosniff"
            headers.setdefault("referrer-policy", "no-referrer")
            headers.setdefault("content-security-policy", _CSP)
            headers.setdefault("cache-control", "no-store")
        await self._send(message)


def request_id_of(scope: Scope, clock: Clock) -> str:
    """The caller's trace id or request id where it is well-formed, else a new one."""
    sent: dict[bytes, bytes] = dict(scope["headers"])
    trace = _TRACEPARENT.fullmatch(sent.get(b"traceparent", b"").decode("latin-1"))
    if trace is not None and int(trace[1], 16):
        return trace[1]
    asked = sent.get(b"x-request-id", b"").decode("latin-1")
    if is_uuid(asked) or _TRACE_ID.fullmatch(asked):
        return asked
    return uuid7(clock.now_ns())
