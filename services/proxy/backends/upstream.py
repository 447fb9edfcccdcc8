"""What a tool server is to the rest of the proxy: a Protocol, its values and its failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from services.proxy.answers import HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION
from services.proxy.bridge import Facts
from services.proxy.calls import Visit
from services.proxy.eras import KNOWN, LEGACY, MODERN, SERVER_META, Era
from services.proxy.snapshot import Server

CONNECT_S: Final = 5.0
SILENCE_S: Final = 300.0
CALL_S: Final = 600.0
PROBE_S: Final = 5.0
MAX_ANSWER: Final = 8 * 1024 * 1024
#: Answers of ours to questions of a server that are under way at once: at one address, or on one
#: line. A flood of questions takes no more than this.
MAX_ANSWERING: Final = 16
#: Codes that only a modern server gives.
MODERN_CODES: Final = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a tool server. `headers` are what the final body implies."""

    method: str
    params: dict[str, Any]
    name: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    timeout_s: float = CALL_S
    #: The agent's progress token. Upstream carries one of the backend's own in its place; what is
    #: heard of its progress carries the agent's again.
    progress: int | str | None = None
    #: Over HTTP, in both eras.
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A legacy session at a tool server; `id` is empty where it gave none. `url` is the one of the
    server's addresses that knows it.
    """

    id: str
    version: str
    url: str = ""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool server says that answers nothing: a notification, or with an `id` a request."""

    method: str
    params: dict[str, Any]
    id: int | str | None = None
    #: The event's own id, by which a legacy stream could be resumed.
    event_id: str = ""


#: Heard where a legacy server ended the stream of a request before it answered: the backend takes
#: it up again, after so many `retryMs`.
PAUSED: Final = "paused"

#: Called in the order of arrival, from the connection's reader: it must not block, nor raise.
Hear = Callable[[Heard], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """What is listened for beside any call. `params` are those of a modern
    `subscriptions/listen`; a legacy stream brings everything of its session.
    """

    params: dict[str, Any] = field(default_factory=dict)
    #: Where a legacy stream broke off.
    last_event_id: str = ""


class Reply(msgspec.Struct, frozen=True):
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


def discovered(reply: Reply) -> Facts | None:
    """None where the answer does not come from a modern server that we can speak with. Raises
    UpstreamFailed.
    """
    if reply.result is None:
        code = reply.error["code"] if reply.error else 0
        if code in MODERN_CODES:
            raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
        return None
    found = reply.result
    versions = found.get("supportedVersions")
    shared = [one for one in MODERN if type(versions) is list and one in versions]
    if not shared:
        return None
    meta = found.get("_meta")
    info = meta.get(SERVER_META) if type(meta) is dict else None
    return _facts("modern", shared[0], found, info or found.get("serverInfo"))


def supported(reply: Reply) -> list[str]:
    """Versions that a server names while it refuses ours; none where it refuses something else."""
    error = reply.error or {}
    data = error.get("data")
    versions = data.get("supported") if type(data) is dict else None
    if error.get("code") != UNSUPPORTED_VERSION or type(versions) is not list:
        return []
    return [one for one in KNOWN if one in versions]


def introduced(reply: Reply, *, also: str = "") -> Facts:
    """The answer to `initialize`, of a version that we know, or this one. Raises UpstreamFailed."""
    version = None if reply.result is None else reply.result.get("protocolVersion")
    if reply.result is None or type(version) is not str or version not in {*LEGACY, also}:
        raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
    return _facts("legacy", version, reply.result, reply.result.get("serverInfo"))


def _facts(era: Era, version: str, found: dict[str, Any], info: Any) -> Facts:
    capabilities, instructions = found.get("capabilities"), found.get("instructions")
    return Facts(
        era=era,
        version=version,
        capabilities=capabilities if type(capabilities) is dict else {},
        server_info=info if type(info) is dict else {},
        instructions=instructions if type(instructions) is str else None,
    )


class Backend(Protocol):
    async def facts(self, visit: Visit) -> Facts:
        """What the server is, probed when it is not known. Raises UpstreamFailed."""

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        """A session of the agent's own at a legacy server, which is told these capabilities; None
        where there is no such thing.
        """

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        """Raises UpstreamFailed; SessionGone only for a session that was given. Without `hear`
        nothing is listened to, and the server's requests are refused. Cancelling it cancels the
        request at the server: its stream is closed (modern) or it is told (legacy, stdio).
        """

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        """A notification, or the answer to a request of the server, without waiting for more than
        its acceptance. Raises UpstreamFailed.
        """

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        """Until the server ends the stream. Cancelling closes it. Raises UpstreamFailed, with the
        status where the server has no such stream (405).
        """

    async def close(self, visit: Visit, session: Session) -> None:
        """Tells the server that the session is over; never raises."""


class Backends(Protocol):
    def of(self, server: Server) -> Backend:
        """Raises UpstreamFailed for a transport that this plane cannot do."""
