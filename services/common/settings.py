"""Reads settings from the environment: the only place that does.

A service declares a frozen dataclass whose fields are made by `setting(...)`; `load` fills it or
raises SettingsError, which names the setting, the value and what is allowed (exit 2).
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

#: What an earlier field of the same dataclass resolved to, by field name.
Resolved = Mapping[str, Any]

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class SettingsError(Exception):
    """A setting that cannot be used. The message is complete; the process ends with status 2."""


def setting(
    env: str,
    *,
    default: Any = dataclasses.MISSING,
    derived: Callable[[Resolved], Any] | None = None,
    minimum: int | None = None,
    maximum: int | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field read from `env`; `derived` computes a default from earlier fields."""
    metadata = {
        "env": env,
        "derived": derived,
        "minimum": minimum,
        "maximum": maximum,
        "secret": secret,
    }
    if derived is not None or default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def under(field: str, *parts: str) -> Callable[[Resolved], Path]:
    """A path below an earlier path field."""
    return lambda resolved: Path(resolved[field]).joinpath(*parts)


def environment() -> dict[str, str]:
    """The process's environment, copied once."""
    return dict(os.environ)


def load(cls: type[T], env: Mapping[str, str] | None = None) -> T:
    """An instance of the settings dataclass `cls`. Raises SettingsError."""
    source = environment() if env is None else env
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass by contract
        values[field.name] = _read(field, hints[field.name], source, values)
    settings = cls(**values)
    check = getattr(settings, "check", None)
    if check is not None:  # two settings that do not go together
        check()
    return settings


def load_or_exit(cls: type[T]) -> T:
    """`load`, for `__main__`: a bad setting is printed to stderr and ends with status 2."""
    try:
        return load(cls)
    except SettingsError as bad:
        sys.stderr.write(f"{bad}\n")
        sys.exit(2)


def effective(settings: object) -> dict[str, str]:
    """The settings as they are logged at start, secrets masked."""
    return {
        field.metadata["env"]: "***"
        if field.metadata["secret"]
        else str(getattr(settings, field.name))
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]  # dataclass by contract
        if "env" in field.metadata
    }


def _read(
    field: dataclasses.Field[Any], hint: Any, source: Mapping[str, str], resolved: Resolved
) -> Any:
    metadata = field.metadata
    raw = source.get(metadata["env"], "")
    if raw == "":
        if metadata["derived"] is not None:
            return metadata["derived"](resolved)
        if field.default is not dataclasses.MISSING:
            return field.default
        raise SettingsError(f"{metadata['env']} is not set. Set it to {_allowed(hint, metadata)}.")
    shown = "***" if metadata["secret"] else repr(raw)
    try:
        value = _parse(raw, hint)
    except ValueError as bad:
        message = f"{metadata['env']}={shown} cannot be used. Allowed: {_allowed(hint, metadata)}."
        raise SettingsError(message) from bad
    low, high = metadata["minimum"], metadata["maximum"]
    if (low is not None and value < low) or (high is not None and value > high):
        message = f"{metadata['env']}={shown} cannot be used. Allowed: {_allowed(hint, metadata)}."
        raise SettingsError(message)
    return value


def _parse(raw: str, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        return _parse(raw, next(arm for arm in get_args(hint) if arm is not type(None)))
    if origin is Literal:
        wanted = raw.replace("-", "_") if raw.replace("-", "_") in get_args(hint) else raw
        if wanted not in get_args(hint):
            raise ValueError(wanted)
        return wanted
    if origin is tuple:
        return tuple(item.strip() for item in raw.split(",") if item.strip())
    if hint is bool:
        if raw.lower() in _TRUE | _FALSE:
            return raw.lower() in _TRUE
        raise ValueError(raw)
    if hint is Path:
        return Path(raw)
    if hint is float and not math.isfinite(float(raw)):  # compares as neither too low nor too high
        raise ValueError(raw)
    return hint(raw) if hint in {int, float} else raw


def _allowed(hint: Any, metadata: Mapping[str, Any]) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(str(value) for value in get_args(hint))
    if hint is bool:
        return "true, false"
    if hint is int or metadata["minimum"] is not None:
        low, high = metadata["minimum"], metadata["maximum"]
        bounds = [
            f"from {low}" if low is not None else "",
            f"to {high}" if high is not None else "",
        ]
        return " ".join(["a whole number", *filter(None, bounds)])
    return "a path" if hint is Path else "a value"
