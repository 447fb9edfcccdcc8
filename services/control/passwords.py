"""Passwords: argon2id, and a check that costs the same whether or not the user exists.

Decides parameters and how many checks run side by side (each takes 64 MiB); limits per account and
address are limits.py's.
"""

from __future__ import annotations

import asyncio
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from argon2.profiles import RFC_9106_LOW_MEMORY

MIN_CHARACTERS: Final = 12
_AT_ONCE: Final = 2


class Passwords:
    """Hashes and checks in threads: one takes about 50 ms of a core."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        if len(password) < MIN_CHARACTERS:
            raise ValueError(f"a password has at least {MIN_CHARACTERS} characters")
        async with self._gate:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the one behind `stored`; None (no such user) never matches."""
        async with self._gate:
            if self._nobody is None:  # at the first check, whoever it is for
                self._nobody = await asyncio.to_thread(self._hasher.hash, "no such user")
            fits = await asyncio.to_thread(self._verify, stored or self._nobody, password)
        return fits and stored is not None

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerifyMismatchError, InvalidHashError):
            return False
