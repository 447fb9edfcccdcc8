"""What a page shows of whoever stands before it, as HTML: the two forms of a sign-in, who is signed
in, and the fields that prove it once more.

Pure: words in, text out. Everything works as plain forms, but for passkeys, which a browser asks
from a script alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from services.control.api.pages.frame import alert, document, passkey_button, passkey_fields
from services.control.visible import markup

#: What whoever has a passkey and no script is told.
_WITHOUT_SCRIPT: Final = (
    "A passkey is asked by a script, and this browser runs none here. Allow JavaScript for this "
    "page, or set up one-time codes (behavry mfa add) and type one."
)
_WITHOUT_SCRIPT_AT_SIGN_IN: Final = (
    "A passkey is asked by a script, and this browser runs none here. Allow JavaScript for this "
    "page, or type a one-time code or a recovery code."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whoever is signed in. `csrf` guards what they send."""

    name: str
    role: str
    tenant: str
    csrf: str = field(repr=False)
    #: Has to prove once more who they are; by the password where they have neither of these.
    needs_proof: bool = False
    by_code: bool = False
    by_passkey: bool = False
    #: Where the provider that they came by asks them again.
    again: str | None = None

    @property
    def scripted(self) -> bool:
        """Whether a page has something for its script to do."""
        return self.needs_proof and self.by_passkey

    @property
    def provider_proves(self) -> str | None:
        """Where nothing else can prove it: the way to the provider."""
        own = self.by_code or self.by_passkey
        return self.again if self.needs_proof and not own else None


def sign_in(
    path: str, *, title: str, token: str, provider: str | None = None, error: str = ""
) -> str:
    """The same whatever the address names: nothing is told before the sign-in. `provider`: where
    the tenant's people sign in.
    """
    body = f"""
<h1>{title}</h1>
{alert(error)}{_provider_link(provider)}
<form method="post" action="{escape(path)}/sign-in">
<input type="hidden" name="token" value="{escape(token)}">
<label for="username">User name</label>
<input type="text" id="username" name="username" autocomplete="username" autocapitalize="none"
 spellcheck="false" maxlength="320" required>
<label for="password">Password</label>
<input type="password" id="password" name="password" autocomplete="current-password"
 maxlength="1024" required>
<label for="code">One-time code, if you have set them up</label>
<input type="text" id="code" name="code" autocomplete="one-time-code" inputmode="numeric"
 maxlength="6">
<button type="submit">Sign in</button>
</form>"""
    return document("Sign in", body, failed=bool(error))


def _provider_link(provider: str | None) -> str:
    if provider is None:
        return ""
    link = f'<a href="{escape(provider)}">Sign in with your organization</a>'
    return f"<p>{link}, or here with a password that you have here.</p>"


def second_factor(
    path: str, *, token: str, challenge: str, options: Mapping[str, Any] | None
) -> str:
    """The other half of a sign-in. `options`: what a passkey is asked, if there is one."""
    asks = passkey_fields(_WITHOUT_SCRIPT_AT_SIGN_IN, challenge) if options else ""
    button = passkey_button("Sign in with your passkey") if options else ""
    asked = f' data-passkey="{escape(json.dumps(options))}"' if options else ""
    body = f"""
<h1>A second proof that it is you</h1>
<form method="post" action="{escape(path)}/second-factor"{asked}>
<input type="hidden" name="token" value="{escape(token)}">
{asks or f'<input type="hidden" name="challenge" value="{escape(challenge)}">'}
{button}
<label for="code">A one-time code, or a recovery code</label>
<input type="text" id="code" name="code" autocomplete="one-time-code" maxlength="64">
<button type="submit">Sign in</button>
</form>"""
    return document("Sign in", body, scripted=bool(options))


def signed_in(path: str, person: Person) -> str:
    """A page's header: who it is, and the way out."""
    who = f"Signed in as {markup(person.name)} at {markup(person.tenant)}"
    return f"""<span>{who}</span>
<form method="post" action="{escape(path)}/sign-out">
<input type="hidden" name="csrf" value="{escape(person.csrf)}">
<button type="submit">Sign out</button></form>"""


def proof(act: str, person: Person) -> str:
    """What proves who one is, once more: a one-time code, a passkey, or the password. A page may
    have several such forms; `act` tells their fields apart.
    """
    if not person.needs_proof:
        return ""
    fields = f'<p class="hint" id="{act}-why">This needs a fresh proof that it is you.</p>'
    if person.by_code:
        fields += _code(act, required=not person.by_passkey)
    if person.by_passkey:
        fields += passkey_fields(_WITHOUT_SCRIPT)
    if not person.by_code and not person.by_passkey:
        fields += (
            '<input type="text" name="username" autocomplete="username" hidden readonly'
            f' value="{escape(person.name)}">'
            f'<label for="{act}-password">Your password, again</label>'
            f'<input type="password" id="{act}-password" name="password"'
            f' autocomplete="current-password" maxlength="1024" required'
            f' aria-describedby="{act}-why">'
        )
    return fields


def _code(act: str, *, required: bool) -> str:
    return (
        f'<label for="{act}-code">A one-time code</label>'
        f'<input type="text" id="{act}-code" name="code" autocomplete="one-time-code"'
        f' inputmode="numeric" maxlength="6"{" required" if required else ""}'
        f' aria-describedby="{act}-why">'
    )


def proving_buttons(words: str, person: Person) -> str:
    """Of a form with `proof`: whoever can prove it by a passkey alone has that button alone."""
    alone = person.needs_proof and person.by_passkey and not person.by_code
    buttons = "" if alone else submit(words)
    if person.scripted:
        buttons += passkey_button(f"{words}, with your passkey")
    return buttons


def submit(words: str) -> str:
    return f'<button type="submit">{words}</button>'
