"""Lists of tool servers, fetched whole: page after page, within limits (mcp.md 6)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from services.proxy import bridge, messages
from services.proxy.backends.upstream import MAX_ANSWER, Backend, Request, UpstreamFailed
from services.proxy.bridge import Facts
from services.proxy.calls import Visit

#: Of tools and prompts; others no agent may see.
NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_ENTRIES: Final = 5_000
MAX_PAGES: Final = 500
LIST_S: Final = 30.0
#: Of any list, at most so long.
FRESH_NS: Final = 300 * 1_000_000_000
#: Method -> the member of its result that holds the entries.
MEMBERS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/templates/list": "resourceTemplates",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Entries as the server sent them; what is no object is none."""

    entries: list[dict[str, Any]]
    facts: Facts
    #: What the server allows; 0 where it says nothing.
    ttl_ns: int


class NoSuchList(UpstreamFailed):
    """The server answers with an error of its own."""

    def __init__(self, error: dict[str, Any], status: int) -> None:
        super().__init__("upstream_protocol", ran=False, status=status)
        self.error = error


async def fetch(visit: Visit, backend: Backend, method: str) -> Whole:
    """Raises UpstreamFailed; NoSuchList where the server refuses."""
    facts = await backend.facts(visit)
    entries: list[dict[str, Any]] = []
    seen: set[str] = set()
    params: dict[str, Any] = {}
    size, ttl_ns = 0, FRESH_NS
    for _ in range(MAX_PAGES):
        request = Request(method=method, params=bridge.outgoing(params, facts), timeout_s=LIST_S)
        reply = await backend.ask(visit, request)
        if reply.result is None:
            raise NoSuchList(reply.error or {}, reply.status)
        found = reply.result.get(MEMBERS[method])
        if type(found) is not list:
            raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
        entries.extend(bridge.unmarked(one) for one in found if type(one) is dict)
        size += len(messages.encode(found))
        ttl_ns = min(ttl_ns, _ttl_ns(reply.result))
        cursor = reply.result.get("nextCursor")
        if len(entries) > MAX_ENTRIES or size > MAX_ANSWER:
            raise UpstreamFailed("upstream_protocol", ran=False)
        if type(cursor) is not str:
            return Whole(entries=entries, facts=facts, ttl_ns=ttl_ns)
        if cursor in seen:
            raise UpstreamFailed("upstream_protocol", ran=False)
        seen.add(cursor)
        params = {"cursor": cursor}
    raise UpstreamFailed("upstream_protocol", ran=False)


def _ttl_ns(page: dict[str, Any]) -> int:
    ttl_ms = page.get("ttlMs")
    return ttl_ms * 1_000_000 if type(ttl_ms) is int and ttl_ms > 0 else 0
