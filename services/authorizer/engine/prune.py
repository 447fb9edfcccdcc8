"""Cuts an envelope down to the input paths that the tenant's policies read.

Pure. The full envelope was checked, digested and recorded before; the same decisions by
definition, since nothing that is left out can be read. Arguments that no policy reads never leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from services.authorizer import envelope as input_envelope
from services.authorizer.envelope import Envelope

#: What is kept of a part: None is all of it, else the fields by wire name.
_Plan = dict[str, "_Plan"] | None

_encode: Final = msgspec.json.Encoder().encode
_arguments: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Pruner:
    """Made once per tenant and revision from its `reads`."""

    def __init__(self, reads: Iterable[Sequence[str]]) -> None:
        self._plan = _plan(reads)
        self._steps = _steps(self._plan, Envelope) if self._plan is not None else ()

    def __call__(self, envelope: Envelope) -> bytes:
        if self._plan is None:
            return input_envelope.encode(envelope)
        return _encode(_kept(envelope, self._steps))


def prune(envelope: Envelope, reads: tuple[tuple[str, ...], ...]) -> bytes:
    """The bytes that the engine gets. `reads` is the tenant's, of the active bundle."""
    return _pruner(reads)(envelope)


def prune_raw(raw: bytes, reads: Iterable[Sequence[str]]) -> bytes:
    """The same cut for JSON that need not be an envelope: a canary may be malformed on purpose."""
    plan = _plan(reads)
    document = msgspec.json.decode(raw)
    return _encode(document if plan is None else _kept_raw(document, plan))


@lru_cache(maxsize=64)
def _pruner(reads: tuple[tuple[str, ...], ...]) -> Pruner:
    return Pruner(reads)


def _kept_raw(document: Any, plan: dict[str, _Plan]) -> Any:
    if not isinstance(document, dict):
        return document
    return {
        name: value if (below := plan[name]) is None else _kept_raw(value, below)
        for name, value in document.items()
        if name in plan
    }


def _plan(reads: Iterable[Sequence[str]]) -> _Plan:
    plan: dict[str, _Plan] = {}
    for path in sorted(tuple(path) for path in reads):
        if not path:
            return None
        at = plan
        for step in path[:-1]:
            below = at.setdefault(step, {})
            if below is None:  # a shorter path keeps this whole part
                break
            at = below
        else:
            at[path[-1]] = None
    return plan


#: wire name, attribute, what is kept below: None all of it, a set of argument names, or steps.
_Step = tuple[str, str, Any]


def _steps(plan: dict[str, _Plan], struct: type[msgspec.Struct]) -> tuple[_Step, ...]:
    """The plan against the fields there are; a path into a list or a scalar keeps it whole."""
    found: list[_Step] = []
    for field in msgspec.structs.fields(struct):
        if field.encode_name not in plan:
            continue
        below = plan[field.encode_name]
        if below is None:
            found.append((field.encode_name, field.name, None))
        elif field.type is msgspec.Raw:
            found.append((field.encode_name, field.name, frozenset(below)))
        else:
            inner = _struct_of(field.type)
            steps = _steps(below, inner) if inner is not None else None
            found.append((field.encode_name, field.name, steps))
    return tuple(found)


def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    """The struct of `X` and of `X | None`."""
    sides = getattr(annotation, "__args__", (annotation,))
    for side in sides:
        if isinstance(side, type) and issubclass(side, msgspec.Struct):
            return side
    return None


def _kept(part: Any, steps: tuple[_Step, ...]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for wire, attribute, below in steps:
        value = getattr(part, attribute)
        if below is None or value is None:
            kept[wire] = value
        elif isinstance(below, frozenset):
            kept[wire] = _kept_arguments(value, below)
        else:
            kept[wire] = _kept(value, below)
    return kept


def _kept_arguments(raw: msgspec.Raw, names: frozenset[str]) -> Any:
    if raw == input_envelope.NULL:
        return raw
    return {name: value for name, value in _arguments.decode(raw).items() if name in names}
