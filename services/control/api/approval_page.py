"""The page behind the link that an agent's user gets: `/approve/{id}`. Whoever opens it signs in,
sees the call and decides it, in a browser without script unless they have nothing but a passkey.

Only the id is in the address, and before the sign-in nothing depends on it. Guarded here: a form is
taken from our own page alone (Origin and a token of the session, or before there is one a token of
a cookie), a sign-in and a password given again make a new session id, the way back is always this
same page, and nobody may put it into a frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.control import escalations as rules
from services.control import problems, sessions
from services.control.api import approval_html as html
from services.control.api import auth, guards, page_frame, proofs
from services.control.api import escalation_acts as acts
from services.control.api.bodies import media_type, read_capped
from services.control.api.context import Call, Visit
from services.control.api.escalation_acts import Grant
from services.control.api.guards import anyone
from services.control.api.proofs import Proof, Who
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store.people import Account

router = APIRouter(prefix="/approve", include_in_schema=False)

_FORM: Final = "application/x-www-form-urlencoded"
_MAX_FORM_BYTES: Final = 16_384
_MAX_FIELDS: Final = 12
#: Of recovery codes, as `proofs` takes them.
_SHORTEST_CODE: Final = 8
_LONGEST_CODE: Final = 64
_PRE_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_PRE_LIFE_S: Final = 1_800


@router.get("/style.css")
async def approval_style(_: Annotated[Visit, anyone()]) -> Response:
    return _file(page_frame.STYLE, "text/css")


@router.get("/page.js")
async def approval_script(_: Annotated[Visit, anyone()]) -> Response:
    """Asks a passkey, and fills in what a link brought; of pages that need either."""
    return _file(page_frame.SCRIPT, "text/javascript")


@router.get("/{escalation_id:uuid}")
async def show_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    try:
        call = await _signed_in(visit)
    except Refusal as refused:
        words = {
            "SESSION_EXPIRED": "Your session has ended.",
            "SECOND_FACTOR_REQUIRED": "Add a passkey or one-time codes to your account first.",
        }
        return _sign_in_form(visit, escalation_id, words.get(refused.reason, ""))
    return await _shown(call, escalation_id)


@router.post("/{escalation_id:uuid}/sign-in")
async def sign_in_to_approve(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the password  3. whoever has a second factor and gave no one-time
    code is asked for it  4. a new session, and back to the page.
    """
    form = await form_of(visit.request)
    if not await _of_this_browser(visit, form):  # 1
        return _sign_in_form(visit, escalation_id, "That form was too old. Try again.", status=403)
    username, password = form.get("username", ""), form.get("password", "")
    if not 1 <= len(username) <= 320 or not 1 <= len(password) <= 1024 or "\0" in username:
        return _sign_in_form(visit, escalation_id, "User name or password is wrong.", status=401)
    try:
        account, known_as = await auth.prove(visit, username, password)  # 2
        code = form.get("code", "").strip()
        if account.factors and not code:  # 3
            return await _second_form(visit, escalation_id, account)
        token = await auth.open_at_once(visit, account, known_as, "browser", code)  # 4
    except Refusal as refused:
        return _not_in(visit, escalation_id, refused)
    return _in(visit, escalation_id, token)


