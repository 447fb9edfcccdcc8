"""What a tool server says while it works on a request, as far as the agent may hear it (mcp.md 7).

Decides by the method which notifications pass, and in which form. That the agent's own view of a
list changed is views.py's to find out; what a server asks of the agent is asking/'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.common.telemetry.counters import Counter
from services.proxy import answers
from services.proxy.backends.upstream import PAUSED, Heard
from services.proxy.eras import LEVEL_META
from services.proxy.governed import Call

PROGRESS: Final = "notifications/progress"
MESSAGE: Final = "notifications/message"
CANCELLED: Final = "notifications/cancelled"
UPDATED: Final = "notifications/resources/updated"
ELICITED: Final = "notifications/elicitation/complete"
#: What changed, by the member of a listening request that asks to be told of it.
LISTS: Final = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}
LEVELS: Final = (
    "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency",
)  # fmt: skip
_OURS: Final = ("com.behavry/", "io.modelcontextprotocol/")

#: What a server asks for while it works on a call, and lists that it says have changed: told, never
#: waited for.
Asked = Callable[[Call, Heard], None]
Changed = Callable[[Call, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relays:
    """One per worker."""

    asked: Asked
    changed: Changed
    #: The server ended the call's stream for so many milliseconds.
    paused: Callable[[Call, int], None]
    dropped: Counter

    def of(self, call: Call) -> Relay:
        return Relay(self, call)


class Relay:
    """Of one call. `hear` is what its backend is given."""

    __slots__ = ("_call", "_desk")

    def __init__(self, desk: Relays, call: Call) -> None:
        self._desk = desk
        self._call = call

    def hear(self, heard: Heard) -> None:
        method = heard.method
        if heard.id is not None or method == CANCELLED:
            self._desk.asked(self._call, heard)
        elif method in LISTS:
            self._desk.changed(self._call, method)
        elif method == PAUSED:
            self._desk.paused(self._call, heard.params["retryMs"])
        elif self._passes(heard):
            self._call.stream.push(notification(method, heard.params))
        else:
            self._desk.dropped.value += 1

    def _passes(self, heard: Heard) -> bool:
        """A modern agent hears of its request alone, and of log messages as loud as it said."""
        modern = self._call.route.modern
        if heard.method == PROGRESS:
            return True  # the backend knows no token but this request's
        if heard.method == MESSAGE:
            return not modern or loud(heard.params) >= _wanted(self._call.message.params)
        return heard.method == ELICITED and not modern


def notification(method: str, params: Mapping[str, Any]) -> bytes:
    """As an agent gets it: without what was meant for us."""
    meta = params.get("_meta")
    if type(meta) is not dict:
        return answers.notification(method, dict(params))
    kept = {key: value for key, value in meta.items() if not key.startswith(_OURS)}
    made = {key: value for key, value in params.items() if key != "_meta"}
    return answers.notification(method, {**made, "_meta": kept} if kept else made)


def loud(params: Mapping[str, Any]) -> int:
    """How loud a log message is; an unknown level is the most quiet one."""
    level = params.get("level")
    return LEVELS.index(level) if level in LEVELS else 0


def _wanted(params: Mapping[str, Any]) -> int:
    """The level from which on a modern request wants to hear; beyond the last: none at all."""
    meta = params.get("_meta")
    level = meta.get(LEVEL_META) if type(meta) is dict else None
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)
