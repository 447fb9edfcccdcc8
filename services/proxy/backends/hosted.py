"""stdio tool servers where another process hosts them (mcp.md 10.1): over Streamable HTTP on a unix
socket, in each child's own era, so that what a child says and asks comes as it would from a child
of ours.

Decides nothing about children: that is stdio.py's business, in the host.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from services.common.clock import Clock
from services.common.ids import ServerSlug, TenantId
from services.common.telemetry.counters import Counters
from services.proxy.backends import host_wire
from services.proxy.backends.credentials import Credentials, Header
from services.proxy.backends.stdio import HANDSHAKE_S
from services.proxy.backends.streamable import StreamableBackend
from services.proxy.backends.upstream import (
    CALL_S,
    Hear,
    Listening,
    Reply,
    Request,
    Session,
)
from services.proxy.bridge import Facts
from services.proxy.calls import Visit
from services.proxy.snapshot import Credential, Server

URL: Final = "http://stdio-host/"
#: Two dialects may be tried before a child has said which one is its own.
PROBE_S: Final = 2 * HANDSHAKE_S + 5.0
MAX_KNOWN: Final = 10_000


class HostedStdio:
    """One per worker, for all servers of transport `stdio`."""

    def __init__(
        self,
        *,
        socket: str,
        clock: Clock,
        counters: Counters,
        spawn: Callable[[str, Callable[[], Any]], Any],
    ) -> None:
        self._http = StreamableBackend(
            credentials=_Introduction(),
            clock=clock,
            counters=counters,
            spawn=spawn,
            socket=socket,
            probe_s=PROBE_S,
        )
        #: What each server is at the host, by the entry that it was made of.
        self._known: dict[tuple[TenantId, ServerSlug], tuple[Server, Server]] = {}

    async def facts(self, visit: Visit) -> Facts:
        return await self._http.facts(self._there(visit))

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        return await self._http.open(self._there(visit), capabilities)

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        return await self._http.ask(self._there(visit), request, session, hear)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        await self._http.tell(self._there(visit), message, session)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        await self._http.listen(self._there(visit), listening, hear, session)

    async def close(self, visit: Visit, session: Session) -> None:
        """The child stays: it is the agent's, not the session's."""

    def forget(self) -> None:
        """Every server is asked anew what it is."""
        self._http.forget()

    async def sweep(self) -> None:
        await self._http.sweep()

    async def shut(self) -> None:
        self._http.shut()

    def _there(self, visit: Visit) -> Visit:
        place = (visit.caller.tenant, visit.slug)
        known = self._known.get(place)
        if known is None or known[0] is not visit.server:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[place] = (visit.server, _entry(visit.server))
        return replace(visit, server=known[1])


class _Introduction(Credentials):
    """A request's proof is who asks: the host believes whoever can open its socket."""

    def __init__(self) -> None:  # it keeps no secrets and asks nobody for tokens
        pass

    async def header(self, visit: Visit) -> Header | None:
        return host_wire.VISIT, host_wire.visit_header(visit)

    def forget(self, visit: Visit, used: Header | None = None) -> bool:  # noqa: ARG002  # its parent's
        return False

    async def tls(self, server: Server) -> ssl.SSLContext | None:  # noqa: ARG002  # its parent's
        return None


def _entry(server: Server) -> Server:
    """The host waits for a child as long as it takes: a call's own time ends it."""
    return msgspec.structs.replace(
        server,
        transport="http",
        urls=(URL,),
        credential=Credential(kind="introduction"),
        first_byte_s=int(CALL_S),
        headers={},
        ca="",
    )