@router.post("/{escalation_id:uuid}/second-factor")
async def prove_to_approve(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    """The other half of that sign-in: a passkey, or a code."""
    form = await form_of(visit.request)
    if not await _of_this_browser(visit, form):
        return _sign_in_form(visit, escalation_id, "That form was too old. Try again.", status=403)
    try:
        _, token = await auth.second_half(visit, _proof(form), form.get("challenge", "")[:200])
    except Refusal as refused:
        return _not_in(visit, escalation_id, refused)
    return _in(visit, escalation_id, token)


@router.post("/{escalation_id:uuid}/sign-out")
async def sign_out_of_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    form = await form_of(visit.request)
    call = await _signed_in(visit)
    await _check_own_form(call, form)
    await auth.end(call)
    answer = _back(visit, escalation_id)
    answer.headers.append("set-cookie", visit.control.origins.clear_cookie())
    return answer


@router.post("/{escalation_id:uuid}")
async def decide_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the role  3. the password again, where it came along  4. the act.
    What was refused is said on the page, with what was typed still in it.
    """
    form = await form_of(visit.request)
    try:
        call = await _signed_in(visit)
    except Refusal:
        words = "Your session has ended: nothing was decided. Sign in again."
        return _sign_in_form(visit, escalation_id, words, status=401)
    token = None
    try:
        await _check_own_form(call, form)  # 1
        if call.principal.role < Role.ANALYST:  # 2
            raise Refusal("ROLE_REQUIRED", "Your role does not suffice to decide this.")
        if form.get("password") or form.get("code") or form.get("passkey"):  # 3
            token = await auth.give_again(call, "browser", _given(form))
            call = _proven(call, token)
        await _act(call, str(escalation_id), form)  # 4
    except Refusal as refused:
        return await _shown(call, escalation_id, refused=refused, typed=form, token=token)
    return _back(visit, escalation_id, token)


# What is decided ----------------------------------------------------------------------------------


async def _act(call: Call, escalation: str, form: Mapping[str, str]) -> None:
    reason = " ".join(form.get("reason", "").split())  # one line, as records and lists show it
    if len(reason) > 500 or "\0" in reason:
        raise Refusal("VALIDATION_FAILED", "A reason has at most 500 characters.")
    match form.get("act"):
        case "once":
            await acts.approve(call, escalation, Grant(), reason=reason)
        case "grant":
            uses = _number(form, "uses", rules.MAX_USES, "How often")
            minutes = _number(form, "minutes", rules.MAX_MINUTES, "For how many minutes")
            grant = Grant(uses=uses, execute_for_s=60 * minutes)
            await acts.approve(call, escalation, grant, reason=reason)
        case "deny" if not reason:
            raise Refusal("VALIDATION_FAILED", "Say why you deny it.")
        case "deny":
            await acts.end(call, escalation, "deny", reason=reason)
        case "revoke":
            await acts.end(call, escalation, "revoke", reason=reason)
        case _:
            raise Refusal("VALIDATION_FAILED", "Choose what to do.")


def _number(form: Mapping[str, str], name: str, most: int, label: str) -> int:
    text = form.get(name, "")
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= most:
        raise Refusal("VALIDATION_FAILED", f"{label}: a number from 1 to {most}.")
    return int(text)


# Who it is ----------------------------------------------------------------------------------------


async def _signed_in(visit: Visit) -> Call:
    """Raises UNAUTHENTICATED or SESSION_EXPIRED."""
    control = visit.control
    token = visit.request.cookies.get(control.origins.cookie)
    if not token:
        raise Refusal("UNAUTHENTICATED", "Nobody is signed in.")
    principal = await guards.session_of(visit, token, "browser")
    if guards.lacks_factor(control, principal):
        raise Refusal("SECOND_FACTOR_REQUIRED", "Add a second factor first.")
    return Call(control=control, request=visit.request, principal=principal)


def _given(form: Mapping[str, str]) -> auth.StepUp:
    if form.get("passkey"):
        challenge = form.get("challenge", "")[:200] or "-"
        return auth.StepUp(passkey=_passkey(form), token=challenge)
    code = form.get("code", "").strip()
    if code:
        return auth.StepUp(totp=code if auth.is_code(code) else "000000")
    return auth.StepUp(password=form["password"][:1024])


def _proof(form: Mapping[str, str]) -> Proof:
    """Of a sign-in. Nothing that was typed is a proof that fits nothing: the try counts."""
    code = form.get("code", "").strip()
    if form.get("passkey"):
        return Proof(passkey=_passkey(form))
    if auth.is_code(code):
        return Proof(totp=code)
    fits = _SHORTEST_CODE <= len(code) <= _LONGEST_CODE
    return Proof(recovery_code=code if fits else "-" * _SHORTEST_CODE)


def _passkey(form: Mapping[str, str]) -> dict[str, Any]:
    try:
        told = json.loads(form["passkey"])
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}


def _proven(call: Call, token: str) -> Call:
    principal = replace(
        call.principal,
        session_sha256=sessions.stored(token),
        csrf_token=sessions.csrf_token(token),
        proven_at=call.now,
    )
    return replace(call, principal=principal)


async def _check_own_form(call: Call, form: Mapping[str, str]) -> None:
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


async def _of_this_browser(visit: Visit, form: Mapping[str, str]) -> bool:
    """Whether a form of before the sign-in is our own, sent by whom it was made for; else it is on
    record. Raises CSRF_FAILED where it came from elsewhere.
    """
    await check_own_origin(visit)
    held = visit.request.cookies.get(_pre_cookie(visit), "")
    if sessions.same(form.get("token", ""), sessions.csrf_token(held) if held else ""):
        return True
    await visit.record_failure(
        None, {"kind": "unknown"}, "csrf_failed", type="user.request_refused"
    )
    return False


async def check_own_origin(visit: Visit) -> None:
    """A form names where it came from. Raises CSRF_FAILED, on record."""
    if not visit.control.origins.allows(visit.request.headers.get("origin", "")):
        await visit.record_failure(
            None, {"kind": "unknown"}, "csrf_failed", type="user.request_refused"
        )
        raise Refusal("CSRF_FAILED", "That form did not come from our own page. Nothing was done.")


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


# Answers ------------------------------------------------------------------------------------------


async def _shown(
    call: Call,
    escalation_id: UUID,
    *,
    refused: Refusal | None = None,
    typed: Mapping[str, str] | None = None,
    token: str | None = None,
) -> Response:
    path, status, error, headers = _path(escalation_id), 200, "", dict[str, str]()
    if refused is not None:
        status, error = problems.status_of(refused.code), refused.message
        headers = refused.headers
    try:
        row = await acts.look(call, str(escalation_id))
    except Refusal as missing:
        if missing.reason != "NOT_FOUND":
            raise
        answer = page_of(html.not_found(path, _viewer(call, None)), status=404)
    else:
        viewer = _viewer(call, row)
        answer = page_of(
            html.page(path, row, acts.rule_of(row), viewer, now=call.now, error=error, typed=typed),
            status=status,
            headers=headers,
            scripted=viewer.scripted,
        )
    if token is not None:
        answer.headers.append("set-cookie", call.control.origins.set_cookie(token))
    return answer


def _viewer(call: Call, row: Mapping[str, Any] | None) -> html.Viewer:
    principal = call.principal
    rule = acts.rule_of(row) if row else None
    votes = row["votes"] if row else []
    return html.Viewer(
        name=principal.name,
        role=principal.role.key,
        tenant=principal.tenant_slug,
        csrf=principal.csrf_token or "",
        may_decide=principal.role >= Role.ANALYST,
        eligible=rule is not None and principal.id in rule.eligible,
        voted=next((vote["verdict"] for vote in votes if vote["user_id"] == principal.id), None),
        needs_proof=rule is not None and rule.step_up and not call.stepped_up,
        by_code="totp" in principal.factors,
        by_passkey="passkey" in principal.factors,
    )


def _sign_in_form(
    visit: Visit,
    escalation_id: UUID,
    error: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    held = visit.request.cookies.get(_pre_cookie(visit), "")
    token = held if _PRE_TOKEN.fullmatch(held) else sessions.new_token()
    text = html.sign_in(_path(escalation_id), token=sessions.csrf_token(token), error=error)
    answer = page_of(text, status=status, headers=headers)
    answer.headers.append("set-cookie", _pre_set(visit, token, _PRE_LIFE_S))
    return answer


async def _second_form(visit: Visit, escalation_id: UUID, account: Account) -> Response:
    who = Who(tenant=account.tenant, user=account.user_id)
    challenge, options = await proofs.ask(visit, who, "sign_in", "browser")
    held = visit.request.cookies[_pre_cookie(visit)]
    text = html.second_factor(
        _path(escalation_id),
        token=sessions.csrf_token(held),
        challenge=challenge,
        options=options,
    )
    return page_of(text, scripted=options is not None)


def _not_in(visit: Visit, escalation_id: UUID, refused: Refusal) -> Response:
    """Back to the first half. Raises what is no refusal of a sign-in."""
    if refused.reason not in {"UNAUTHENTICATED", "RATE_LIMITED"}:
        raise refused
    return _sign_in_form(
        visit,
        escalation_id,
        refused.message,
        status=problems.status_of(refused.code),
        headers=refused.headers,
    )


def _in(visit: Visit, escalation_id: UUID, token: str) -> Response:
    answer = _back(visit, escalation_id, token)
    answer.headers.append("set-cookie", _pre_set(visit, "", 0))
    return answer


def page_of(
    text: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    scripted: bool = False,
) -> Response:
    base = page_frame.SCRIPTED if scripted else page_frame.HEADERS
    return HTMLResponse(text, status_code=status, headers={**base, **(headers or {})})


def _file(text: str, media_type: str) -> Response:
    headers = {**page_frame.HEADERS, "cache-control": "max-age=300"}
    return Response(text, media_type=media_type, headers=headers)


def _back(visit: Visit, escalation_id: UUID, token: str | None = None) -> Response:
    """To the page itself, wherever the form came from."""
    answer = RedirectResponse(_path(escalation_id), status_code=303, headers=page_frame.HEADERS)
    if token is not None:
        answer.headers.append("set-cookie", visit.control.origins.set_cookie(token))
    return answer


def _path(escalation_id: UUID) -> str:
    return f"/approve/{escalation_id}"


def _pre_cookie(visit: Visit) -> str:
    """The name of the cookie that stands for a browser before it is anybody's."""
    return "__Host-behavry-sign-in" if visit.control.origins.secure else "behavry_sign_in"


def _pre_set(visit: Visit, value: str, life_s: int) -> str:
    secure = "; Secure" if visit.control.origins.secure else ""
    return (
        f"{_pre_cookie(visit)}={value}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Strict{secure}"
    )
