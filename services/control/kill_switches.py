"""Which stops there are, and how many people it takes to end one (core.md 10).

Throwing one takes one admin; releasing takes two different ones, each freshly signed in. Where the
tenant has exactly one active admin, that one suffices, and the record says so.
"""

from __future__ import annotations

from typing import Final, Literal

#: The fleet's is not a tenant's to throw: a super-admin's, or the plane's own machine's.
Scope = Literal["agent", "class", "server", "tenant", "fleet"]
#: Scopes without a subject.
WHOLE: Final = frozenset({"tenant", "fleet"})


def releases_needed(active_admins: int) -> int:
    return 1 if active_admins == 1 else 2
