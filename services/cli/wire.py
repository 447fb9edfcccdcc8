"""HTTP as the command needs it: one JSON request, one answer, over TCP or a unix socket.

Standard library only, so that `behavry traces` starts in a blink. Decides timeouts and what a
refused connection means; what to ask is `rest.py`'s and `story.py`'s matter.
"""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.cli.output import CommandFailed, Exit

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, headers (names in lower case), body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when there is none. An answer of other content is a failure."""
        if not self.body:
            return None
        try:
            return json.loads(self.body)
        except ValueError:
            raise CommandFailed(f"an answer ({self.status}) that is not JSON") from None


class Unreachable(CommandFailed):
    """Nobody answers at this address."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"nothing answers at {url}; is `behavry up` running?", status=Exit.UNREACHABLE
        )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def send(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    unix_socket: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """One request. Raises Unreachable when there is no answer."""
    parts = urlsplit(url)
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    connection = _connection(url, unix_socket, timeout_s)
    try:
        connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=response.read(),
        )
    except (OSError, http.client.HTTPException) as failure:
        raise Unreachable(f"{parts.scheme}://{parts.netloc}") from failure
    finally:
        connection.close()


def _connection(url: str, unix_socket: Path | None, timeout_s: float) -> http.client.HTTPConnection:
    if unix_socket is not None:
        return _UnixConnection(unix_socket, timeout_s=timeout_s)
    parts = urlsplit(url)
    if parts.hostname is None:
        raise CommandFailed(f"not an address: {url}", status=Exit.USAGE)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
