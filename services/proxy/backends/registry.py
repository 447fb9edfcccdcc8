"""Which backend serves a server: by its transport."""

from __future__ import annotations

from dataclasses import dataclass

from services.proxy.backends.stdio import StdioBackend
from services.proxy.backends.streamable import StreamableBackend
from services.proxy.backends.upstream import Backend, UpstreamFailed
from services.proxy.snapshot import Server


@dataclass(frozen=True, slots=True)
class Registry:
    streamable: StreamableBackend
    stdio: StdioBackend

    def of(self, server: Server) -> Backend:
        """Raises UpstreamFailed: HTTP+SSE of 2024-11-05 is not spoken yet."""
        match server.transport:
            case "http":
                return self.streamable
            case "stdio":
                return self.stdio
            case _:
                raise UpstreamFailed("not_available_here", ran=False)
