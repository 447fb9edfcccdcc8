"""Values that agents carry for us (sessions, cursors, what waits), encrypted and bound to them; and
what proxies tell each other, by way of somebody who must learn nothing and can forge nothing.

Decides what opens (mcp.md 9): `b1.<day>.<base64url>`, AES-256-GCM under a key of its own per
purpose and day, with tenant, agent, server and policy set as associated data. What is inside is the
sealer's business.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common.clock import Clock

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
MAX_SEALED: Final = 8 * 1024
#: A state may hold a tool server's own, and answers to it.
MAX_STATE: Final = 64 * 1024
MAX_AGE_DAYS: Final = 2
#: Of what has no time of its own in it.
_LIVES_S: Final[dict[str, int]] = {"cursor": 3600, "event": 3600}
_STAMP: Final = 5
_NS: Final = 1_000_000_000
_NS_PER_DAY: Final = 86_400 * 1_000_000_000
_CACHED: Final = 256

Purpose = Literal["session", "cursor", "state", "task", "request", "event", "letter", "kept"]
#: What waits for a person may wait for 7 days; the content says how long exactly.
_DAYS: Final[dict[Purpose, int]] = {"state": 8, "task": 8}
#: Between proxies: an agent's whole request may be in there, a tool's whole result.
_SIZES: Final[dict[Purpose, int]] = {
    "state": MAX_STATE,
    "letter": 16 * 1024 * 1024,
    "kept": 2 * 1024 * 1024,
}


class Unsealed(Exception):
    """Not a value of ours for this holder, or too old. Says no more than that."""


class SealKeysError(ValueError):
    """The key file cannot be used. Names the file, never a key."""


class Seals:
    """The first key seals, all open."""

    def __init__(self, keys: Sequence[bytes], clock: Clock) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise SealKeysError("seal keys are 32 bytes each, and there is at least one")
        self._keys = list(keys)
        self._clock = clock
        self._derived: dict[tuple[int, Purpose, int], AESGCM] = {}
        self._naming: bytes | None = None

    @classmethod
    def load(cls, path: Path, clock: Clock) -> Self:
        """From a file with one key of 64 hex digits per line; empty lines do not count."""
        try:
            lines = [line.strip() for line in path.read_text("ascii").splitlines()]
            return cls([bytes.fromhex(line) for line in lines if line], clock)
        except OSError as missing:
            raise SealKeysError(f"{path}: cannot be read") from missing
        except ValueError:
            raise SealKeysError(f"{path}: needs lines of 64 hexadecimal digits") from None

    def seal(self, purpose: Purpose, holder: Sequence[str], content: bytes) -> str:
        if purpose in _LIVES_S:
            content = self._now_s().to_bytes(_STAMP, "big") + content
        day = self._today()
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._key(0, purpose, day).encrypt(nonce, content, _aad(purpose, holder))
        return f"b1.{day}.{_unpadded(sealed)}"

    def open(self, purpose: Purpose, holder: Sequence[str], value: str) -> bytes:
        """Raises Unsealed."""
        opened = self._open(purpose, holder, value)
        life_s = _LIVES_S.get(purpose)
        if life_s is None:
            return opened
        if self._now_s() - int.from_bytes(opened[:_STAMP], "big") > life_s:
            raise Unsealed
        return opened[_STAMP:]

    def _open(self, purpose: Purpose, holder: Sequence[str], value: str) -> bytes:
        if len(value) > _SIZES.get(purpose, MAX_SEALED):
            raise Unsealed
        day, sealed = self._split(value, _DAYS.get(purpose, MAX_AGE_DAYS))
        for index in range(len(self._keys)):
            try:
                return self._key(index, purpose, day).decrypt(
                    sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _aad(purpose, holder)
                )
            except InvalidTag:
                continue
        raise Unsealed

    def name(self, *parts: str) -> str:
        """What something is kept under by the proxies of a plane; it tells nobody else anything."""
        if self._naming is None:
            self._naming = HKDF(
                algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"behavry/seal/1/name"
            ).derive(self._keys[0])
        return hmac.digest(self._naming, _aad("kept", parts), "sha256").hex()

    def _split(self, value: str, max_age_days: int) -> tuple[int, bytes]:
        version, _, rest = value.partition(".")
        text, _, encoded = rest.partition(".")
        if version != "b1" or not text.isascii() or not text.isdigit():
            raise Unsealed
        day = int(text[:8])
        if str(day) != text or not self._today() - max_age_days <= day <= self._today() + 1:
            raise Unsealed
        try:
            sealed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise Unsealed from None
        if len(sealed) <= NONCE_BYTES or _unpadded(sealed) != encoded:  # one spelling alone
            raise Unsealed
        return day, sealed

    def _now_s(self) -> int:
        return self._clock.now_ns() // _NS

    def _today(self) -> int:
        return self._clock.now_ns() // _NS_PER_DAY

    def _key(self, index: int, purpose: Purpose, day: int) -> AESGCM:
        found = self._derived.get((index, purpose, day))
        if found is None:
            if len(self._derived) >= _CACHED:
                self._derived.clear()
            info = f"behavry/seal/1/{purpose}/{day}".encode()
            secret = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(
                self._keys[index]
            )
            found = self._derived[index, purpose, day] = AESGCM(secret)
        return found


def _unpadded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _aad(purpose: Purpose, holder: Sequence[str]) -> bytes:
    """Lengths in front, so that no two lists of parts run together into the same bytes."""
    parts = [part.encode() for part in (purpose, *holder)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
