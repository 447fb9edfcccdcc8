"""Which capabilities of an agent a tool server is told of (mcp.md 3.4). Pure.

Decides by what the agent declared and the server is granted; what is not told cannot be asked for,
and `may` says of a request whether it could be expected at all. Capabilities that nobody here knows
are not told to anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.proxy.eras import ELICITING
from services.proxy.snapshot import Grants

ELICIT: Final = "elicitation/create"
SAMPLE: Final = "sampling/createMessage"
ROOTS: Final = "roots/list"
_SAMPLING: Final = ("context", "tools")


def granted(declared: Any, grants: Grants) -> dict[str, Any]:
    """What remains of an agent's capabilities for one tool server."""
    if not declared or type(declared) is not dict:
        return {}
    made: dict[str, Any] = {}
    elicitation = declared.get("elicitation")
    if type(elicitation) is dict:
        told = _elicitation(elicitation, grants)
        if told is not None:
            made["elicitation"] = told
    sampling = declared.get("sampling")
    if grants.sampling and type(sampling) is dict:
        made["sampling"] = {name: {} for name in _SAMPLING if type(sampling.get(name)) is dict}
    roots = declared.get("roots")
    if grants.roots and type(roots) is dict:
        made["roots"] = {"listChanged": True} if roots.get("listChanged") is True else {}
    extensions = declared.get("extensions")
    if grants.extensions and type(extensions) is dict:
        told = {name: extensions[name] for name in grants.extensions if name in extensions}
        told = {name: settings for name, settings in told.items() if type(settings) is dict}
        if told:
            made["extensions"] = told
    return made


def kept(declared: Any, version: str) -> dict[str, Any]:
    """What a legacy session remembers of what its agent declared: it is carried in a header, so
    no settings, and nothing that the version does not know.
    """
    everything = Grants(elicitation_form=True, elicitation_hosts=("*",), sampling=True, roots=True)
    made = granted(declared, everything)
    elicitation = made.get("elicitation")
    if elicitation and version not in ELICITING:
        elicitation.pop("url", None)
        if not elicitation:
            del made["elicitation"]
    return made


def may(method: str, params: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a server that was told of these capabilities may ask for this."""
    match method:
        case "elicitation/create":
            elicitation = told.get("elicitation")
            if elicitation is None:
                return False
            mode = params.get("mode", "form")
            if mode == "form" and not elicitation:
                return True
            return type(mode) is str and mode in elicitation
        case "sampling/createMessage":
            return _may_sample(params, told.get("sampling"))
        case "roots/list":
            return "roots" in told
        case _:
            return False


def _elicitation(declared: dict[str, Any], grants: Grants) -> dict[str, Any] | None:
    """An empty object means forms, as it did before there were modes."""
    if not declared:
        return {} if grants.elicitation_form else None
    made: dict[str, Any] = {}
    if grants.elicitation_form and type(declared.get("form")) is dict:
        made["form"] = {}
    if grants.elicitation_hosts and type(declared.get("url")) is dict:
        made["url"] = {}
    return made or None


def _may_sample(params: Mapping[str, Any], told: dict[str, Any] | None) -> bool:
    """What other servers said is context that an agent gives away only if it says so."""
    wants_tools = "tools" in params or "toolChoice" in params
    wants_context = params.get("includeContext", "none") != "none"
    if told is None or (wants_tools and "tools" not in told):
        return False
    return "context" in told or not wants_context
