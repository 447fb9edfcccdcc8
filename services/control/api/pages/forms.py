"""Who stands before a page of ours that works by plain forms: the session in the cookie, that a
form was made for it, and what proves a person in one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response

from services.control import sessions
from services.control.api import auth, guards
from services.control.api.bodies import media_type, read_capped
from services.control.api.context import Call, Visit
from services.control.api.proofs import Proof
from services.control.problems import Refusal

_FORM: Final = "application/x-www-form-urlencoded"
_MAX_FORM_BYTES: Final = 16_384
_MAX_FIELDS: Final = 12
_PRE_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_PRE_LIFE_S: Final = 1_800
#: Of recovery codes, as `proofs` takes them.
_SHORTEST_CODE: Final = 8
_LONGEST_CODE: Final = 64
_NOBODY: Final = {"kind": "unknown"}


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a posted form; of a name that comes twice, the first."""
    if media_type(request) != _FORM:
        raise Refusal("UNSUPPORTED_MEDIA_TYPE", "Send the form of the page.")
    raw = await read_capped(request, _MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise Refusal("INVALID_ARGUMENT", "The form cannot be read.") from None
    return dict(reversed(pairs))


async def signed_in(visit: Visit) -> Call:
    """Raises UNAUTHENTICATED, SESSION_EXPIRED or SECOND_FACTOR_REQUIRED."""
    control = visit.control
    token = visit.request.cookies.get(control.origins.cookie)
    if not token:
        raise Refusal("UNAUTHENTICATED", "Nobody is signed in.")
    principal = await guards.session_of(visit, token, "browser")
    if guards.lacks_factor(control, principal):
        raise Refusal("SECOND_FACTOR_REQUIRED", "Add a second factor first.")
    return Call(control=control, request=visit.request, principal=principal)


async def check_own_form(call: Call, form: Mapping[str, str]) -> None:
    """Raises CSRF_FAILED, on record."""
    words = ""
    if not call.control.origins.allows(call.request.headers.get("origin", "")):
        words = "That form did not come from our own page. Nothing was done."
    elif not sessions.same(form.get("csrf", ""), call.principal.csrf_token or ""):
        words = "That form was not made for this session. Nothing was done."
    if words:
        await call.record_failure(
            call.tenant, call.principal.actor(), "csrf_failed", type="user.request_refused"
        )
        raise Refusal("CSRF_FAILED", words)


async def of_this_browser(visit: Visit, form: Mapping[str, str]) -> bool:
    """Whether a form of before the sign-in was made for this browser; else it is on record. Raises
    CSRF_FAILED where it came from elsewhere.
    """
    await check_own_origin(visit)
    held = visit.request.cookies.get(_pre_cookie(visit), "")
    if sessions.same(form.get("token", ""), sessions.csrf_token(held) if held else ""):
        return True
    await visit.record_failure(None, _NOBODY, "csrf_failed", type="user.request_refused")
    return False


async def check_own_origin(visit: Visit) -> None:
    """A form names where it came from. Raises CSRF_FAILED, on record."""
    if not visit.control.origins.allows(visit.request.headers.get("origin", "")):
        await visit.record_failure(None, _NOBODY, "csrf_failed", type="user.request_refused")
        raise Refusal("CSRF_FAILED", "That form did not come from our own page. Nothing was done.")


def browser(visit: Visit) -> str:
    """What stands for it before it is anybody's: what it has, or something new."""
    held = visit.request.cookies.get(_pre_cookie(visit), "")
    return held if _PRE_TOKEN.fullmatch(held) else sessions.new_token()


def keep_browser(visit: Visit, answer: Response, value: str) -> None:
    """Empty: it is somebody's now."""
    life_s = _PRE_LIFE_S if value else 0
    secure = "; Secure" if visit.control.origins.secure else ""
    told = f"{_pre_cookie(visit)}={value}; Path=/; Max-Age={life_s}"
    answer.headers.append("set-cookie", f"{told}; HttpOnly; SameSite=Strict{secure}")


def proof_of_sign_in(form: Mapping[str, str]) -> Proof:
    """Nothing that was typed is a proof that fits nothing: the try counts."""
    code = form.get("code", "").strip()
    if form.get("passkey"):
        return Proof(passkey=_passkey(form))
    if auth.is_code(code):
        return Proof(totp=code)
    fits = _SHORTEST_CODE <= len(code) <= _LONGEST_CODE
    return Proof(recovery_code=code if fits else "-" * _SHORTEST_CODE)


def proof_again(form: Mapping[str, str]) -> auth.StepUp | None:
    """None: none came along."""
    code = form.get("code", "").strip()
    if form.get("passkey"):
        challenge = form.get("challenge", "")[:200] or "-"
        return auth.StepUp(passkey=_passkey(form), token=challenge)
    if code:
        return auth.StepUp(totp=code if auth.is_code(code) else "000000")
    if form.get("password"):
        return auth.StepUp(password=form["password"][:1024])
    return None


def provider_again(call: Call, path: str) -> str | None:
    """Where whoever came by a provider proves it again, and comes back to this page of ours."""
    if call.principal.method != "oidc":
        return None
    query = urlencode({"step_up": "true", "return_to": path})
    return f"/api/v1/auth/login?{query}"


def proven(call: Call, token: str) -> Call:
    """As they are in the session that goes on under this token."""
    principal = replace(
        call.principal,
        session_sha256=sessions.stored(token),
        csrf_token=sessions.csrf_token(token),
        proven_at=call.now,
    )
    return replace(call, principal=principal)


def _passkey(form: Mapping[str, str]) -> dict[str, Any]:
    try:
        told = json.loads(form["passkey"])
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}


def _pre_cookie(visit: Visit) -> str:
    return "__Host-behavry-sign-in" if visit.control.origins.secure else "behavry_sign_in"
