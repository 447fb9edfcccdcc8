"""Control's REST API as the command uses it: who we are, what a refusal says, pages put together.

Decides nothing that control decides; each function elsewhere is one request of the published API.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from services.cli import wire
from services.cli.output import CommandFailed, Exit


class Refused(CommandFailed):
    """A problem+json answer (RFC 9457)."""

    def __init__(self, answer: wire.Answer) -> None:
        problem = _problem(answer)
        self.http_status = answer.status
        self.code = str(problem.get("code", ""))
        text = problem.get("detail") or problem.get("title") or f"HTTP {answer.status}"
        pointers = [
            f"{item.get('pointer', '')} {item.get('code', '')}".strip()
            for item in problem.get("errors", [])
        ]
        parts = [str(text), *pointers]
        signed_in = answer.status != 401
        super().__init__(
            f"{self.code or answer.status}: {'; '.join(parts)}",
            status=Exit.FAILURE if signed_in else Exit.NOT_SIGNED_IN,
        )


def _problem(answer: wire.Answer) -> dict[str, Any]:
    try:
        problem = json.loads(answer.body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """An address and the key that opens it."""

    url: str
    api_key: str = field(repr=False)

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path + _query(query))

    def post(self, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """`key` makes a repeated request answer as the first did (Idempotency-Key)."""
        headers = {} if key is None else {"idempotency-key": key}
        return self._ask("POST", path, body if body is not None else {}, headers)

    def put(self, path: str, body: Any, *, etag: str | None = None) -> Any:
        return self._ask("PUT", path, body, {} if etag is None else {"if-match": etag})

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        while True:
            page = self.get(path, **query)
            yield from page["items"]
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        sent = {"accept": "application/json", "authorization": f"Bearer {self.api_key}"}
        content = None
        if body is not None:
            sent["content-type"] = "application/json"
            content = json.dumps(body).encode()
        answer = wire.send(
            method, self.url + path, headers={**sent, **(headers or {})}, body=content
        )
        if answer.status >= 400:
            raise Refused(answer)
        return answer.json()


def segment(text: str) -> str:
    """One path segment of whatever a person typed."""
    return quote(text, safe="")


def _query(query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def read_key(path: Path) -> str:
    """The API key in a file."""
    try:
        return path.read_text().strip()
    except OSError:
        raise CommandFailed(f"cannot read the API key {path}", status=Exit.NOT_SIGNED_IN) from None
