"""A server on OPA's socket that answers with whatever bytes a test says: lies, hangs, cuts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class WireOpa:
    """`answer` is written as it is; None: silence. Health and revision probes are answered well."""

    revision: str
    answer: bytes | None = b""
    close_after: bool = False
    asked: list[bytes] = field(default_factory=list)
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                body = await reader.readexactly(length)
                if head.startswith(b"GET"):
                    writer.write(http(json.dumps(self.provenance()).encode()))
                    continue
                self.asked.append(body)
                if self.answer is not None:
                    writer.write(self.answer)
                    await writer.drain()
                    if self.close_after:
                        return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open.discard(writer)
            writer.close()

    def provenance(self, revision: str | None = None) -> dict[str, Any]:
        shown = self.revision if revision is None else revision
        return {"provenance": {"bundles": {"behavry": {"revision": shown}}}}

    def says(self, result: Any, **more: Any) -> bytes:
        return http(json.dumps({**self.provenance(), "result": result, **more}).encode())


def http(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def wire_opa(socket: Path, revision: str) -> AsyncIterator[WireOpa]:
    server = WireOpa(revision)
    listening = await asyncio.start_unix_server(server.talk, socket, limit=1 << 24)
    try:
        yield server
    finally:
        listening.close()
        for writer in list(server.open):
            writer.transport.abort()
        await listening.wait_closed()
