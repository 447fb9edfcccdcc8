"""How the address of a shared store may be written in a setting."""

from __future__ import annotations

import re
from typing import Final

from services.common.settings import SettingsError

#: No password, which would be shown with the effective settings.
_STORE: Final = re.compile(
    r"rediss?://([A-Za-z0-9._\-]+@)?[A-Za-z0-9._\-\[\]:]+(/[0-9]*)?|unix:///[^?#\s@]+(\?db=[0-9]+)?"
)


def check_address(url: str) -> None:
    """Of BEHAVRY_COUNTER_STORE_URL; empty is none. Raises SettingsError."""
    if url and not _STORE.fullmatch(url):
        # The value is not repeated: it may hold a password.
        raise SettingsError(
            "BEHAVRY_COUNTER_STORE_URL cannot be used. Allowed: redis://host:port/db, "
            "rediss://host:port/db, unix:///path; the password goes to "
            "BEHAVRY_COUNTER_STORE_PASSWORD_FILE."
        )
