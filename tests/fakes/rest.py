"""A control that answers what it is told, over real HTTP: refusals that a real one gives rarely."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

Answered = tuple[int, Any]


@dataclass(kw_only=True)
class RestControl:
    """`answers`: by "METHOD /path" without the query. `seen`: what was asked, with its body."""

    port: int = 0
    answers: dict[str, Answered | list[Answered]] = field(default_factory=dict)
    seen: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)

    def problem(self, route: str, status: int, code: str) -> None:
        """Refuse a route, as control does (RFC 9457)."""
        self.answers[route] = (status, {"code": code, "detail": "No.", "status": status})

    def answer(self, route: str) -> Answered:
        known = self.answers.get(route, (404, {"code": "not_found"}))
        if isinstance(known, list):
            return known.pop(0)
        return known


@contextmanager
def serving() -> Iterator[RestControl]:
    """One server on a free port until the block ends."""
    control = RestControl()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(size)
            is_form = "form" in self.headers.get("content-type", "")
            body = dict(parse_qsl(raw.decode())) if is_form else json.loads(raw or b"null")
            route = f"{self.command} {self.path.partition('?')[0]}"
            headers = {name.lower(): value for name, value in self.headers.items()}
            control.seen.append((route, body, headers))
            status, told = control.answer(route)
            content = b"" if told is None else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.send_header("etag", '"1"')
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815  # http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            """Tests read `seen`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    control.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield control
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def installed(root: Path, *, control_port: int | None, proxy_port: int = 9) -> Path:
    """A state directory as `up` leaves it, as far as commands read it."""
    root.mkdir(mode=0o700)
    document = {
        "version": 1,
        "plane_id": "dp-1",
        "proxy_port": proxy_port,
        "control_port": control_port,
        "feed_port": 3,
        "run_dir": str(root / "run"),
    }
    for name, text in (
        ("state.json", json.dumps(document)),
        ("admin-api-key", "bhv_sk_local_a_b"),
        ("admin-password", "correct horse"),
    ):
        (root / name).write_text(text + "\n")
        (root / name).chmod(0o600)
    return root
