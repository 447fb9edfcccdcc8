"""Whether what an agent sees has changed: a list is said to have, or policy has (mcp.md 7).

Decides who is told that a list of tools changed: an agent whose own view did. Prompts are the same
for all agents that a server does not tell apart; of resources, which nobody keeps, the server's
word is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
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
        #: Where a look is under way, and what came meanwhile.
        self._looking: dict[_Place | None, bool] = {}

    def list_changed(self, visit: Visit, stream: Stream | None = None) -> None:
        """A server says so; of many such words at once one look comes. `stream` is told, too."""
        if stream is None:
            self._look((visit.caller.tenant, visit.slug), visit)
        else:
            self._spawn("views", lambda: self._told(visit, stream))

    def other_changed(self, visit: Visit, method: str, tell: Callable[[], None]) -> None:
        """A list that is not of tools, says the server. Prompts are compared, and `tell` tells all
        that the agent listens on.
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

        self._spawn("lists", compare)

    def policy_changed(self) -> None:
        self._look(None, None)

    async def missed(self, visit: Visit) -> bool:
        """Whether it changed since the agent last knew, before anybody told it."""
        return await self._differs(visit)

    def _look(self, place: _Place | None, visit: Visit | None) -> None:
        if place in self._looking:
            self._looking[place] = True
            return
        self._looking[place] = False
        self._spawn("views", lambda: self._looked(place, visit))

    async def _looked(self, place: _Place | None, visit: Visit | None) -> None:
        again = True
        try:
            while again:
                self._looking[place] = False
                if visit is not None:
                    await self._renew(visit)
                await self._compare(place)
                again = self._looking[place]
        finally:
            del self._looking[place]

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
