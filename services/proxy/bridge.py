"""From an agent's dialect to a tool server's and back (mcp.md 2.3): trees in, trees out. Pure.

Decides which members are made, stripped or renamed. What a server is told of an agent's
capabilities is decided in asking/grants.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from services.proxy import messages
from services.proxy.answers import RESOURCE_NOT_FOUND
from services.proxy.eras import (
    CAPABILITIES_META,
    CLIENT_META,
    KNOWN,
    LEVEL_META,
    SERVER_META,
    VERSION_META,
    Era,
)
from services.proxy.messages import INVALID_PARAMS

NAME: Final = "behavry"
VERSION: Final = "0.1.0"
OURS: Final = {"name": NAME, "version": VERSION}
TASKS: Final = "io.modelcontextprotocol/tasks"
MAX_TTL_MS: Final = 30_000
COMPLETE: Final = "complete"
INPUT_REQUIRED: Final = "input_required"
TASK: Final = "task"
_KINDS: Final = (COMPLETE, INPUT_REQUIRED, TASK)
#: Methods whose modern results carry cache hints.
CACHEABLE: Final = frozenset({
    "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read",
    "server/discover",
})  # fmt: skip
#: Of an agent's own words about itself.
_CLIENT: Final = ("name", "title", "version")
MAX_CLIENT: Final = 128
_OWN_META: Final = ("com.behavry/", "io.modelcontextprotocol/")
#: A token is the backend's to make; trace context is made anew at each hop.
_DROPPED_META: Final = frozenset({"progressToken", "traceparent", "tracestate", "baggage"})
_LEVELS: Final = frozenset({
    "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency",
})  # fmt: skip
#: Between the agent and us, unless it was decided that it goes up.
_NOT_PASSED: Final = frozenset({"_meta", "inputResponses", "requestState"})
_NOTHING: Final[Mapping[str, Any]] = {}
_MODERN_ONLY: Final = ("resultType", "ttlMs", "cacheScope")
_OFFERED: Final = ("tools", "resources", "prompts")
#: Relayed, with nothing more to say of them.
_BARE: Final = ("logging", "completions")
_TOLD: Final = ("listChanged", "subscribe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a tool server said of itself when it was probed."""

    era: Era
    version: str
    capabilities: dict[str, Any] = field(default_factory=dict)
    server_info: dict[str, Any] = field(default_factory=dict)
    instructions: str | None = None

    @property
    def modern(self) -> bool:
        return self.era == "modern"


class Untranslatable(Exception):
    """An upstream result that the agent cannot be given. `reason` is an ErrorReason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def outgoing(
    params: dict[str, Any],
    facts: Facts,
    *,
    decided: dict[str, Any] | None = None,
    meta: Mapping[str, Any] = _NOTHING,
    told: Mapping[str, Any] = _NOTHING,
    level: str = "",
) -> dict[str, Any]:
    """Params for the tool server. `decided` is what was decided and digested, and then nothing else
    goes there but the envelope of the version; of the agent's own `_meta` only `meta`, which was
    decided and digested too. `told`: the agent's capabilities, as far as they are granted. `level`:
    how loud log messages must be, where its session says so.
    """
    made = decided
    if made is None:
        made = {name: raw(value) for name, value in params.items() if name not in _NOT_PASSED}
    given = params.get("_meta")
    passed: dict[str, Any] = {key: raw(value) for key, value in meta.items()}
    if facts.modern:
        passed |= modern_meta(facts.version, told=told)
        if type(given) is dict:
            passed[CLIENT_META] = _client(given.get(CLIENT_META)) or OURS
            level = level or given.get(LEVEL_META, "")
        if is_level(level):
            passed[LEVEL_META] = level
    if passed:
        made["_meta"] = passed
    return made


def own_meta(params: Mapping[str, Any]) -> dict[str, Any]:
    """What of an agent's `_meta` is its own, and could go up: not the protocol's or ours."""
    given = params.get("_meta")
    if type(given) is not dict:
        return {}
    return {
        key: value
        for key, value in given.items()
        if key not in _DROPPED_META and not key.startswith(_OWN_META)
    }


def is_level(value: Any) -> bool:
    """Whether it says how loud a log message is."""
    return type(value) is str and value in _LEVELS


def modern_meta(version: str, *, told: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
    return {VERSION_META: version, CLIENT_META: OURS, CAPABILITIES_META: told}


def raw(value: Any) -> orjson.Fragment:
    """A value of the agent's in its canonical form: what goes up is what the digest is of."""
    return orjson.Fragment(messages.encode(value, sort=True))


