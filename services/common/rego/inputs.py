"""Which input paths a policy may name: those of `behavry.input/1` that something fills.

What nothing fills yet is null, `none` or empty; a rule that reads it would silently never fire, so
it is refused when it is saved. A part leaves UNPRODUCED in the change that ships its producer.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path as FilePath
from typing import Any, Final

from services.common.rego.names import Path

_SCHEMA: Final = FilePath(__file__).parents[2] / "authorizer" / "policy" / "input.schema.json"

UNPRODUCED: Final[frozenset[Path]] = frozenset(
    {
        ("catalog",),
        ("findings",),
        ("context", "session_calls"),
        ("context", "session_flagged"),
        ("context", "session_tags"),
        ("context", "volume_ratio"),
        ("context", "z_max"),
        ("context", "baseline"),
        ("context", "counters"),
        ("agent", "budget"),
        ("requester",),
        ("workflow",),
        ("delegation",),
        ("risk",),
    }
)


def problem_with(path: Path) -> str | None:
    """Why this path may not be read, in words; None if it may."""
    for unproduced in UNPRODUCED:
        if path[: len(unproduced)] == unproduced:
            return "nothing fills this yet, so the rule would never fire"
        if unproduced[: len(path)] == path:
            return "names a whole part of the input: name the fields that are meant"
    return None if _known(path) else "there is no such field"


def is_text(path: Path) -> bool:
    """Whether the schema allows nothing but a string there."""
    node: dict[str, Any] = _schema()
    for step in path:
        properties = _resolved(node).get("properties", {})
        if step not in properties:
            return False
        node = properties[step]
    return node.get("type") == "string"


def _known(path: Path) -> bool:
    node = _schema()
    for step in path:
        node = _resolved(node)
        if node.get("type") == "array" or "properties" not in node:
            return node.get("type") == "object" and "properties" not in node
        if step not in node["properties"]:
            return False
        node = node["properties"][step]
    return True


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Through references, and through `null or ...` to the other side."""
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            node = _schema()["$defs"][node["$ref"].rpartition("/")[2]]
        else:
            node = next(side for side in node["anyOf"] if side.get("type") != "null")
    return node


@cache
def _schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_SCHEMA.read_text())
    defs = document["$defs"]
    return {**defs["Envelope"], "$defs": defs}
