"""What an agent or a session may be held to for a while (core.md 10), and which of two such
holdings is the looser one. Tightening takes an analyst, loosening an admin.

Values alone; the authorizer applies them, services/authorizer/restriction.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

Profile = Literal["read_only", "investigation", "wind_down", "custom"]

LONGEST: Final = timedelta(days=30)
MAX_ITEMS: Final = 100
MAX_ARG_BYTES: Final = 1 << 20
#: A glob on `server/tool`.
TOOL: Final = r"^[^/\x00-\x1f\x7f]+/[^\x00-\x1f\x7f]+$"
#: `investigation` halves the agent's rate by itself.
_INVESTIGATION_MILLI: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """None in a list's place: everything; an empty list: nothing."""

    profile: Profile
    until: datetime
    tools: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    max_arg_bytes: int | None = None
    rate_factor_milli: int = 1000

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Restriction:
        return cls(
            profile=row["profile"],
            until=row["until"],
            tools=None if row["tools"] is None else tuple(row["tools"]),
            resources=None if row["resources"] is None else tuple(row["resources"]),
            max_arg_bytes=row["max_arg_bytes"],
            rate_factor_milli=row["rate_factor_milli"],
        )

    def holds(self, now: datetime) -> bool:
        """A wind-down goes on after its date, as a suspension."""
        return self.profile == "wind_down" or now < self.until

    def restricts(self) -> bool:
        """Whether it takes anything away at all."""
        lists = (self.tools, self.resources, self.max_arg_bytes)
        return self.profile != "custom" or self.rate_factor_milli < 1000 or lists != (None,) * 3

    def desired(self) -> dict[str, Any]:
        """As the bundle and records spell it."""
        return {
            "profile": self.profile,
            "until_s": int(self.until.timestamp()),
            "tools": None if self.tools is None else list(self.tools),
            "resources": None if self.resources is None else list(self.resources),
            "max_arg_bytes": self.max_arg_bytes,
            "rate_factor_milli": self.rate_factor_milli,
        }


def loosens(old: Restriction, new: Restriction) -> bool:
    """Whether `new` in the place of `old` would allow anything that `old` does not."""
    return (
        (new.profile == "custom" and old.profile != "custom")
        or _ends_softer(old, new)
        or _milli(new) > _milli(old)
        or _wider(old.tools, new.tools)
        or _reaches_further(old.resources, new.resources)
        or _larger(old.max_arg_bytes, new.max_arg_bytes)
    )


def _ends_softer(old: Restriction, new: Restriction) -> bool:
    """A wind-down ends in suspension, so its earlier end is the stricter one."""
    if old.profile == "wind_down":
        return new.profile != "wind_down" or new.until > old.until
    return new.profile != "wind_down" and new.until < old.until


def _milli(one: Restriction) -> int:
    own = _INVESTIGATION_MILLI if one.profile == "investigation" else 1000
    return own * one.rate_factor_milli // 1000


def _wider(old: Sequence[str] | None, new: Sequence[str] | None) -> bool:
    """Globs are compared as texts: what we cannot see to be narrower counts as wider."""
    return old is not None and (new is None or not set(new) <= set(old))


def _reaches_further(old: Sequence[str] | None, new: Sequence[str] | None) -> bool:
    if old is None:
        return False
    return new is None or not all(any(_under(path, top) for top in old) for path in new)


def _under(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _larger(old: int | None, new: int | None) -> bool:
    return old is not None and (new is None or new > old)
