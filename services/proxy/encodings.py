"""What an agent gets to read where a call has no result of its tool (mcp.md 5). Pure.

Decides the form of a denial and of a failure behind an Allow. Which of them is due is the
pipeline's decision; the bytes are made in answers.py.
"""

from __future__ import annotations

from typing import Final

from services.proxy import answers, messages
from services.proxy.answers import Answer
from services.proxy.governed import Call

HIDDEN: Final = frozenset({"tool_hidden", "tool_schema_changed"})


def denial(call: Call, reason: str) -> Answer:
    if reason in HIDDEN and call.asked.is_tool:
        return answers.error(
            call.message.id, messages.INVALID_PARAMS, answers.unknown_tool(call.asked.tool)
        )
    said = call.decision.reason if reason == call.decision.reason_code else ""
    return _no(call, "deny", reason, f"Denied: {said or reason}.")


def failure(call: Call, reason: str) -> Answer:
    """Allowed, and yet there is no result."""
    return _no(call, "allow", reason, f"Failed: {reason}.")


def _no(call: Call, verdict: str, reason: str, text: str) -> Answer:
    revision = call.decision.revision.policy_revision or call.subject.visit.revision
    data = answers.decision_data(
        verdict=verdict, reason=reason, decision_id=call.subject.id, revision=revision
    )
    return answers.refusal(
        call.message.id,
        tool=call.asked.is_tool,
        text=f"{text} Decision {call.subject.id}.",
        data=data,
        modern=call.route.modern,
    )
