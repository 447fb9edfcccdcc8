"""What an agent, its class and its roles may look like, and which status may follow which."""

from __future__ import annotations

from typing import Final, Literal

AgentType = Literal["autonomous", "assistant", "service", "worker"]
Status = Literal["pending", "active", "suspended", "revoked"]

NAME_MAX: Final = 80
CLASS: Final = r"^[a-z0-9_-]{1,40}$"
#: A role is named like the permission it usually is: `time:read`.
ROLE: Final = r"^[a-z0-9_*][a-z0-9_:.*-]{0,39}$"
PERMISSION: Final = r"^(\*|[a-z0-9][a-z0-9_-]{0,39}):(\*|read|write|delete|execute|network|admin)$"
TAG: Final = r"^[a-z0-9][a-z0-9_.:-]{0,39}$"
MAX_ROLES: Final = 50
MAX_PERMISSIONS: Final = 200
MAX_TAGS: Final = 20
DEFAULT_CLASS: Final = "default"

#: verb -> (statuses from which it may be done, the status after). Revoked is final.
TRANSITIONS: Final[dict[str, tuple[frozenset[str], Status]]] = {
    "suspend": (frozenset({"pending", "active", "suspended"}), "suspended"),
    "resume": (frozenset({"active", "suspended"}), "active"),
    "revoke": (frozenset({"pending", "active", "suspended", "revoked"}), "revoked"),
}


class NotAllowedNow(Exception):
    """The verb does not fit the agent's status."""


def after(verb: str, status: str) -> Status:
    """The status after `verb`. Raises NotAllowedNow."""
    from_statuses, then = TRANSITIONS[verb]
    if status not in from_statuses:
        raise NotAllowedNow
    return then
