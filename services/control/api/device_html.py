"""The pages of a device's sign-in as HTML: its code is typed, what it asks for is shown, and
somebody says yes or no.

Pure: words in, text out. It says aloud what a stranger who sends such a link would keep quiet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from typing import Final

from services.control.api.approval_html import provider_link
from services.control.api.page_frame import alert, document, passkey_button, passkey_fields
from services.control.visible import markup

_WITHOUT_SCRIPT: Final = (
    "A passkey is asked by a script, and this browser runs none here. Allow JavaScript for this "
    "page, or set up one-time codes (behavry mfa add) and type one."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a device asked for."""

    code: str
    address: str
    age: timedelta
    step_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks. `csrf` guards what they send."""

    name: str
    role: str
    tenant: str
    csrf: str = field(repr=False)
    #: Has to prove once more who they are: by a code, a passkey, their provider, else the password.
    needs_proof: bool = False
    by_code: bool = False
    by_passkey: bool = False
    #: Where the provider asks them again.
    again: str | None = None

    @property
    def scripted(self) -> bool:
        return self.needs_proof and self.by_passkey


def enter(error: str = "") -> str:
    body = f"""
<h1>Sign in at a command line</h1>
{alert(error)}
<form method="get" action="/device">
<label for="user_code">The code that the command line shows</label>
<input type="text" id="user_code" name="user_code" autocomplete="off" autocapitalize="characters"
 spellcheck="false" maxlength="20" required>
<button type="submit">Go on</button>
</form>"""
    return document("Sign in at a command line", body, failed=bool(error))


def sign_in(path: str, *, token: str, provider: str | None, error: str = "") -> str:
    """The same whatever the code: nothing is told before the sign-in."""
    body = f"""
<h1>Sign in first</h1>
{alert(error)}{provider_link(provider)}
<form method="post" action="{escape(path)}/sign-in">
<input type="hidden" name="token" value="{escape(token)}">
<label for="username">User name</label>
<input type="text" id="username" name="username" autocomplete="username" autocapitalize="none"
 spellcheck="false" maxlength="320" required>
<label for="password">Password</label>
<input type="password" id="password" name="password" autocomplete="current-password"
 maxlength="1024" required>
<button type="submit">Sign in</button>
</form>"""
    return document("Sign in", body, failed=bool(error))


def unknown(path: str, viewer: Viewer) -> str:
    """Of a code that is none, was answered, or is too old: told alike."""
    words = "<p>That code is not good, or not any more. Begin again at the command line.</p>"
    retry = '<p><a href="/device">Type another code</a></p>'
    return document(
        "Unknown code", f"<h1>Unknown code</h1>{words}{retry}", header=_who(path, viewer)
    )


def page(path: str, request: Request, viewer: Viewer, *, error: str = "") -> str:
    minutes = int(request.age.total_seconds()) // 60
    since = f"{minutes} minutes ago" if minutes > 1 else "just now"
    gets = f"a session as {markup(viewer.name)}, {markup(viewer.role)} of {markup(viewer.tenant)}"
    fresh = ", with a fresh proof that it is you" if request.step_up else ""
    body = f"""
<h1>Is this you at a command line?</h1>
{alert(error)}
<p class="state" id="state">Allow it only if you have just begun this yourself, and your command
line shows the code <code>{escape(request.code)}</code>. Nobody who sends you such a link means
well.</p>
<dl><dt>It asks for</dt><dd>{gets}{fresh}: it may do what you may, for as long as this session of
yours lasts</dd>
<dt>From the address</dt><dd>{markup(request.address or "unknown")}</dd>
<dt>Asked</dt><dd>{since}</dd></dl>
{_allow(path, viewer)}
<form method="post" action="{escape(path)}">
<input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<input type="hidden" name="act" value="deny">
<button type="submit">No, this is not me</button>
</form>"""
    return document(
        "Is this you?",
        body,
        header=_who(path, viewer),
        failed=bool(error),
        scripted=viewer.scripted,
    )


def done(*, approved: bool) -> str:
    words = "The command line is signed in." if approved else "It was refused. Nothing was given."
    body = f"<h1>{words}</h1><p>You may close this page.</p>"
    return document("Done", body)


def _allow(path: str, viewer: Viewer) -> str:
    if viewer.needs_proof and viewer.again is not None:
        link = f'<a href="{escape(viewer.again)}">Prove it with your organization</a>'
        return f"<p>This needs a fresh proof that it is you. {link}, then allow it here.</p>"
    submit = '<button type="submit">Yes, allow it</button>'
    if viewer.needs_proof and viewer.by_passkey:
        submit = submit if viewer.by_code else ""
        submit += passkey_button("Yes, with your passkey")
    return f"""<form method="post" action="{escape(path)}">
<input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<input type="hidden" name="act" value="approve">{_proof(viewer)}
{submit}
</form>"""


def _proof(viewer: Viewer) -> str:
    if not viewer.needs_proof:
        return ""
    fields = '<p class="hint">This needs a fresh proof that it is you.</p>'
    if viewer.by_code:
        required = "" if viewer.by_passkey else " required"
        fields += (
            '<label for="code">A one-time code</label><input type="text" id="code" name="code"'
            f' autocomplete="one-time-code" inputmode="numeric" maxlength="6"{required}>'
        )
    if viewer.by_passkey:
        fields += passkey_fields(_WITHOUT_SCRIPT)
    if not viewer.by_code and not viewer.by_passkey:
        fields += (
            '<label for="password">Your password, again</label><input type="password"'
            ' id="password" name="password" autocomplete="current-password" maxlength="1024"'
            " required>"
        )
    return fields


def _who(path: str, viewer: Viewer) -> str:
    who = f"Signed in as {markup(viewer.name)} at {markup(viewer.tenant)}"
    return f"""<span>{who}</span>
<form method="post" action="{escape(path)}/sign-out">
<input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<button type="submit">Sign out</button></form>"""