def result(found: dict[str, Any], method: str, facts: Facts, *, to_modern: bool) -> dict[str, Any]:
    """A complete upstream result as the agent's dialect has it. Raises Untranslatable."""
    if kind(found, facts) != COMPLETE:
        raise Untranslatable("upstream_protocol")
    made = unmarked(found)
    if not to_modern:
        if facts.modern:
            for name in _MODERN_ONLY:
                made.pop(name, None)
        return made
    made["resultType"] = "complete"
    if method in CACHEABLE:
        ttl = made.get("ttlMs", 0) if facts.modern else 0
        made["ttlMs"] = min(ttl, MAX_TTL_MS) if type(ttl) is int and ttl >= 0 else 0
        made["cacheScope"] = "private"
    return made


def kind(found: dict[str, Any], facts: Facts) -> str:
    """Which of the results that there are this is. Raises Untranslatable."""
    given = found.get("resultType", COMPLETE) if facts.modern else COMPLETE
    if given not in _KINDS:
        raise Untranslatable("upstream_protocol")
    return str(given)


def unmarked(found: dict[str, Any]) -> dict[str, Any]:
    """A copy in which nothing reads as said by us."""
    made = dict(found)
    if type(made.get("_meta")) is dict:
        made["_meta"] = {
            key: value for key, value in made["_meta"].items() if not key.startswith(_OWN_META[0])
        }
    return made


def error_code(code: int, method: str, facts: Facts, *, to_modern: bool) -> int:
    """A resource that is not there has another number in each era."""
    if to_modern and not facts.modern and code == RESOURCE_NOT_FOUND:
        return INVALID_PARAMS
    if facts.modern and not to_modern and code == INVALID_PARAMS and method == "resources/read":
        return RESOURCE_NOT_FOUND
    return code


def initialized(facts: Facts, version: str) -> dict[str, Any]:
    """The answer to `initialize`, made here."""
    made: dict[str, Any] = {
        "protocolVersion": version,
        "capabilities": _capabilities(facts),
        "serverInfo": _server_info(facts),
    }
    if facts.instructions is not None:
        made["instructions"] = facts.instructions
    return made


def discovered(facts: Facts, enabled: Sequence[str] = ()) -> dict[str, Any]:
    """The answer to `server/discover`, made here. `enabled`: extensions that it is granted."""
    theirs = facts.capabilities.get("extensions")
    theirs = theirs if facts.modern and type(theirs) is dict else {}
    extensions = {name: theirs[name] for name in enabled if type(theirs.get(name)) is dict}
    made: dict[str, Any] = {
        "resultType": "complete",
        "supportedVersions": list(KNOWN),
        # What waits for a person may become a task, whatever the tool server can do.
        "capabilities": {**_capabilities(facts), "extensions": {TASKS: {}} | extensions},
        "ttlMs": MAX_TTL_MS,
        "cacheScope": "private",
        "_meta": {SERVER_META: _server_info(facts)},
    }
    if facts.instructions is not None:
        made["instructions"] = facts.instructions
    return made


def shows_urls(capabilities: Any) -> bool:
    """Whether an agent says that it can show its user a URL."""
    found = capabilities.get("elicitation") if type(capabilities) is dict else None
    return type(found) is dict and type(found.get("url")) is dict


def knows_tasks(capabilities: Any) -> bool:
    found = capabilities.get("extensions") if type(capabilities) is dict else None
    return type(found) is dict and type(found.get(TASKS)) is dict


def _capabilities(facts: Facts) -> dict[str, Any]:
    """What the server has and this version relays. An agent's list of tools may change by policy
    alone; of the rest the server tells, if it does.
    """
    made: dict[str, Any] = {}
    for name in _OFFERED:
        has = facts.capabilities.get(name)
        if type(has) is not dict:
            continue
        told = {member: True for member in _TOLD if has.get(member) is True}
        made[name] = {"listChanged": True} if name == "tools" else told
    return made | {name: {} for name in _BARE if type(facts.capabilities.get(name)) is dict}


def _server_info(facts: Facts) -> dict[str, Any]:
    named = type(facts.server_info.get("name")) is str
    return facts.server_info if named and "version" in facts.server_info else OURS


def _client(info: Any) -> dict[str, str]:
    """Who asks, as a server may be told: short names and no more, as nobody decides about them."""
    if type(info) is not dict:
        return {}
    told = {name: info[name] for name in _CLIENT if type(info.get(name)) is str}
    short = all(len(value) <= MAX_CLIENT for value in told.values())
    return told if short and {"name", "version"} <= told.keys() else {}
