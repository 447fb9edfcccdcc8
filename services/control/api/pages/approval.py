"""The page behind the link that an agent's user gets: `/approve/{id}`. Whoever opens it signs in,
sees the call and decides it, in a browser without script unless they have nothing but a passkey.

Only the id is in the address. Who that is, and that a form is our own, is sign_in.py's; who
may decide what is escalation_acts.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from services.control import escalations as rules
from services.control import problems
from services.control.api import escalation_acts as acts
from services.control.api.context import Call, Visit
from services.control.api.escalation_acts import Grant
from services.control.api.guards import anyone
from services.control.api.pages import approval_html as html
from services.control.api.pages import forms, frame, sign_in
from services.control.api.pages.forms import form_of
from services.control.api.pages.frame import file_of, page_of
from services.control.api.pages.sign_in import Page
from services.control.problems import Refusal
from services.control.roles import Role

router = APIRouter(prefix="/approve", include_in_schema=False)


@router.get("/style.css")
async def approval_style(_: Annotated[Visit, anyone()]) -> Response:
    return file_of(frame.STYLE, "text/css")


@router.get("/page.js")
async def approval_script(_: Annotated[Visit, anyone()]) -> Response:
    """Asks a passkey, and fills in what a link brought; of pages that need either."""
    return file_of(frame.SCRIPT, "text/javascript")


@router.get("/{escalation_id:uuid}")
async def show_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    try:
        call = await forms.signed_in(visit)
    except Refusal as refused:
        return await sign_in.first_form(visit, _page(escalation_id), refused)
    return await _shown(call, escalation_id)


@router.post("/{escalation_id:uuid}/sign-in")
async def sign_in_to_approve(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    return await sign_in.first_half(visit, _page(escalation_id))


@router.post("/{escalation_id:uuid}/second-factor")
async def prove_to_approve(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    return await sign_in.second_half(visit, _page(escalation_id))


@router.post("/{escalation_id:uuid}/sign-out")
async def sign_out_of_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    return await sign_in.leave(visit, _page(escalation_id))


@router.post("/{escalation_id:uuid}")
async def decide_approval(escalation_id: UUID, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the role  3. the password again, where it came along  4. the act.
    What was refused is said on the page, with what was typed still in it.
    """
    form, page = await form_of(visit.request), _page(escalation_id)
    try:
        call = await forms.signed_in(visit)
    except Refusal:
        words = "Your session has ended: nothing was decided. Sign in again."
        return await sign_in.form(visit, page, words, status=401)
    token = None
    try:
        await forms.check_own_form(call, form)  # 1
        if call.principal.role < Role.ANALYST:  # 2
            raise Refusal("ROLE_REQUIRED", "Your role does not suffice to decide this.")
        call, token = await sign_in.prove_again(call, form)  # 3
        await _act(call, str(escalation_id), form)  # 4
    except Refusal as refused:
        return await _shown(call, escalation_id, refused=refused, typed=form, token=token)
    return sign_in.with_session(visit, sign_in.back(page), token)


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
    page, status, error, headers = _page(escalation_id), 200, "", dict[str, str]()
    if refused is not None:
        status, error = problems.status_of(refused.code), refused.message
        headers = refused.headers
    try:
        row = await acts.look(call, str(escalation_id))
    except Refusal as missing:
        if missing.reason != "NOT_FOUND":
            raise
        person = sign_in.person_of(call, page)
        answer = page_of(html.not_found(page.path, person), status=404)
    else:
        rule = acts.rule_of(row)
        person = sign_in.person_of(call, page, step_up=rule.step_up)
        text = html.page(
            page.path,
            row,
            rule,
            person,
            _say(call, row, rule),
            now=call.now,
            error=error,
            typed=typed,
        )
        answer = page_of(text, status=status, headers=headers, scripted=person.scripted)
    return sign_in.with_session(call, answer, token)


def _say(call: Call, row: Mapping[str, Any], rule: rules.Rule) -> html.Say:
    me = call.principal.id
    return html.Say(
        may_decide=call.principal.role >= Role.ANALYST,
        eligible=me in rule.eligible,
        voted=next((vote["verdict"] for vote in row["votes"] if vote["user_id"] == me), None),
    )


def _page(escalation_id: UUID) -> Page:
    return Page(path=f"/approve/{escalation_id}", title="Sign in to decide")
