"""The sign-in before a page of ours, in plain forms: a password, the second half for whoever has a
second factor, and back to the same page.

Guarded here: a form is taken from our own page alone and from the browser it was made for
(forms.py), a sign-in makes a new session id, the way back is always the page itself, and
before the sign-in nothing depends on what its address names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.responses import RedirectResponse, Response

from services.control import problems, sessions
from services.control.api import auth, proofs
from services.control.api.auth_oidc import login_path
from services.control.api.context import Call, Visit
from services.control.api.pages import forms, frame
from services.control.api.pages import sign_in_html as html
from services.control.api.pages.forms import form_of
from services.control.api.pages.frame import page_of
from services.control.api.proofs import Who
from services.control.problems import Refusal
from services.control.store.people import Account

_MAX_NAME: Final = 320
_MAX_PASSWORD: Final = 1024
_TOO_OLD: Final = "That form was too old. Try again."
_WRONG: Final = "User name or password is wrong."
#: What is said to somebody who was in before; to all others nothing is.
_WHY_AGAIN: Final = {
    "SESSION_EXPIRED": "Your session has ended.",
    "SECOND_FACTOR_REQUIRED": "Add a passkey or one-time codes to your account first.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    path: str
    #: Above its sign-in.
    title: str


async def first_form(visit: Visit, page: Page, refused: Refusal) -> Response:
    """Of somebody who came without a session that counts."""
    return await form(visit, page, _WHY_AGAIN.get(refused.reason, ""))


async def first_half(visit: Visit, page: Page) -> Response:
    """1. from our own form  2. the password  3. whoever has a second factor and gave no one-time
    code is asked for it  4. a new session, and back to the page.
    """
    typed = await form_of(visit.request)
    if not await forms.of_this_browser(visit, typed):  # 1
        return await form(visit, page, _TOO_OLD, status=403)
    username, password = typed.get("username", ""), typed.get("password", "")
    fit = 1 <= len(username) <= _MAX_NAME and 1 <= len(password) <= _MAX_PASSWORD
    if not fit or "\0" in username:
        return await form(visit, page, _WRONG, status=401)
    try:
        account, known_as = await auth.prove(visit, username, password)  # 2
        code = typed.get("code", "").strip()
        if account.factors and not code:  # 3
            return await _second_form(visit, page, account)
        token = await auth.open_at_once(visit, account, known_as, "browser", code)  # 4
    except Refusal as refused:
        return await _not_in(visit, page, refused)
    return _in(visit, page, token)


async def second_half(visit: Visit, page: Page) -> Response:
    """The other half: a passkey, or a code."""
    typed = await form_of(visit.request)
    if not await forms.of_this_browser(visit, typed):
        return await form(visit, page, _TOO_OLD, status=403)
    given, challenge = forms.proof_of_sign_in(typed), typed.get("challenge", "")[:200]
    try:
        _, token = await auth.second_half(visit, given, challenge)
    except Refusal as refused:
        return await _not_in(visit, page, refused)
    return _in(visit, page, token)


async def leave(visit: Visit, page: Page) -> Response:
    typed = await form_of(visit.request)
    call = await forms.signed_in(visit)
    await forms.check_own_form(call, typed)
    await auth.end(call)
    answer = back(page)
    answer.headers.append("set-cookie", visit.control.origins.clear_cookie())
    return answer


async def prove_again(call: Call, typed: Mapping[str, str]) -> tuple[Call, str | None]:
    """The call as it goes on where a fresh proof came along, and its session's new token. Raises
    STEP_UP_REQUIRED, RATE_LIMITED.
    """
    again = forms.proof_again(typed)
    if again is None:
        return call, None
    token = await auth.give_again(call, "browser", again)
    return forms.proven(call, token), token


def person_of(call: Call, page: Page, *, step_up: bool = False) -> html.Person:
    """Whoever is signed in, as the page shows them; `step_up`: what it offers needs a proof."""
    principal = call.principal
    return html.Person(
        name=principal.name,
        role=principal.role.key,
        tenant=principal.tenant_slug,
        csrf=principal.csrf_token or "",
        needs_proof=step_up and not call.stepped_up,
        by_code="totp" in principal.factors,
        by_passkey="passkey" in principal.factors,
        again=forms.provider_again(call, page.path),
    )


# Answers ------------------------------------------------------------------------------------------


async def form(
    visit: Visit,
    page: Page,
    error: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    browser = forms.browser(visit)
    slug = visit.request.query_params.get("tenant", "")[:40]
    text = html.sign_in(
        page.path,
        title=page.title,
        token=sessions.csrf_token(browser),
        provider=await login_path(visit, slug, return_to=page.path),
        error=error,
    )
    answer = page_of(text, status=status, headers=headers)
    forms.keep_browser(visit, answer, browser)
    return answer


async def _second_form(visit: Visit, page: Page, account: Account) -> Response:
    who = Who(tenant=account.tenant, user=account.user_id)
    challenge, options = await proofs.ask(visit, who, "sign_in", "browser")
    text = html.second_factor(
        page.path,
        token=sessions.csrf_token(forms.browser(visit)),
        challenge=challenge,
        options=options,
    )
    return page_of(text, scripted=options is not None)


async def _not_in(visit: Visit, page: Page, refused: Refusal) -> Response:
    """Back to the first half. Raises what is no refusal of a sign-in."""
    if refused.reason not in {"UNAUTHENTICATED", "RATE_LIMITED"}:
        raise refused
    status = problems.status_of(refused.code)
    return await form(visit, page, refused.message, status=status, headers=refused.headers)


def _in(visit: Visit, page: Page, token: str) -> Response:
    answer = with_session(visit, back(page), token)
    forms.keep_browser(visit, answer, "")
    return answer


def back(page: Page, query: str = "") -> Response:
    """To the page itself, wherever the form came from."""
    return RedirectResponse(page.path + query, status_code=303, headers=frame.HEADERS)


def with_session(visit: Visit, answer: Response, token: str | None) -> Response:
    """The answer, and the session's new token, if it has got one."""
    if token is not None:
        answer.headers.append("set-cookie", visit.control.origins.set_cookie(token))
    return answer
