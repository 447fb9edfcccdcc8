"""The pages behind the links in letters: `/join` with an invite, `/reset` with another password.

What the link is worth stands behind its `#`, which no browser sends and no server logs; the page's
script puts it into the form, and whoever has no script pastes it. Looking at a page uses nothing
up: mail programs look at links. Forms are taken from our own page alone; what is wrong is told
alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Annotated, Final

from fastapi import APIRouter
from starlette.responses import Response

from services.control import invites as invite_rules
from services.control import password_resets, problems
from services.control.api import invites, passwords
from services.control.api.context import Visit
from services.control.api.guards import anyone
from services.control.api.pages.forms import check_own_origin, form_of
from services.control.api.pages.frame import alert, document, page_of
from services.control.passwords import MIN_CHARACTERS
from services.control.problems import Refusal
from services.control.visible import markup

router = APIRouter(include_in_schema=False)

_TITLES: Final = {"join": "Come in", "reset": "Choose another password"}
_TOLD: Final = frozenset({"INVITE_INVALID", "PASSWORD_RESET_INVALID", "RATE_LIMITED", "CONFLICT"})
_LONGEST: Final = 1024


@router.get("/join")
async def show_join(_: Annotated[Visit, anyone()]) -> Response:
    return _form("join")


@router.post("/join")
async def join(visit: Annotated[Visit, anyone()]) -> Response:
    """As POST /api/v1/invites:accept."""
    return await _used(visit, "join")


@router.get("/reset")
async def show_reset(_: Annotated[Visit, anyone()]) -> Response:
    return _form("reset")


@router.post("/reset")
async def reset(visit: Annotated[Visit, anyone()]) -> Response:
    """As POST /api/v1/auth/password:reset."""
    return await _used(visit, "reset")


async def _used(visit: Visit, page: str) -> Response:
    """1. from our own page  2. what was typed  3. the link, used up."""
    form = await form_of(visit.request)
    await check_own_origin(visit)  # 1
    token, password = form.get("token", "").strip(), form.get("password", "")
    if not MIN_CHARACTERS <= len(password) <= _LONGEST or "\0" in password:  # 2
        words = f"A password has at least {MIN_CHARACTERS} characters."
        return _form(page, error=words, token=token, status=422)
    if password != form.get("again"):
        return _form(page, error="The passwords differ.", token=token, status=422)
    try:
        if page == "join":  # 3
            name = (await invites.use_link(visit, token, password)).username
        else:
            name = await passwords.use_link(visit, token, password)
    except Refusal as refused:
        if refused.reason not in _TOLD:
            raise
        status = problems.status_of(refused.code)
        return _form(page, error=refused.message, status=status, headers=refused.headers)
    return _done(name)


def _form(
    page: str,
    *,
    error: str = "",
    token: str = "",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A token that looks like one comes back with the form that was refused."""
    looks = invite_rules.is_token if page == "join" else password_resets.is_token
    body = f"""
<h1>{_TITLES[page]}</h1>
{alert(error)}
<form method="post" action="/{page}">
<p><label for="token">What stands behind the # of your link</label>
<input type="text" id="token" name="token" value="{escape(token if looks(token) else "")}"
 autocomplete="off" autocapitalize="none" spellcheck="false" maxlength="200" required
 data-from-link></p>
<label for="password">Your new password, of at least {MIN_CHARACTERS} characters</label>
<input type="password" id="password" name="password" autocomplete="new-password"
 minlength="{MIN_CHARACTERS}" maxlength="{_LONGEST}" required>
<label for="again">The same again</label>
<input type="password" id="again" name="again" autocomplete="new-password"
 minlength="{MIN_CHARACTERS}" maxlength="{_LONGEST}" required>
<button type="submit">{_TITLES[page]}</button>
</form>"""
    text = document(_TITLES[page], body, failed=bool(error), scripted=True)
    return page_of(text, status=status, headers=headers, scripted=True)


def _done(name: str) -> Response:
    body = (
        f"<h1>Done</h1><p>Sign in as <strong>{markup(name)}</strong> with the password that you "
        "have chosen. The link is used up.</p>"
    )
    return page_of(document("Done", body))
