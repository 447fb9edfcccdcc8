"""Page tokens: opaque, bound to one tenant's one list, so that none is carried elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from pathlib import Path
from uuid import UUID

from services.common.errors import BehavryError


class PageTokens:
    """A token is the last id of a page and an HMAC over it, the tenant and the filter."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> PageTokens:
        """From the plane's first digest key; without that file tokens end with the process."""
        try:
            first = path.read_bytes().split()[0]
        except (OSError, IndexError):
            first = secrets.token_bytes(32)
        return cls(hmac.digest(first, b"behavry/audit/page-token/1", "sha256"))

    def make(self, tenant: str, filter: str, last_id: str) -> str:
        place = UUID(last_id).bytes
        return base64.urlsafe_b64encode(place + self._seal(tenant, filter, place)).decode()

    def read(self, tenant: str, filter: str, token: str) -> str | None:
        """The id to go on before; None for a first page. Raises INVALID_PAGE_TOKEN."""
        if not token:
            return None
        try:
            raw = base64.urlsafe_b64decode(token.encode())
        except (binascii.Error, ValueError):
            raw = b""
        place, seal = raw[:16], raw[16:]
        if len(place) != 16 or not hmac.compare_digest(self._seal(tenant, filter, place), seal):
            raise BehavryError("INVALID_PAGE_TOKEN", "the page token is not one of this list")
        return str(UUID(bytes=place))

    def _seal(self, tenant: str, filter: str, place: bytes) -> bytes:
        text = hashlib.sha256(f"{tenant}\0{filter}".encode()).digest()
        return hmac.digest(self._key, text + place, "sha256")[:16]
