"""When another way to sign in comes into force: an admin proposed it, a super-admin who is somebody
else approved it, and a sign-in by it worked, lately. Each of the three is of the same settings,
byte for byte.

Who may do which, and how it is tried, is the API's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

_FORM: Final = b"behavry/auth-settings/1\0"
#: A sign-in that worked says little of tomorrow: keys, clients and the provider itself change.
TEST_LIFE: Final = timedelta(hours=1)


def digest(document: Mapping[str, Any]) -> bytes:
    """What an approval and a test are of."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(_FORM + text.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A change that waits, and what has been said to it."""

    id: str
    #: `provider`, and what that one needs.
    document: Mapping[str, Any]
    settings_sha256: bytes
    proposed_by: str
    proposed_at: datetime
    approved_by: str | None
    approved_at: datetime | None
    approved_sha256: bytes | None
    sole_operator: bool
    tested_by: str | None
    tested_at: datetime | None
    tested_sha256: bytes | None
    test_failure: str | None

    @property
    def provider(self) -> str:
        return str(self.document["provider"])

    def waits_for(self, now: datetime) -> tuple[str, ...]:
        """What is missing; empty: it may come into force."""
        own = self.settings_sha256
        approved = self.approved_by is not None and self.approved_sha256 == own
        lately = self.tested_at is not None and now - self.tested_at < TEST_LIFE
        tested = lately and self.tested_by is not None and self.tested_sha256 == own
        another = self.approved_by != self.proposed_by or self.sole_operator
        missing = [] if approved and another else ["approval"]
        return tuple(missing if tested else [*missing, "test"])
