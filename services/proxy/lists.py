"""Prompts and resource templates: whole lists, the same for every agent that may reach the server
(mcp.md 6). Tools have views of their own (catalog.py), resources are relayed page by page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from services.common.clock import Clock
from services.proxy import bridge, messages, pages
from services.proxy.backends.upstream import Backend
from services.proxy.bridge import Facts
from services.proxy.calls import Visit
from services.proxy.kept import Kept
from services.proxy.pages import NAME

PROMPTS: Final = "prompts/list"
TEMPLATES: Final = "resources/templates/list"
MAX_KNOWN: Final = 10_000
WHOLE: Final = frozenset({PROMPTS, TEMPLATES})
#: What a server says when one of them changed.
CHANGED: Final[Mapping[str, str]] = {
    "notifications/prompts/list_changed": PROMPTS,
    "notifications/resources/list_changed": TEMPLATES,
}


@dataclass(slots=True)
class Listed:
    """What every agent is given; results are encoded once per era."""

    entries: list[dict[str, Any]]
    facts: Facts
    ttl_ns: int
    digest: str
    encoded: dict[bool, bytes] = field(default_factory=dict)


class Lists:
    """One per worker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, Kept[Listed]] = {
            method: Kept(clock, lambda listed: listed.ttl_ns) for method in WHOLE
        }
        #: Digests of what agents were given, or told of.
        self._known: dict[tuple[str, ...], str] = {}

    async def result(self, visit: Visit, backend: Backend, method: str, *, modern: bool) -> bytes:
        """The answer to the list's request, in one page. Raises UpstreamFailed."""
        listed = self._kept[method].fresh(visit)
        if listed is None:
            fetch = partial(_fetch, visit, backend, method)
            listed, _ = await self._kept[method].renewed(visit, fetch)
        self._knows(visit, method, listed)
        encoded = listed.encoded.get(modern)
        if encoded is None:
            result = {pages.MEMBERS[method]: listed.entries}
            made = bridge.result(result, method, listed.facts, to_modern=modern)
            encoded = listed.encoded[modern] = messages.encode(made)
        return encoded

    async def differs(self, visit: Visit, backend: Backend, method: str) -> bool:
        """The server says that it changed: whether it is another list than the one that the agent
        knows of; whom this told, knows. Raises UpstreamFailed.
        """
        fetch = partial(_fetch, visit, backend, method)
        since_ns = self._clock.monotonic_ns()
        listed, _ = await self._kept[method].renewed(visit, fetch, since_ns=since_ns)
        return self._knows(visit, method, listed) != listed.digest

    def forget(self, visit: Visit, method: str) -> None:
        """It is fetched anew when somebody asks for it."""
        self._kept[method].forget(visit)

    def clear(self) -> None:
        for kept in self._kept.values():
            kept.clear()

    def _knows(self, visit: Visit, method: str, listed: Listed) -> str | None:
        """From now on this; before, that."""
        who = (visit.caller.tenant, visit.caller.agent, visit.slug, method)
        before = self._known.get(who)
        if before is None and len(self._known) >= MAX_KNOWN:
            self._known.clear()  # who is told once too often asks once too often
        self._known[who] = listed.digest
        return before


async def _fetch(visit: Visit, backend: Backend, method: str) -> Listed:
    whole = await pages.fetch(visit, backend, method)
    entries = [one for one in whole.entries if method != PROMPTS or _named(one)]
    digest = hashlib.sha256(messages.encode(entries)).hexdigest()
    return Listed(entries, whole.facts, whole.ttl_ns, digest)


def _named(prompt: dict[str, Any]) -> bool:
    """Whether its name is one that agents may use."""
    name = prompt.get("name")
    return type(name) is str and NAME.fullmatch(name) is not None
