"""The page behind the link that an agent's user gets: `/approve/{id}`. Whoever opens it signs in,
sees the call and decides it, in a browser without script unless they have nothing but a passkey.

Only the id is in the address, and before the sign-in nothing depends on it. Guarded here: a form is
taken from our own page alone (Origin and a token of the session, or before there is one a token of
a cookie), a sign-in and a password given again make a new session id, the way back is always this
same page, and nobody may put it into a frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from services.control import escalations as rules
from services.control import problems, sessions
from services.control.api import approval_html as html
from services.control.api import auth, page_frame, proofs
from services.control.api import escalation_acts as acts
from services.control.api import page_sessions as standing
from services.control.api.auth_oidc import login_path
from services.control.api.context import Call, Visit
from services.control.api.escalation_acts import Grant
from services.control.api.guards import anyone
from services.control.api.page_frame import file_of, page_of
from services.control.api.page_sessions import form_of
from services.control.api.proofs import Who
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store.people import Account

router = APIRouter(prefix="/approve", include_in_schema=False)


@router.get("/style.css")
async def approval_style(_: Annotated[Visit, anyone()]) -> Response:
    return file_of(page_frame.STYLE, "text/css")


@router.get("/page.js")
async def approval_script(_: Annotated[Visit, anyone()]) -> Response:
    """Asks a passkey, and fills in what a link brought; of pages that need either."""
    return file_of(page_frame.SCRIPT, "text/javascript")


@router.get("/{escalation_id:uuid}")
async def show_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    try:
        call = await standing.signed_in(visit)
    except Refusal as refused:
        words = {
            "SESSION_EXPIRED": "Your session has ended.",
            "SECOND_FACTOR_REQUIRED": "Add a passkey or one-time codes to your account first.",
        }
        return await _sign_in_form(visit, escalation_id, words.get(refused.reason, ""))
    return await _shown(call, escalation_id)


@router.post("/{escalation_id:uuid}/sign-in")
async def sign_in_to_approve(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the password  3. whoever has a second factor and gave no one-time
    code is asked for it  4. a new session, and back to the page.
    """
    form = await form_of(visit.request)
    if not await standing.of_this_browser(visit, form):  # 1
        return await _sign_in_form(
            visit, escalation_id, "That form was too old. Try again.", status=403
        )
    username, password = form.get("username", ""), form.get("password", "")
    if not 1 <= len(username) <= 320 or not 1 <= len(password) <= 1024 or "\0" in username:
        return await _sign_in_form(
            visit, escalation_id, "User name or password is wrong.", status=401
        )
    try:
        account, known_as = await auth.prove(visit, username, password)  # 2
        code = form.get("code", "").strip()
        if account.factors and not code:  # 3
            return await _second_form(visit, escalation_id, account)
        token = await auth.open_at_once(visit, account, known_as, "browser", code)  # 4
    except Refusal as refused:
        return await _not_in(visit, escalation_id, refused)
    return _in(visit, escalation_id, token)


@router.post("/{escalation_id:uuid}/second-factor")
async def prove_to_approve(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    """The other half of that sign-in: a passkey, or a code."""
    form = await form_of(visit.request)
    if not await standing.of_this_browser(visit, form):
        return await _sign_in_form(
            visit, escalation_id, "That form was too old. Try again.", status=403
        )
    try:
        _, token = await auth.second_half(
            visit, standing.proof_of_sign_in(form), form.get("challenge", "")[:200]
        )
    except Refusal as refused:
        return await _not_in(visit, escalation_id, refused)
    return _in(visit, escalation_id, token)


@router.post("/{escalation_id:uuid}/sign-out")
async def sign_out_of_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    form = await form_of(visit.request)
    call = await standing.signed_in(visit)
    await standing.check_own_form(call, form)
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
        call = await standing.signed_in(visit)
    except Refusal:
        words = "Your session has ended: nothing was decided. Sign in again."
        return await _sign_in_form(visit, escalation_id, words, status=401)
    token = None
    try:
        await standing.check_own_form(call, form)  # 1
        if call.principal.role < Role.ANALYST:  # 2
            raise Refusal("ROLE_REQUIRED", "Your role does not suffice to decide this.")
        again = standing.proof_again(form)  # 3
        if again is not None:
            token = await auth.give_again(call, "browser", again)
            call = standing.proven(call, token)
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
        again=standing.provider_again(call, _path(row["id"])) if row else None,
    )


async def _sign_in_form(
    visit: Visit,
    escalation_id: UUID,
    error: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    browser, path = standing.browser(visit), _path(escalation_id)
    slug = visit.request.query_params.get("tenant", "")[:40]
    provider = await login_path(visit, slug, return_to=path)
    token = sessions.csrf_token(browser)
    text = html.sign_in(path, token=token, provider=provider, error=error)
    answer = page_of(text, status=status, headers=headers)
    standing.keep_browser(visit, answer, browser)
    return answer


async def _second_form(visit: Visit, escalation_id: UUID, account: Account) -> Response:
    who = Who(tenant=account.tenant, user=account.user_id)
    challenge, options = await proofs.ask(visit, who, "sign_in", "browser")
    text = html.second_factor(
        _path(escalation_id),
        token=sessions.csrf_token(standing.browser(visit)),
        challenge=challenge,
        options=options,
    )
    return page_of(text, scripted=options is not None)


async def _not_in(visit: Visit, escalation_id: UUID, refused: Refusal) -> Response:
    """Back to the first half. Raises what is no refusal of a sign-in."""
    if refused.reason not in {"UNAUTHENTICATED", "RATE_LIMITED"}:
        raise refused
    return await _sign_in_form(
        visit,
        escalation_id,
        refused.message,
        status=problems.status_of(refused.code),
        headers=refused.headers,
    )


def _in(visit: Visit, escalation_id: UUID, token: str) -> Response:
    answer = _back(visit, escalation_id, token)
    standing.keep_browser(visit, answer, "")
    return answer


def _back(visit: Visit, escalation_id: UUID, token: str | None = None) -> Response:
    """To the page itself, wherever the form came from."""
    answer = RedirectResponse(_path(escalation_id), status_code=303, headers=page_frame.HEADERS)
    if token is not None:
        answer.headers.append("set-cookie", visit.control.origins.set_cookie(token))
    return answer


def _path(escalation_id: UUID | str) -> str:
    return f"/approve/{escalation_id}"
