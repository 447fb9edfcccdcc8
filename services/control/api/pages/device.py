"""The page where somebody lets a device in (RFC 8628 3.3): `/device`, and `/device/{code}`. They
sign in here, by whatever their tenant signs in with; see what asks; and say yes or no, once.

Who that is, and that a form is our own, is sign_in.py's: before the sign-in nothing depends on
the code. After it, codes that are none are few per person, and on record. What is given is never
more than the session that gives it, and ends no later.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import Response

from services.common.ids import NIL_TENANT
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, device_codes, limits, problems
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone
from services.control.api.pages import device_html as html
from services.control.api.pages import forms, sign_in
from services.control.api.pages.forms import form_of
from services.control.api.pages.frame import page_of
from services.control.api.pages.sign_in import Page
from services.control.problems import Refusal
from services.control.store import devices as store
from services.control.store.devices import Asked

router = APIRouter(prefix="/device", include_in_schema=False)

_CODE: Final = "{user_code:str}"


@router.get("")
async def enter_user_code(visit: Annotated[Visit, anyone()]) -> Response:
    given = visit.request.query_params.get("user_code", "")
    if not given:
        return page_of(html.enter())
    code = device_codes.typed(given)
    if code is None:
        return page_of(html.enter("That is no such code: eight letters."), status=400)
    tenant = visit.request.query_params.get("tenant", "")[:40]
    return sign_in.back(_page(code), f"?{urlencode({'tenant': tenant})}" if tenant else "")


@router.get(f"/{_CODE}")
async def show_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    page = _page(user_code)
    try:
        call = await forms.signed_in(visit)
    except Refusal as refused:
        return await sign_in.first_form(visit, page, refused)
    return await _shown(call, user_code)


@router.post(f"/{_CODE}/sign-in")
async def sign_in_for_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    return await sign_in.first_half(visit, _page(user_code))


@router.post(f"/{_CODE}/second-factor")
async def prove_for_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    return await sign_in.second_half(visit, _page(user_code))


@router.post(f"/{_CODE}/sign-out")
async def sign_out_of_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    return await sign_in.leave(visit, _page(user_code))


@router.post(f"/{_CODE}")
async def answer_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the code  3. a fresh proof, where it is due  4. the answer, once,
    with its record.
    """
    page, form = _page(user_code), await form_of(visit.request)
    try:
        call = await forms.signed_in(visit)
    except Refusal:
        words = "Your session has ended: nothing was done. Sign in again."
        return await sign_in.form(visit, page, words, status=401)
    token = None
    try:
        await forms.check_own_form(call, form)  # 1
        asked = await _find(call, user_code)  # 2
        if asked is None:
            return _unknown(call, page)
        approved = form.get("act") == "approve"
        if not approved and form.get("act") != "deny":
            raise Refusal("VALIDATION_FAILED", "Choose what to do.")
        if approved:  # 3
            call, token = await sign_in.prove_again(call, form)
        if approved and asked.step_up and not call.stepped_up:
            raise Refusal("STEP_UP_REQUIRED", "This needs a fresh proof that it is you.")
        await _answer(call, asked, approved=approved)  # 4
    except Refusal as refused:
        return await _shown(call, user_code, refused=refused, token=token)
    return sign_in.with_session(visit, page_of(html.done(approved=approved)), token)


async def _answer(call: Call, asked: Asked, *, approved: bool) -> None:
    principal = call.principal
    async with tenant_tx(call.control.pool, call.tenant) as connection:
        done = await store.answer(
            connection,
            call.tenant,
            asked.device_sha256,
            user=principal.id,
            session=principal.session_id or "",
            approved=approved,
            now=call.now,
        )
        if not done:
            raise Refusal("CONFLICT", "Somebody has answered it already.")
        what = "user.device_approved" if approved else "user.device_denied"
        record = audit_records.user(what, call.tenant, call.came(principal.actor()))
        await call.control.recorder.put(connection, record)
    call.control.recorder.wake()


async def _find(call: Call, code: str) -> Asked | None:
    """What the code is of, if it is still open. One that is none counts, and is on record. Raises
    RATE_LIMITED.
    """
    window, now = call.control.limits.user_codes, call.now
    key = (call.tenant, call.principal.id)
    try:
        await window.take(key)
    except limits.TooMany as too_many:
        wait = {"retry-after": str(too_many.retry_after_s)}
        words = "Too many codes that are none. Try again later."
        raise Refusal("RATE_LIMITED", words, headers=wait) from None
    async with tenant_tx(call.control.pool, NIL_TENANT) as connection:
        asked = await store.by_user_code(connection, device_codes.kept(code))
        if asked is not None and now < asked.expires_at:
            await window.give_back(key)
            if await store.answered(connection, asked.device_sha256) is None:
                return asked
            return None
    await call.record_failure(call.tenant, call.principal.actor(), "user_code_unknown")
    return None


# Answers ------------------------------------------------------------------------------------------


async def _shown(
    call: Call, code: str, *, refused: Refusal | None = None, token: str | None = None
) -> Response:
    page, error, status, headers = _page(code), "", 200, dict[str, str]()
    if refused is not None:
        error, status, headers = refused.message, problems.status_of(refused.code), refused.headers
    try:
        asked = await _find(call, code)
    except Refusal as limited:
        status, headers = problems.status_of(limited.code), limited.headers
        answer = page_of(html.enter(limited.message), status=status, headers=headers)
    else:
        if asked is None:
            answer = _unknown(call, page)
        else:
            person = sign_in.person_of(call, page, step_up=asked.step_up)
            request = html.Request(
                code=code,
                address=asked.client_ip,
                age=call.now - asked.created_at,
                step_up=asked.step_up,
            )
            text = html.page(page.path, request, person, error=error)
            answer = page_of(text, status=status, headers=headers, scripted=person.scripted)
    return sign_in.with_session(call, answer, token)


def _unknown(call: Call, page: Page) -> Response:
    person = sign_in.person_of(call, page)
    return page_of(html.unknown(page.path, person), status=404)


def _page(user_code: str) -> Page:
    """Raises NOT_FOUND for what can be no code."""
    if device_codes.typed(user_code) != user_code:
        raise problems.not_found("code")
    return Page(path=f"/device/{user_code}", title="Sign in first")
