"""Which dialect of MCP a request speaks (mcp.md 2.1): the table, as one pure function.

Versions are a set, never compared as strings: an unknown one is unknown, not newer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from services.proxy.answers import (
    HEADER_MISMATCH,
    UNSUPPORTED_VERSION,
    Rejection,
    bad_request,
)
from services.proxy.messages import INVALID_PARAMS, Kind, Message

MODERN: Final = ("2026-07-28",)
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
#: Legacy versions in which a server may show an agent's user a URL.
ELICITING: Final = frozenset({"2025-11-25"})
#: Those in which a stream may be ended early and taken up again (SEP-1699).
RESUMING: Final = frozenset({"2025-11-25"})
NEWEST_MODERN: Final = MODERN[0]
NEWEST_LEGACY: Final = LEGACY[0]
KNOWN: Final = (*MODERN, *LEGACY)

VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"
CLIENT_META: Final = "io.modelcontextprotocol/clientInfo"
CAPABILITIES_META: Final = "io.modelcontextprotocol/clientCapabilities"
LEVEL_META: Final = "io.modelcontextprotocol/logLevel"
SERVER_META: Final = "io.modelcontextprotocol/serverInfo"

Era = Literal["modern", "legacy"]


@dataclass(frozen=True, slots=True)
class Route:
    """`opening`: the request starts a legacy session; `in_session`: it must present one."""

    era: Era
    version: str
    opening: bool = False
    in_session: bool = False

    @property
    def modern(self) -> bool:
        return self.era == "modern"


_MODERN_ROUTE: Final = Route("modern", NEWEST_MODERN)


def route(header: str | None, session: str | None, message: Message) -> Route | Rejection:
    """`header` is MCP-Protocol-Version, `session` Mcp-Session-Id, each as sent or None."""
    meta = message.params.get("_meta")
    body = meta.get(VERSION_META) if type(meta) is dict else None
    present = type(meta) is dict and VERSION_META in meta
    if header in MODERN:
        return _modern(header, meta, body, message, present=present)
    if present:
        return _body_without_header(header, body)
    if message.method == "initialize" and message.kind is Kind.REQUEST:
        asked = message.params.get("protocolVersion")
        return Route("legacy", asked if asked in LEGACY else NEWEST_LEGACY, opening=True)
    if header is not None and header not in LEGACY:
        return _unsupported(header)
    if session is None:
        return bad_request("a session or a modern protocol version is needed")
    return Route("legacy", header or "", in_session=True)


def settle(route: Route, sealed: str) -> Route | Rejection:
    """The session's own version is the truth; a header may repeat it, not change it."""
    if route.version not in {"", sealed}:
        return bad_request("the protocol version is not that of the session")
    return Route("legacy", sealed, in_session=True)


def _modern(
    header: str, meta: Any, body: Any, message: Message, *, present: bool
) -> Route | Rejection:
    if message.kind is Kind.NOTIFICATION and not present:
        # This version knows no notifications from clients: accepted and dropped.
        return _MODERN_ROUTE
    if present and body != header:
        return _mismatch("MCP-Protocol-Version is not the version of the body")
    if not present or type(meta.get(CAPABILITIES_META)) is not dict:
        return Rejection(
            status=400,
            code=INVALID_PARAMS,
            message=f"params._meta needs {VERSION_META} and {CAPABILITIES_META}",
            reason="invalid_params",
        )
    return _MODERN_ROUTE


def _body_without_header(header: str | None, body: Any) -> Rejection:
    if header is None or body != header:
        return _mismatch("MCP-Protocol-Version is not the version of the body")
    # A legacy version is agreed on by `initialize`, not named in each body.
    return _unsupported(header, MODERN if header in LEGACY else KNOWN)


def _mismatch(rule: str) -> Rejection:
    return Rejection(status=400, code=HEADER_MISMATCH, message=rule, reason="header_mismatch")


def _unsupported(requested: str, supported: tuple[str, ...] = KNOWN) -> Rejection:
    return Rejection(
        status=400,
        code=UNSUPPORTED_VERSION,
        message="Unsupported protocol version",
        reason="unsupported_version",
        data={"supported": list(supported), "requested": requested[:64]},
    )
