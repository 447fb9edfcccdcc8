"""Names that resolve to what a test says, and are asked of nobody."""

from __future__ import annotations

import socket
from typing import Any

import pytest


def resolving(monkeypatch: pytest.MonkeyPatch, name: str) -> list[list[str]]:
    """What the name turns out to be each next time; a time that was not told fails."""
    found: list[list[str]] = []
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != name:
            return real(host, port, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return found
