"""Whether what an agent sees has changed: a list is said to have, or policy has (mcp.md 7).

Decides who is told that a list of tools changed: an agent whose own view did. Prompts are the same
for all agents that a server does not tell apart; of resources, which nobody keeps, the server's
word is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from services.common.errors import BehavryError
from services.common.ids import AgentId, ServerSlug, TenantId
from services.proxy import lists
from services.proxy.backends.upstream import Backends, UpstreamFailed
from services.proxy.calls import Spawn, Stream, Visit
from services.proxy.catalog import Catalog
from services.proxy.streams.relay import notification

TOOLS: Final = "notifications/tools/list_changed"
PROMPTS: Final = "notifications/prompts/list_changed"

Owner = tuple[TenantId, AgentId, ServerSlug]
_Place = tuple[TenantId, ServerSlug]


class Views:
    """One per worker. `listening` says who listens now; `tell` is called once for each whose view
    changed.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        backends: Backends,
        spawn: Spawn,
        listening: Callable[[], Iterable[Visit]],
        tell: Callable[[Owner], None],
    ) -> None:
        self._catalog = catalog
        self._backends = backends
        self._spawn = spawn
        self._listening = listening
        self._tell = tell
        #: What is being looked at, and for whom; whether it changed again meanwhile.
        self._looking: dict[object, bool] = {}

    def list_changed(self, visit: Visit, stream: Stream | None = None) -> None:
        """A server says so; `stream` alone is told, where there is one."""
        if stream is None:
            place = (visit.caller.tenant, visit.slug)
            self._look(place, partial(self._changed, place, visit))
        else:
            self._look((TOOLS, stream), partial(self._told, visit, stream))

    def other_changed(
        self, visit: Visit, method: str, tell: Callable[[], None], stream: Stream | None = None
    ) -> None:
        """A list that is not of tools, says the server. Prompts are compared, and `tell` tells all
        that the agent listens on, or `stream` alone.
        """
        known, listed = self._catalog.lists, lists.CHANGED[method]
        if method != PROMPTS:
            known.forget(visit, listed)
            tell()
            return

        async def compare() -> None:
            try:
                changed = await known.differs(visit, self._backends.of(visit.server), listed)
            except UpstreamFailed:
                changed = True  # nobody can tell, but the server said so
            if changed:
                tell()

        self._look((method, stream or owner(visit)), compare)

    def policy_changed(self) -> None:
        self._look(None, partial(self._compare, None))

    async def missed(self, visit: Visit) -> bool:
        """Whether it changed since the agent last knew, before anybody told it."""
        return await self._differs(visit)

    def _look(self, what: object, look: Callable[[], Awaitable[None]]) -> None:
        """One at a time of the same: a server may say so faster than anybody can look."""
        if what in self._looking:
            self._looking[what] = True
            return
        self._looking[what] = False
        self._spawn("views", lambda: self._looked(what, look))

    async def _looked(self, what: object, look: Callable[[], Awaitable[None]]) -> None:
        again = True
        try:
            while again:
                self._looking[what] = False
                await look()
                again = self._looking[what]
        finally:
            del self._looking[what]

    async def _changed(self, place: _Place, visit: Visit) -> None:
        await self._renew(visit)
        await self._compare(place)

    async def _told(self, visit: Visit, stream: Stream) -> None:
        await self._renew(visit)
        if await self._differs(visit):
            stream.push(notification(TOOLS, {}))

    async def _renew(self, visit: Visit) -> None:
        with contextlib.suppress(UpstreamFailed):
            await self._catalog.renew(visit, self._backends.of(visit.server))

    async def _compare(self, place: _Place | None) -> None:
        owners = {owner(one): one for one in self._listening()}
        for one in owners.values():
            if place in {None, (one.caller.tenant, one.slug)} and await self._differs(one):
                self._tell(owner(one))

    async def _differs(self, visit: Visit) -> bool:
        """Where nobody can tell, nothing changed: the next look finds out."""
        try:
            return await self._catalog.differs(visit, self._backends.of(visit.server))
        except (UpstreamFailed, BehavryError):
            return False


def owner(visit: Visit) -> Owner:
    return visit.caller.tenant, visit.caller.agent, visit.slug
