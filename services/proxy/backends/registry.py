"""Which backend serves a server: by its transport; and an HTTP server that knows no Streamable HTTP
by what came before it (mcp.md 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from services.proxy.backends.exchange import NOT_UNDERSTOOD
from services.proxy.backends.hosted import HostedStdio
from services.proxy.backends.legacy_sse import LegacySseBackend
from services.proxy.backends.stdio import StdioBackend
from services.proxy.backends.streamable import StreamableBackend
from services.proxy.backends.upstream import (
    Backend,
    Hear,
    Listening,
    Reply,
    Request,
    Session,
    UpstreamFailed,
)
from services.proxy.bridge import Facts
from services.proxy.calls import Visit
from services.proxy.snapshot import Server

MAX_KNOWN: Final = 10_000


@dataclass(slots=True)
class Registry:
    streamable: StreamableBackend
    legacy_sse: LegacySseBackend
    #: Children of this process, or the host of them. None: several workers without a host, and a
    #: child of each would be a child too many.
    stdio: StdioBackend | HostedStdio | None
    #: What speaks with an HTTP server, by the entry that was asked.
    _known: dict[str, tuple[Server, Backend]] = field(default_factory=dict)

    def of(self, server: Server) -> Backend:
        match server.transport:
            case "http":
                return self._http(server)
            case "sse":
                return self.legacy_sse
            case "stdio":
                if self.stdio is None:
                    raise UpstreamFailed("not_available_here", ran=False)
                return self.stdio
            case _:
                assert_never(server.transport)

    async def sweep(self) -> None:
        await self.streamable.sweep()
        await self.legacy_sse.sweep()
        if self.stdio is not None:
            await self.stdio.sweep()

    async def shut(self) -> None:
        self.streamable.shut()
        self.legacy_sse.shut()
        if self.stdio is not None:
            await self.stdio.shut()

    def forget(self) -> None:
        """Every server over HTTP is met anew, hosted ones too."""
        self._known.clear()
        self.streamable.forget()
        if isinstance(self.stdio, HostedStdio):
            self.stdio.forget()

    def met(self, server: Server, backend: Backend) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[server.id] = (server, backend)

    def _http(self, server: Server) -> Backend:
        if server.era == "modern":
            return self.streamable
        known = self._known.get(server.id)
        if known is None or (known[0] is not server and known[0] != server):
            return _Unmet(self)
        return known[1]


@dataclass(frozen=True, slots=True)
class _Unmet:
    """An HTTP server of which nobody knows yet how it wants to be spoken with."""

    registry: Registry

    async def facts(self, visit: Visit) -> Facts:
        return await (await self._meet(visit)).facts(visit)

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        return await (await self._meet(visit)).open(visit, capabilities)

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        return await (await self._meet(visit)).ask(visit, request, session, hear)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        await (await self._meet(visit)).tell(visit, message, session)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        await (await self._meet(visit)).listen(visit, listening, hear, session)

    async def close(self, visit: Visit, session: Session) -> None:
        """Nothing is known of any session."""

    async def _meet(self, visit: Visit) -> Backend:
        """Streamable HTTP; if it refuses that as a stranger would, HTTP+SSE. Raises UpstreamFailed,
        of the first try if neither works.
        """
        backend: Backend = self.registry.streamable
        try:
            await backend.facts(visit)
        except UpstreamFailed as failure:
            if failure.status not in NOT_UNDERSTOOD:
                raise
            backend = self.registry.legacy_sse
            try:
                await backend.facts(visit)
            except UpstreamFailed:
                raise failure from None
        self.registry.met(visit.server, backend)
        return backend
