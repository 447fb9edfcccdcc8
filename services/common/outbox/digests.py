"""Digests that say "same bytes" to whoever holds the key and nothing to anybody else.

`h1:<8 hex key id>:<64 hex>` is an HMAC-SHA256 under a key of its own per tenant and purpose. Plain
hashes would not do: short arguments can be guessed. The first key of the file makes digests, all of
them check, so a key is rotated by putting a new one on top.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common.ids import TenantId

KEY_BYTES: Final = 32
_CACHED_KEYS: Final = 4096


class DigestKeysError(ValueError):
    """The key file cannot be used. The message names the file, never a key."""


@dataclass(frozen=True, slots=True)
class _PlaneKey:
    id: str
    secret: bytes


class Digester:
    """Makes and checks digests with the plane's keys."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise DigestKeysError("digest keys are 32 bytes each, and there is at least one")
        self._keys = [_PlaneKey(_derive(key, b"", b"behavry/digest-key-id")[:4].hex(), key)
                      for key in keys]  # fmt: skip
        self._derived: dict[tuple[str, TenantId, str], hmac.HMAC] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a file with one key of 64 hex digits per line; empty lines do not count."""
        lines = [line.strip() for line in path.read_text("ascii").splitlines()]
        try:
            keys = [bytes.fromhex(line) for line in lines if line]
        except ValueError:
            raise DigestKeysError(f"{path}: a line is not hexadecimal") from None
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise DigestKeysError(f"{path}: needs one or more lines of 64 hexadecimal digits")
        return cls(keys)

    def make(self, tenant: TenantId, purpose: str, content: bytes) -> str:
        """`purpose` keeps digests of different things apart: `arguments`, `result`, `changes`."""
        key = self._keys[0]
        return f"h1:{key.id}:{self._mac(key, tenant, purpose, content)}"

    def matches(self, tenant: TenantId, purpose: str, content: bytes, digest: str) -> bool:
        """Whether `digest` was made of `content` with any of the keys."""
        _, _, rest = digest.partition(":")
        key_id, _, mac = rest.partition(":")
        return any(
            hmac.compare_digest(self._mac(key, tenant, purpose, content).encode(), mac.encode())
            for key in self._keys
            if digest.startswith("h1:") and key.id == key_id
        )

    def _mac(self, key: _PlaneKey, tenant: TenantId, purpose: str, content: bytes) -> str:
        index = (key.id, tenant, purpose)
        keyed = self._derived.get(index)
        if keyed is None:
            if len(self._derived) >= _CACHED_KEYS:
                self._derived.clear()
            info = b"behavry/digest/1/" + purpose.encode()
            keyed = hmac.new(_derive(key.secret, UUID(tenant).bytes, info), digestmod="sha256")
            self._derived[index] = keyed
        # A copy of the keyed state hashes a short text at once; the one-shot form sets a key up
        # anew and gives other threads their turn in the middle of a call, every time.
        mac = keyed.copy()
        mac.update(content)
        return mac.hexdigest()


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt or None, info=info).derive(secret)
