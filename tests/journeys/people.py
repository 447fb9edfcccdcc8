"""A person of the journeys: signed in through REST as `behavry login` does, deciding in the inbox.

Decides nothing about who may do what.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.fakes.stack import Rest, Stack, fetch, until


@dataclass(frozen=True, slots=True)
class Person:
    rest: Rest

    def waiting(self, agent: str) -> dict[str, Any]:
        """The agent's pending escalation, as soon as the inbox has one."""
        found: list[dict[str, Any]] = []

        def arrived() -> bool:
            query = {"filter": f"agent:{agent} state:pending"}
            found[:] = self.rest.get("/api/v1/escalations", **query)["items"]
            return bool(found)

        until(arrived, "the escalation is in the inbox", 10)
        return found[0]

    def decide(self, escalation: str, verb: str, **said: Any) -> dict[str, Any]:
        answer = self.rest.post(
            f"/api/v1/escalations/{escalation}:{verb}",
            {"reason": "as agreed", **said},
            headers={"idempotency-key": uuid4().hex},
        )
        assert isinstance(answer, dict)
        return answer

    def state(self, escalation: str) -> str:
        return str(self.rest.get(f"/api/v1/escalations/{escalation}")["state"])


def password(stack: Stack) -> str:
    return Path(stack.up.admin.password_file).read_text().strip()


def signed_in(stack: Stack) -> Person:
    """The first admin, with a session that counts as human."""
    base = stack.up.control_url.rstrip("/")
    body = b'{"username":"%s","password":"%s","bearer":true}' % (
        stack.up.admin.username.encode(),
        password(stack).encode(),
    )
    answer = fetch(f"{base}/api/v1/auth/login", "POST", body, {"content-type": "application/json"})
    return Person(Rest(base, str(answer["token"])))
