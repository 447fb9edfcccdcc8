"""What the story's agent saw of a call, and the record that the call left in the chain.

Decides whether an answer is what the story promised; CommandFailed says what came instead.
"""

import time
from typing import Any

from services.cli.output import CommandFailed, Exit, plain
from services.cli.rest import Control

RECORD_TIMEOUT_S = 10.0


def seen(answer: dict[str, Any], expect: str) -> str:
    """What came back, checked against what the story promises."""
    if "error" in answer:
        as_told = expect == "unknown" and answer["error"]["code"] == -32602
    else:
        ran = not answer["result"].get("isError")
        denied = _verdict(answer) == "deny"
        as_told = {"allow": ran, "approved": ran, "deny": denied}.get(expect, False)
    if not as_told:
        refused = expect in {"allow", "approved"} and _verdict(answer) == "deny"
        raise CommandFailed(
            f"expected {expect}, the agent saw: {line(answer)}",
            status=Exit.DENIED if refused else Exit.DIFFERENCE,
        )
    return line(answer)


def line(answer: dict[str, Any]) -> str:
    """What an agent sees of an answer, in one line."""
    if "error" in answer:
        saw = f"error {answer['error']['code']}: {answer['error']['message']}"
    else:
        saw = " ".join(part.get("text", "") for part in answer["result"].get("content", []))
    told = plain(" ".join(saw.split())) or "(nothing)"
    return told if len(told) <= 120 else told[:117] + "..."


def _verdict(answer: dict[str, Any]) -> str:
    """What the gateway says that it decided, where it does."""
    told = answer.get("result", {}).get("_meta", {}).get("com.behavry/decision", {})
    return str(told.get("verdict", ""))


def newest_id(control: Control, term: str) -> str | None:
    page = control.get("/api/v1/traces", filter=term, page_size=1)
    return page["items"][0]["id"] if page["items"] else None


def newest(control: Control, term: str, *, other_than: str | None) -> dict[str, Any]:
    """The record of what just happened; it reaches the chain within a moment."""
    deadline = time.monotonic() + RECORD_TIMEOUT_S
    while True:
        page = control.get("/api/v1/traces", filter=term, page_size=1)
        if page["items"] and page["items"][0]["id"] != other_than:
            return dict(page["items"][0])
        if time.monotonic() > deadline:
            raise CommandFailed("the call left no record", status=Exit.DIFFERENCE)
        time.sleep(0.05)  # noqa: TID251  # the record travels by itself; nobody tells a REST client
