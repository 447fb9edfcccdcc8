"""Errors as REST tells them: RFC 9457 problems with a stable code.

Decides status and title of each code and the fields of the document. Nothing that a caller sent
goes into one: details are written by us, pointers name fields that we defined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.errors import BehavryError

MEDIA_TYPE: Final = "application/problem+json"

#: code -> (status, title). A code that is not here is answered as `internal`.
CATALOGUE: Final[Mapping[str, tuple[int, str]]] = {
    "malformed_json": (400, "The body is not JSON"),
    "invalid_filter": (400, "The query cannot be used"),
    "invalid_page_token": (400, "The page token cannot be used"),
    "invalid_argument": (400, "The request cannot be used"),
    "reason_required": (400, "A reason is required"),
    "idempotency_key_required": (400, "Idempotency-Key is required"),
    "unauthenticated": (401, "Sign in first"),
    "session_expired": (401, "The session has ended"),
    "enrollment_invalid": (401, "The enrolment token cannot be used"),
    "invite_invalid": (401, "The invite cannot be used"),
    "password_reset_invalid": (401, "The link cannot be used"),
    "csrf_failed": (403, "The request did not come from our own page"),
    "role_required": (403, "The role does not suffice"),
    "feature_not_included": (403, "Feature not included"),
    "override_exceeds_license": (403, "The licence does not go that far"),
    "limit_exceeded": (403, "The licence's limit is reached"),
    "second_factor_required": (403, "A second factor is needed first"),
    "step_up_required": (403, "A fresh proof of who you are is needed"),
    "human_required": (403, "Only a person can do this"),
    "self_approval_forbidden": (403, "Nobody approves what they asked for"),
    "not_found": (404, "Not found"),
    "tenant_unknown": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "conflict": (409, "It conflicts with what exists"),
    "idempotency_in_flight": (409, "The first request still runs"),
    "last_admin": (409, "A tenant keeps one active admin"),
    "license_older": (409, "A licence that was issued later is active"),
    "escalation_closed": (409, "The escalation is closed"),
    "stale_revision": (412, "It has changed since it was read"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "Only application/json is understood"),
    "validation_failed": (422, "Fields are missing or wrong"),
    "idempotency_mismatch": (422, "The key was used for another request"),
    "policy_rejected": (422, "The policy cannot be accepted"),
    "license_expired": (422, "The licence has ended"),
    "license_revoked": (422, "The licence was revoked"),
    "license_malformed": (422, "That is no licence"),
    "license_signature_invalid": (422, "The licence's signature is wrong"),
    "license_unknown_key": (422, "The licence's key is not known"),
    "license_product_mismatch": (422, "The licence is for another product"),
    "license_subject_mismatch": (422, "The licence is for somebody else"),
    "license_fingerprint_mismatch": (422, "The licence is for another installation"),
    "license_clock_suspect": (422, "The clock cannot be believed"),
    "precondition_required": (428, "If-Match is required"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "Something went wrong here"),
    "overloaded": (503, "Too much at once"),
    "dependency_unavailable": (503, "Another service cannot be reached"),
    "control_unavailable": (503, "Control cannot be reached"),
    "tool_unavailable": (503, "A tool that is needed is missing"),
    "no_time_left": (503, "Another service did not answer in time"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """`pointer` is an RFC 6901 pointer into the body, or names a query parameter or header."""

    pointer: str
    code: str


class Refusal(BehavryError):
    """A BehavryError with what only REST can say: which fields, and response headers."""

    def __init__(
        self,
        reason: str,
        message: str,
        /,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(reason, message, **metadata)
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        #: Fields of the document that are no texts.
        self.details = dict(details or {})


def status_of(code: str) -> int:
    return CATALOGUE.get(code, CATALOGUE["internal"])[0]


def document(error: BehavryError, *, instance: str, request_id: str) -> dict[str, Any]:
    """The problem document. A reason outside the catalogue tells nothing of itself."""
    known = error.code in CATALOGUE
    code = error.code if known else "internal"
    status, title = CATALOGUE[code]
    problem: dict[str, Any] = {**error.metadata} if known else {}
    if known and isinstance(error, Refusal):
        problem |= error.details
    problem |= {
        "type": f"/errors/{code}",
        "title": title,
        "status": status,
        "detail": error.message if known else "Tell the operator the request id.",
        "instance": instance,
        "code": code,
        "request_id": request_id,
    }
    if isinstance(error, Refusal) and error.errors:
        problem["errors"] = [{"pointer": e.pointer, "code": e.code} for e in error.errors]
    return problem


def not_found(what: str) -> Refusal:
    """`what` is a kind of thing, never the id that was asked for."""
    return Refusal("NOT_FOUND", f"There is no such {what}.")


def invalid(pointer: str, code: str, message: str) -> Refusal:
    """A single wrong field."""
    return Refusal("VALIDATION_FAILED", message, errors=[FieldError(pointer, code)])
