"""What agents get to read: JSON-RPC answers, errors of our own, and the form of a denial.

Decides the bytes, codes and HTTP statuses (mcp.md 5.1, 11). Which of them is due is the pipeline's
decision. Nothing here ever carries a payload or the name of another tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from services.proxy import messages
from services.proxy.messages import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR

HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
RESOURCE_NOT_FOUND: Final = -32002

#: Reasons with a code of their own (mcp.md 11); every other reason is the policy's, 4030.
CODES: Final[dict[str, int]] = {
    "unauthenticated": 4010,
    "insufficient_scope": 4011,
    "unknown_server": 4040,
    "unknown_session": 4040,
    "policy_unavailable": 4031,
    "policy_missing": 4031,
    "approval_pending": 4230,
    "rate_limited": 4290,
    "inbound_blocked": 4510,
    "upstream_unreachable": 5020,
    "upstream_protocol": 5021,
    "upstream_auth": 5023,
    "secret_unresolved": 5023,
    "upstream_rate_limited": 5024,
    "capacity": 5030,
    "upstream_timeout": 5040,
}
POLICY: Final = 4030
#: What no tool server's error says: an agent would take it for our word.
OURS: Final = frozenset({*CODES.values(), POLICY})
RETRYABLE: Final[dict[str, int]] = {
    "policy_unavailable": 1000,
    "engine_timeout": 1000,
    "revision_mismatch": 200,
    "audit_unavailable": 5000,
    "rate_limited": 1000,
    "capacity": 1000,
    "upstream_unreachable": 1000,
    "upstream_rate_limited": 5000,
    "approval_pending": 5000,
    "call_again": 0,
}
DECISION_META: Final = "com.behavry/decision"

Headers = tuple[tuple[bytes, bytes], ...]
_JSON: Final[Headers] = ((b"content-type", b"application/json"),)


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer, complete. `sse` says that the same body may go as an event instead."""

    status: int
    body: bytes = b""
    headers: Headers = _JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A request that ends before a decision. `reason` is what the record says."""

    status: int
    code: int
    message: str
    reason: str = "invalid_request"
    data: Any = None
    headers: Headers = ()


ACCEPTED: Final = Answer(202, b"", ())
#: To a request that was given up: it is not answered, and its stream ends.
SILENT: Final = Answer(200, b"", ((b"content-type", b"text/event-stream"),))


def result(id: Any, encoded: bytes) -> Answer:
    """`encoded` is the result as JSON: made once, digested, and sent as it is."""
    return Answer(200, b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (messages.encode(id), encoded))


def error(
    id: Any, code: int, message: str, *, data: Any = None, status: int = 200, headers: Headers = ()
) -> Answer:
    body: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    encoded = messages.encode({"jsonrpc": "2.0", "id": id, "error": body})
    return Answer(status, encoded, _JSON + headers)


def theirs(error: Mapping[str, Any], code: int) -> dict[str, Any]:
    """A tool server's error as an agent gets it, `code` where it has none. In our name it says
    nothing.
    """
    given, text = error.get("code"), error.get("message")
    made: dict[str, Any] = {
        "code": given if type(given) is int else code,
        "message": text if type(text) is str else "upstream error",
    }
    if made["code"] in OURS:
        return {**made, "code": messages.INTERNAL_ERROR}
    return made if error.get("data") is None else {**made, "data": error["data"]}


def rejected(id: Any, why: Rejection) -> Answer:
    return error(id, why.code, why.message, data=why.data, status=why.status, headers=why.headers)


def malformed(why: messages.Malformed) -> Rejection:
    return Rejection(status=400, code=why.code, message=why.args[0], reason="malformed")


def bad_request(rule: str) -> Rejection:
    return Rejection(status=400, code=INVALID_REQUEST, message=rule)


def bad_params(rule: str) -> Rejection:
    return Rejection(status=200, code=INVALID_PARAMS, message=rule, reason="invalid_params")


def notification(method: str, params: dict[str, Any]) -> bytes:
    return messages.encode({"jsonrpc": "2.0", "method": method, "params": params})


def unknown_tool(name: str) -> str:
    """Hidden, unclassified, changed, not granted and absent tools read alike."""
    return f"Unknown tool: {name}"


def decision_data(
    *,
    verdict: str,
    reason: str,
    decision_id: str,
    revision: str,
    escalation_id: str = "",
    retry_after_ms: int = 0,
) -> dict[str, Any]:
    """The object that tells a machine what happened, in `_meta` or in an error's `data`."""
    retryable = reason in RETRYABLE or retry_after_ms > 0
    data: dict[str, Any] = {
        "verdict": verdict,
        "reason": reason,
        "decision_id": decision_id,
        "revision": revision,
        "retryable": retryable,
    }
    if retryable:
        data["retry_after_ms"] = retry_after_ms or RETRYABLE[reason]
    if escalation_id:
        data["escalation_id"] = escalation_id
    return data


def tool_error(text: str, data: dict[str, Any], *, modern: bool) -> dict[str, Any]:
    """A tool result that says no: clients show it to the model instead of breaking."""
    made: dict[str, Any] = {
        "content": [{"type": "text", "text": text}],
        "isError": True,
        "_meta": {DECISION_META: data},
    }
    if modern:
        made["resultType"] = "complete"
    return made


def refusal(id: Any, *, tool: bool, text: str, data: dict[str, Any], modern: bool) -> Answer:
    """A denial or a failure behind a decision, in the form that the method has for it."""
    if tool:
        return result(id, messages.encode(tool_error(text, data, modern=modern)))
    return error(id, CODES.get(data["reason"], POLICY), text, data=data)


def internal_error(id: Any = None) -> Answer:
    return error(id, messages.INTERNAL_ERROR, "internal error")


__all__ = [
    "ACCEPTED", "CODES", "HEADER_MISMATCH", "PARSE_ERROR", "RESOURCE_NOT_FOUND", "SILENT",
    "UNSUPPORTED_VERSION", "Answer", "Rejection", "bad_params", "bad_request", "decision_data",
    "error", "internal_error", "malformed", "refusal", "rejected", "result", "tool_error",
    "unknown_tool",
]  # fmt: skip
