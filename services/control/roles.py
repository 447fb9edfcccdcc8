"""The four levels of people and machines that use the API. A route names the least it needs."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

#: Whoever runs the installation: no level of a tenant's, given on the host alone.
SUPER_ADMIN: Final = "super_admin"


class Role(IntEnum):
    VIEWER = 1
    ANALYST = 2
    POLICY_AUTHOR = 3
    ADMIN = 4

    @property
    def key(self) -> str:
        """As REST and the database spell it: `policy_author`."""
        return self.name.lower()

    @classmethod
    def of(cls, key: str) -> Role:
        """The role that a stored row names. Raises KeyError."""
        return cls[key.upper()]
