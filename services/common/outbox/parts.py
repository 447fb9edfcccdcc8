"""What may be purged from a record: its payload parts, committed to in the body.

The body holds `commit` = SHA-256(0x03 || salt || stored bytes); the salt lives only beside the
part. While the part exists it can be proven; afterwards nothing about it can be guessed, and the
chain still verifies.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final, Literal

import msgspec

SALT_BYTES: Final = 32
PartKind = Literal["arguments", "result", "input", "quarantine"]
PartMode = Literal["full", "redacted", "encrypted", "input"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """`stored` is what the data-protection pipeline let through, byte for byte."""

    kind: PartKind
    mode: PartMode
    salt: bytes
    stored: bytes

    @property
    def commit(self) -> str:
        """What the body carries, 64 hex digits."""
        return commitment(self.salt, self.stored).hex()


def make_part(kind: PartKind, stored: bytes, *, mode: PartMode) -> Part:
    """A part with a salt of its own."""
    return Part(kind=kind, mode=mode, salt=os.urandom(SALT_BYTES), stored=stored)


def commitment(salt: bytes, stored: bytes) -> bytes:
    return hashlib.sha256(b"\x03" + salt + stored).digest()


def proves(salt: bytes, stored: bytes, commit: str) -> bool:
    """Whether a part is the one that a body committed to."""
    return len(salt) == SALT_BYTES and hmac.compare_digest(
        commitment(salt, stored).hex().encode(), commit.encode()
    )
