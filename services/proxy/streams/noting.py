"""What agents say that asks for nothing: legacy notifications (mcp.md 4).

Decides which of them change anything: a request that is given up, roots that changed. The rest is
taken note of, and goes nowhere.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import msgspec

from services.proxy import answers, local, messages
from services.proxy.answers import Answer, Rejection
from services.proxy.asking import grants
from services.proxy.backends.upstream import Backends, UpstreamFailed
from services.proxy.calls import Visit
from services.proxy.holding import Holds
from services.proxy.local import Refused
from services.proxy.messages import Message
from services.proxy.replicas.post import Post
from services.proxy.sessions import Session
from services.proxy.streams.abandoning import Abandonments, Name

CANCELLED: Final = "notifications/cancelled"
ROOTS: Final = "notifications/roots/list_changed"
_name: Final = msgspec.msgpack.Decoder(Name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noting:
    holds: Holds
    given_up: Abandonments
    backends: Backends
    post: Post

    def __post_init__(self) -> None:
        self.post.notes(CANCELLED, self._hear_cancelled)

    async def noted(self, visit: Visit, message: Message, session: Session | None) -> Answer:
        """Raises Refused."""
        match message.method:
            case "notifications/cancelled" if session is not None:
                named = message.params.get("requestId")
                if isinstance(named, int | str) and messages.valid_id(named):
                    await self._cancel((session.id, named))
            case "notifications/roots/list_changed":
                await self._roots(visit, session)
        return answers.ACCEPTED

    async def _cancel(self, name: Name) -> None:
        """Where it runs or waits: here, or in whichever other process."""
        if not self._cancel_here(name):
            await self.post.tell(CANCELLED, msgspec.msgpack.encode(name))

    async def _hear_cancelled(self, body: bytes) -> None:
        self._cancel_here(_name.decode(body))

    def _cancel_here(self, name: Name) -> bool:
        waited, ran = self.holds.cancelled(name), self.given_up.cancelled(name)
        return waited or ran

    async def _roots(self, visit: Visit, session: Session | None) -> None:
        """Passed to who may ask for the roots, and refused by name for who may not."""
        declared = session.capabilities if session is not None else {}
        told = grants.granted(declared, visit.server.grants).get("roots", {})
        if session is None or not visit.let_in or told.get("listChanged") is not True:
            raise Refused(
                Rejection(
                    status=400,
                    code=messages.METHOD_NOT_FOUND,
                    message=f"Method not found: {ROOTS}",
                    reason="capability_not_granted",
                )
            )
        upstream = local.upstream_session(session)
        if upstream is not None:  # a modern server asks for roots when it needs them
            with contextlib.suppress(UpstreamFailed):
                await self.backends.of(visit.server).tell(visit, {"method": ROOTS}, upstream)
