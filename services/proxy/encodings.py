"""What an agent gets to read where a call has no result of its tool (mcp.md 5). Pure.

Decides the form of a denial, of a failure behind an Allow, and of the wait for a person, by what
the request declares. Which of them is due is the pipeline's decision.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from services.proxy import answers, bridge, messages
from services.proxy.answers import Answer
from services.proxy.eras import CAPABILITIES_META
from services.proxy.governed import METHODS, Call, Incoming, Question

HIDDEN: Final = frozenset({"tool_hidden", "tool_schema_changed"})
#: The one thing that an agent is asked for.
APPROVAL: Final = "approval"
ACTIONS: Final = frozenset({"accept", "decline", "cancel"})


class Row(Enum):
    """The rows of mcp.md 5.2, in their order."""

    INPUT_REQUIRED = "input_required"
    TASK = "task"
    PUSHED = "pushed"
    HELD = "held"


def row(incoming: Incoming, asked: Question) -> Row:
    """The first one that fits; an answer to a tool server has nobody who waits for more."""
    session = incoming.session
    if asked.deliver is not None:
        return Row.HELD
    if not incoming.route.modern:
        return Row.PUSHED if session is not None and session.elicits else Row.HELD
    declared = declared_by(incoming.message.params)
    if bridge.shows_urls(declared) and asked.method in METHODS and asked.portable:
        return Row.INPUT_REQUIRED
    return Row.TASK if asked.is_tool and bridge.knows_tasks(declared) else Row.HELD


def declared_by(params: dict[str, Any]) -> Any:
    """The client capabilities of a modern request."""
    meta = params.get("_meta")
    return meta.get(CAPABILITIES_META) if type(meta) is dict else None


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


def pending(call: Call) -> Answer:
    text = "Waiting for a person's approval: call again with the same arguments."
    return _no(call, "intercept", "approval_pending", text)


def input_required(call: Call, url: str, state: str) -> Answer:
    made = {
        "resultType": "input_required",
        "inputRequests": {
            APPROVAL: {
                "method": "elicitation/create",
                "params": {"mode": "url", "message": _message(call), "url": url},
            }
        },
        "requestState": state,
        "_meta": {answers.DECISION_META: data(call, "intercept", "approval_pending")},
    }
    return answers.result(call.message.id, messages.encode(made))


def elicitation(call: Call, url: str, id: str) -> bytes:
    """The same as a request to a legacy agent; `id` is the request's own."""
    escalation = call.decision.escalation
    params = {
        "mode": "url",
        "message": _message(call),
        "url": url,
        "elicitationId": escalation.id if escalation else "",
    }
    made = {"jsonrpc": "2.0", "id": id, "method": "elicitation/create", "params": params}
    return messages.encode(made)


def elicited(escalation_id: str) -> bytes:
    """The page has served its purpose."""
    method = "notifications/elicitation/complete"
    return answers.notification(method, {"elicitationId": escalation_id})


def progress(token: int | str, done_s: float, total_s: int) -> bytes:
    params = {
        "progressToken": token,
        "progress": done_s,
        "total": total_s,
        "message": "Waiting for a person's approval.",
    }
    return answers.notification("notifications/progress", params)


def progress_token(params: dict[str, Any]) -> int | str | None:
    meta = params.get("_meta")
    token = meta.get("progressToken") if type(meta) is dict else None
    return token if messages.valid_id(token) else None


def data(call: Call, verdict: str, reason: str) -> dict[str, Any]:
    """What tells a machine what happened."""
    decision = call.decision
    return answers.decision_data(
        verdict=verdict,
        reason=reason,
        decision_id=call.subject.id,
        revision=decision.revision.policy_revision or call.subject.visit.revision,
        escalation_id=decision.escalation.id if decision.escalation else "",
        retry_after_ms=decision.retry_after_ms,
    )


def _no(call: Call, verdict: str, reason: str, text: str) -> Answer:
    return answers.refusal(
        call.message.id,
        tool=call.asked.is_tool,
        text=f"{text} Decision {call.subject.id}.",
        data=data(call, verdict, reason),
        modern=call.route.modern,
    )


def _message(call: Call) -> str:
    what = f"the tool {call.asked.tool[:128]}" if call.asked.is_tool else call.asked.method
    return f"An approver has to decide whether {what} may run. The page says who and what."
