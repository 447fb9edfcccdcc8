"""The pages of a device's sign-in as HTML: its code is typed, what it asks for is shown, and
somebody says yes or no.

Pure: words in, text out. It says aloud what a stranger who sends such a link would keep quiet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from html import escape

from services.control.api.pages.frame import alert, document
from services.control.api.pages.sign_in_html import Person, proof, proving_buttons, signed_in
from services.control.visible import markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a device asked for."""

    code: str
    address: str
    age: timedelta
    step_up: bool


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


def unknown(path: str, person: Person) -> str:
    """Of a code that is none, was answered, or is too old: told alike."""
    words = "<p>That code is not good, or not any more. Begin again at the command line.</p>"
    retry = '<p><a href="/device">Type another code</a></p>'
    return document(
        "Unknown code", f"<h1>Unknown code</h1>{words}{retry}", header=signed_in(path, person)
    )


def page(path: str, request: Request, person: Person, *, error: str = "") -> str:
    minutes = int(request.age.total_seconds()) // 60
    since = f"{minutes} minutes ago" if minutes > 1 else "just now"
    gets = f"a session as {markup(person.name)}, {markup(person.role)} of {markup(person.tenant)}"
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
{_allow(path, person)}
<form method="post" action="{escape(path)}">
<input type="hidden" name="csrf" value="{escape(person.csrf)}">
<input type="hidden" name="act" value="deny">
<button type="submit">No, this is not me</button>
</form>"""
    return document(
        "Is this you?",
        body,
        header=signed_in(path, person),
        failed=bool(error),
        scripted=person.scripted,
    )


def done(*, approved: bool) -> str:
    words = "The command line is signed in." if approved else "It was refused. Nothing was given."
    body = f"<h1>{words}</h1><p>You may close this page.</p>"
    return document("Done", body)


def _allow(path: str, person: Person) -> str:
    if (provider := person.provider_proves) is not None:
        link = f'<a href="{escape(provider)}">Prove it with your organization</a>'
        return f"<p>This needs a fresh proof that it is you. {link}, then allow it here.</p>"
    return f"""<form method="post" action="{escape(path)}">
<input type="hidden" name="csrf" value="{escape(person.csrf)}">
<input type="hidden" name="act" value="approve">{proof("approve", person)}
{proving_buttons("Yes, allow it", person)}
</form>"""
