"""What a tool server is to the rest of the proxy: a Protocol, its values and its failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from services.proxy.bridge import Facts
from services.proxy.calls import Visit
from services.proxy.snapshot import Server

CONNECT_S: Final = 5.0
FIRST_BYTE_S: Final = 120.0
SILENCE_S: Final = 300.0
CALL_S: Final = 600.0
PROBE_S: Final = 5.0
MAX_ANSWER: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a tool server. `headers` are what the final body implies."""

    method: str
    params: dict[str, Any]
    name: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    timeout_s: float = CALL_S


@dataclass(frozen=True, slots=True)
class Session:
    """A legacy session at a tool server; `id` is empty where it gave none."""

    id: str
    version: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Exactly one of `result` and `error`."""

    result: dict[str, Any] | None
    error: dict[str, Any] | None
    status: int = 200


class UpstreamFailed(Exception):
    """No answer to use. `ran` is None where nobody can know whether the tool ran."""

    def __init__(self, reason: str, *, ran: bool | None, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.ran = ran
        self.status = status


class SessionGone(UpstreamFailed):
    """The tool server does not know the session (any more): nothing ran."""

    def __init__(self) -> None:
        super().__init__("unknown_session", ran=False, status=404)


class Backend(Protocol):
    async def facts(self, visit: Visit) -> Facts:
        """What the server is, probed when it is not known. Raises UpstreamFailed."""

    async def open(self, visit: Visit) -> Session | None:
        """A session of the agent's own at a legacy server; None where there is no such thing."""

    async def ask(self, visit: Visit, request: Request, session: Session | None = None) -> Reply:
        """Raises UpstreamFailed; SessionGone only for a session that was given."""

    async def close(self, visit: Visit, session: Session) -> None:
        """Tells the server that the session is over; never raises."""


class Backends(Protocol):
    def of(self, server: Server) -> Backend:
        """Raises UpstreamFailed for a transport that this plane cannot do."""
