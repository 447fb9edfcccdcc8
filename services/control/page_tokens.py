"""Page tokens: opaque, signed, and worth nothing for another tenant, list or filter."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common.errors import BehavryError
from services.common.ids import TenantId

DEFAULT_SIZE: Final = 50
MAX_SIZE: Final = 500
_MAC_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class PageTokens:
    key: bytes = field(repr=False)

    @classmethod
    def from_file(cls, path: Path) -> PageTokens:
        """A file with one hexadecimal key of 32 bytes."""
        key = bytes.fromhex(path.read_text().split()[0])
        if len(key) < 32:
            raise ValueError(f"{path}: a page key has 32 bytes")
        return cls(key)

    def make(self, tenant: TenantId, listing: str, after: str) -> str:
        """A token that continues `listing` (its name and filter) behind `after`."""
        payload = json.dumps(after).encode()
        return _encode(self._mac(tenant, listing, payload) + payload)

    def read(self, tenant: TenantId, listing: str, token: str) -> str:
        """What `make` was given. Raises INVALID_PAGE_TOKEN."""
        raw = _decode(token)
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(tenant, listing, payload)):
            raise _invalid()
        return str(json.loads(payload))

    def _mac(self, tenant: TenantId, listing: str, payload: bytes) -> bytes:
        bound = json.dumps(["behavry/page/1", tenant, listing]).encode()
        return hmac.digest(self.key, bound + b"\0" + payload, "sha256")[:_MAC_BYTES]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(token: str) -> bytes:
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _invalid() from None


def _invalid() -> BehavryError:
    return BehavryError("INVALID_PAGE_TOKEN", "this page token does not belong to this list")
