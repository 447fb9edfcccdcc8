"""TLS towards tool servers: whom to trust, and which certificate to show. Verified always, 1.2 at
least.

A context is made once, beside the loop, and again when the files that it is made of have changed.
Whoever keeps connections keeps them by context, so that two servers never share one by chance.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common.clock import Clock
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.upstream import UpstreamFailed

#: How long the files are not looked at again.
LOOK_NS: Final = 5 * 1_000_000_000

#: References of authorities, certificate and key; empty where there is none.
_Names = tuple[str, str, str]


@dataclass(slots=True)
class _Made:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    context: ssl.SSLContext | None = None
    texts: tuple[str, ...] = field(default=(), repr=False)
    looked_ns: int = 0


class Contexts:
    """One per worker."""

    def __init__(self, secrets: Secrets, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._made: dict[_Names, _Made] = {}

    async def of(self, *, ca: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
        """Without `ca` the machine's own authorities. Raises UpstreamFailed."""
        names = (ca, certificate, key)
        made = self._made.setdefault(names, _Made())
        if made.context is not None and self._clock.monotonic_ns() - made.looked_ns < LOOK_NS:
            return made.context
        async with made.lock:
            texts = tuple(self._secrets.resolve(name) if name else "" for name in names)
            if made.context is None or made.texts != texts:
                paths = [self._secrets.path(name) if name else None for name in names[1:]]
                made.context = await asyncio.to_thread(_build, texts[0], *paths)
                made.texts = texts
            made.looked_ns = self._clock.monotonic_ns()
            return made.context


def _build(ca: str, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca or None)
        if certificate is not None:
            # An encrypted key would ask at the terminal.
            context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError, OSError):
        raise UpstreamFailed("secret_unresolved", ran=False) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
