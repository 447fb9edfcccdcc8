"""One whole, innocent `behavry.input/1`: what policy test cases change and canaries are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _text() -> str:
    return files(__package__).joinpath("sample_input.json").read_text("utf-8")


def sample_input(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The sample with `changes` merged in (RFC 7396, except that null stays a value: a closed
    envelope has no keys to remove).
    """
    document: dict[str, Any] = json.loads(_text())
    return _merged(document, changes or {})


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and key != "arguments":
            base[key] = _merged(old, value)
        else:
            base[key] = value
    return base
