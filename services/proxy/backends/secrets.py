"""`secret://name` as a credential: what does not resolve is the upstream's failure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from services.common.secret_refs import PREFIX, SecretFiles, SecretUnresolved
from services.proxy.backends.upstream import UpstreamFailed

__all__ = ["PREFIX", "Secrets"]

_VALUE: Final = re.compile(r"[\x20-\x7e]{1,8192}")


class Secrets:
    def __init__(self, directory: Path) -> None:
        self._files = SecretFiles(directory)

    def resolve(self, reference: str) -> str:
        """Raises UpstreamFailed (secret_unresolved), also for an empty file: nothing is no secret,
        and no authority.
        """
        try:
            value = self._files.resolve(reference)
        except SecretUnresolved:
            value = ""
        if not value:
            raise UpstreamFailed("secret_unresolved", ran=False)
        return value

    def path(self, reference: str) -> Path:
        """Raises UpstreamFailed (secret_unresolved)."""
        try:
            return self._files.path(reference)
        except SecretUnresolved:
            raise UpstreamFailed("secret_unresolved", ran=False) from None

    def header(self, reference: str) -> str:
        """A value that a header can carry. Raises UpstreamFailed."""
        value = self.resolve(reference)
        if not _VALUE.fullmatch(value):
            raise UpstreamFailed("secret_unresolved", ran=False)
        return value
