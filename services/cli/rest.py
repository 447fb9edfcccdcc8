"""Control's REST API as the command uses it: who we are, what a refusal says, pages put together.

Decides nothing that control decides; each function elsewhere is one request of the published API.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from services.cli import wire
from services.cli.output import CommandFailed, Exit

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Refused(CommandFailed):
    """A problem+json answer (RFC 9457)."""

    def __init__(self, answer: wire.Answer) -> None:
        problem = _problem(answer)
        self.problem = problem
        self.http_status = answer.status
        self.code = str(problem.get("code", ""))
        text = problem.get("detail") or problem.get("title") or f"HTTP {answer.status}"
        pointers = [
            f"{item.get('pointer', '')} {item.get('code', '')}".strip()
            for item in problem.get("errors", [])
        ]
        named = [
            f"{name.replace('_', ' ')}: {problem[name]}"
            for name in ("feature", "required_plan", "limit", "allowed")
            if problem.get(name)
        ]
        parts = [str(text), *pointers, *named]
        super().__init__(
            f"{self.code or answer.status}: {'; '.join(parts)}{_ADVICE.get(self.code, '')}",
            status=_exit_of(answer.status, self.code),
        )


#: What the reader of a refusal can do at this command line.
_ADVICE = {
    "session_expired": " (`behavry login` again; `behavry logout` goes back to the key)",
    "human_required": " (a person has to be signed in: `behavry login`)",
}
#: Refusals whose meaning the HTTP status alone does not tell.
_EXITS = {
    "self_approval_forbidden": Exit.DENIED,
    "feature_not_included": Exit.NOT_ENTITLED,
    "limit_exceeded": Exit.NOT_ENTITLED,
    "override_exceeds_license": Exit.NOT_ENTITLED,
    "license_signature_invalid": Exit.DIFFERENCE,
    "license_unknown_key": Exit.DIFFERENCE,
    "license_malformed": Exit.USAGE,
    "dependency_unavailable": Exit.UNREACHABLE,
    "control_unavailable": Exit.UNREACHABLE,
    "overloaded": Exit.UNREACHABLE,
    "no_time_left": Exit.UNREACHABLE,
}


def _exit_of(http_status: int, code: str) -> Exit:
    """401 and 403: who asks is nobody, or not enough; the exceptions are listed."""
    if code in _EXITS:
        return _EXITS[code]
    return Exit.NOT_SIGNED_IN if http_status in {401, 403} else Exit.FAILURE


def _problem(answer: wire.Answer) -> dict[str, Any]:
    try:
        problem = json.loads(answer.body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """An address and the bearer credential that opens it: an API key, or a person's session."""

    url: str
    credential: str = field(repr=False)
    #: A super-admin's: why, and the tenant that they go into.
    reason: str | None = None
    tenant: str | None = None

    def because(self, reason: str | None, *, inside: str | None = None) -> "Control":
        """The same as a super-admin asks: with a reason, and in the tenant of that id."""
        return replace(self, reason=reason, tenant=inside)

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path + _query(query))

    def post(self, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """`key` makes a repeated request answer as the first did (Idempotency-Key)."""
        headers = {} if key is None else {"idempotency-key": key}
        return self._ask("POST", path, body if body is not None else {}, headers)

    def put(self, path: str, body: Any, *, etag: str | None = None) -> Any:
        return self._ask("PUT", path, body, {} if etag is None else {"if-match": etag})

    def patch(self, path: str, body: Any, *, etag: str | None = None) -> Any:
        return self._ask("PATCH", path, body, {} if etag is None else {"if-match": etag})

    def delete(self, path: str, *, etag: str | None = None) -> None:
        self._ask("DELETE", path, None, {} if etag is None else {"if-match": etag})

    def get_tagged(self, path: str, *, reason: str | None = None) -> tuple[Any, str | None]:
        """The resource and its ETag, which a later `put` names. `reason`: a super-admin's."""
        headers = {} if reason is None else {"x-behavry-reason": reason}
        answer = self._send("GET", path, None, headers)
        return answer.json(), answer.headers.get("etag")

    def get_because(self, path: str, reason: str) -> Any:
        """What a super-admin reads inside a tenant, and why."""
        return self._ask("GET", path, None, {"x-behavry-reason": reason})

    def post_because(
        self, path: str, reason: str, body: Any = None, *, etag: str | None = None
    ) -> Any:
        headers = {"x-behavry-reason": reason} | ({} if etag is None else {"if-match": etag})
        return self._ask("POST", path, body if body is not None else {}, headers)

    def put_because(self, path: str, reason: str, body: Any) -> Any:
        return self._ask("PUT", path, body, {"x-behavry-reason": reason})

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page; a page may be empty and not the last."""
        while True:
            page = self.get(path, **query)
            yield from page["items"]
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def first(self, path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
        """The first `limit` items, from as many pages as they take."""
        return list(islice(self.items(path, page_size=limit, **query), limit))

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        return self._send(method, path, body, headers or {}).json()

    def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> wire.Answer:
        sent = {"accept": "application/json", "authorization": f"Bearer {self.credential}"}
        if self.reason is not None:
            sent["x-behavry-reason"] = self.reason
        if self.tenant is not None:
            path = path.replace("/api/v1/", f"/api/v1/tenants/{self.tenant}/", 1)
        content = None
        if body is not None:
            sent["content-type"] = "application/json"
            content = json.dumps(body).encode()
        answer = wire.send(method, self.url + path, headers={**sent, **headers}, body=content)
        if answer.status >= 400:
            raise Refused(answer)
        return answer


def is_id(text: str) -> bool:
    """Whether a person typed an id, or a name."""
    return _ID.fullmatch(text) is not None


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
