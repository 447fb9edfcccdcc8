"""Restricted mode, step 8: what an agent or a session is held to for a while (core.md 10). Pure.

Everything that holds must be met; the first that is not refuses the call, openly. What cannot be
placed (a call that names no target, a target cut short) lies outside any list of resources. Tools
that a restriction can never allow stay listed and are denied when called: a restriction passes, and
its reason is worth more to an agent than a tool that vanished.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from services.authorizer.asks import TOOL_METHOD, Ask
from services.authorizer.plane_state import Restriction, Server

#: Profiles under which nothing but reading is allowed.
_READING = frozenset({"read_only", "investigation", "wind_down"})
#: What `investigation` by itself leaves of a rate, in thousandths.
_INVESTIGATION_MILLI = 500


def holds(restriction: Restriction | None, now_s: int) -> bool:
    return restriction is not None and now_s < restriction.until_s


def winds_down(restriction: Restriction, now_s: int) -> bool:
    """The suspension that it leads to is still to come."""
    return restriction.profile == "wind_down" and now_s < restriction.until_s


def wound_down(restriction: Restriction | None, now_s: int) -> bool:
    """Past the date that `wind_down` led to: from then on suspended."""
    return (
        restriction is not None
        and restriction.profile == "wind_down"
        and now_s >= restriction.until_s
    )


def rate_milli(restriction: Restriction) -> int:
    """Thousandths of the rate that are left."""
    if restriction.profile == "investigation":
        return max(1, restriction.rate_factor_milli * _INVESTIGATION_MILLI // 1000)
    return restriction.rate_factor_milli


def refusal(restriction: Restriction, ask: Ask, server: Server, action: str) -> str:
    """Why the call is refused, in words for a person; empty where the restriction allows it."""
    if restriction.profile in _READING and action != "read":
        return "restricted: only reading is allowed"
    if restriction.tools is not None and not _listed(ask, restriction.tools):
        return "restricted: the tool is not among the allowed ones"
    if restriction.resources is not None and not _within(ask, server, restriction.resources):
        return "restricted: the target is outside the allowed ones"
    limit = restriction.max_arg_bytes
    if limit is not None and ask.features.arg_bytes > limit:
        return "restricted: the arguments are too large"
    return ""


def _listed(ask: Ask, globs: tuple[str, ...]) -> bool:
    """Server and tool are matched apart: no `*` reaches over the slash between them."""
    asked = ask.request
    name = asked.tool if asked.method == TOOL_METHOD else asked.method
    pairs = (glob.partition("/") for glob in globs)
    return any(
        fnmatchcase(asked.server, left) and fnmatchcase(name, right) for left, _, right in pairs
    )


def _within(ask: Ask, server: Server, prefixes: tuple[str, ...]) -> bool:
    """Every target that the call names lies under one of the prefixes, and it names one."""
    features, asked = ask.features, ask.request
    if features.overflow or any(path.ambiguous for path in features.paths):
        return False
    if features.recipient_count > 1:  # only the first of them is named
        return False
    targets = {path.value for path in features.paths}
    targets.update(f"{url.scheme}://{url.host}:{url.port}" for url in features.urls)
    targets.update(features.tables, features.commands)
    if asked.resource_kind != "none":
        targets.add(asked.resource)
    if server.case_fold:
        prefixes = tuple(prefix.casefold() for prefix in prefixes)
        targets = {target.casefold() for target in targets}
    return bool(targets) and all(
        any(under(target, prefix) for prefix in prefixes) for target in targets
    )


def under(target: str, prefix: str) -> bool:
    """`/srv/data` holds itself and `/srv/data/a`, never `/srv/database`; `/` all that begins so."""
    root = prefix.rstrip("/")
    if not prefix:
        return False
    return (target == root and bool(root)) or target.startswith(f"{root}/")
