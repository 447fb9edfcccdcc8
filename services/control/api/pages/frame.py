"""What the pages of control share that a person opens from a link: the frame, its style, its one
script, and the headers under which a browser takes nothing else.

The script fills a form from the link's fragment, which never travels, and asks a passkey. Without
it the forms work; where they cannot, they say what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

from starlette.responses import HTMLResponse, Response

_CSP: Final = (
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
HEADERS: Final = {
    "content-security-policy": _CSP,
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    # Under `no-referrer` a browser names no Origin with a form.
    "referrer-policy": "same-origin",
}
#: Of pages with the script.
SCRIPTED: Final = {
    **HEADERS,
    "content-security-policy": f"{_CSP}; script-src 'self'; connect-src 'self'",
}
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #595959; --line: #767676;
  --link: #0b57d0; --bad: #a3120a; --note: #f1f3f4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f0f0; --paper: #161616; --soft: #b8b8b8; --line: #8c8c8c; --link: #8ab4f8;
    --bad: #ffb4ab; --note: #262626 } }
body { background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 46rem; padding: 1rem }
header, footer { color: var(--soft); display: flex; flex-wrap: wrap; gap: 1rem;
  justify-content: space-between; align-items: center }
a { color: var(--link) }
h1 { font-size: 1.6rem; margin: 1rem 0 .5rem } h2 { font-size: 1.15rem; margin: 1.5rem 0 .5rem }
dl { display: grid; gap: .25rem 1rem; grid-template-columns: minmax(7rem, max-content) 1fr;
  margin: 0 } dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
code, .unseen { font-family: ui-monospace, monospace }
.unseen { border: 1px solid var(--bad); color: var(--bad); font-size: .85em }
.alert { border: 2px solid var(--bad); color: var(--bad); padding: .5rem 1rem }
.state { background: var(--note); border-left: .3rem solid var(--line); padding: .5rem 1rem }
form { margin: 0 }
main form { border: 1px solid var(--line); margin: .75rem 0; padding: .75rem 1rem }
label { display: block; margin: .5rem 0 .2rem } .hint { color: var(--soft) }
input, textarea, button { background: var(--paper); border: 1px solid var(--line);
  color: var(--ink); font: inherit; padding: .4rem .6rem }
textarea, input[type=text], input[type=password] { box-sizing: border-box; width: 100% }
button { cursor: pointer; font-weight: 600; margin-top: .75rem }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
"""
SCRIPT: Final = r"""
"use strict";
const field = document.querySelector("input[data-from-link]");
if (field && location.hash.length > 1) {
  field.value = location.hash.slice(1);
  field.closest("p").hidden = true;
  history.replaceState(null, "", location.pathname);
}

for (const told of document.querySelectorAll("[data-without-script]")) told.hidden = true;

const bytes = (text) =>
  Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const text = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer)))
    .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

async function asked(form) {
  if (form.dataset.passkey) return JSON.parse(form.dataset.passkey);
  const answer = await fetch("/api/v1/auth/step-up:begin", {
    method: "POST",
    headers: { "x-csrf-token": form.elements.csrf.value },
  });
  if (!answer.ok) throw new Error("refused");
  const told = await answer.json();
  form.elements.challenge.value = told.token;
  return told.passkey;
}

async function prove(form) {
  const options = await asked(form);
  const site = options.rpId;
  if (location.hostname !== site && !location.hostname.endsWith("." + site)) {
    throw new Error(`Open this page at ${site}: your passkey is for that name.`);
  }
  const proof = await navigator.credentials.get({
    publicKey: {
      challenge: bytes(options.challenge),
      rpId: site,
      timeout: options.timeout,
      userVerification: options.userVerification,
      allowCredentials: (options.allowCredentials || []).map((one) => ({
        type: one.type, id: bytes(one.id), transports: one.transports,
      })),
    },
  });
  form.elements.passkey.value = JSON.stringify({
    id: proof.id,
    rawId: text(proof.rawId),
    type: proof.type,
    response: {
      clientDataJSON: text(proof.response.clientDataJSON),
      authenticatorData: text(proof.response.authenticatorData),
      signature: text(proof.response.signature),
      userHandle: proof.response.userHandle ? text(proof.response.userHandle) : null,
    },
    clientExtensionResults: {},
  });
}

for (const button of document.querySelectorAll("button[data-asks]")) {
  const form = button.form;
  const said = form.querySelector("[role=status]");
  button.hidden = false;
  button.addEventListener("click", async () => {
    said.textContent = "";
    if (!form.reportValidity()) return;
    button.disabled = true;
    try {
      await prove(form);
      form.submit();
    } catch (failure) {
      const ours = failure.message.startsWith("Open this page");
      said.textContent = ours ? failure.message : "The passkey did not answer. Try again.";
      button.disabled = false;
    }
  });
}
"""


def document(
    title: str, body: str, *, header: str = "", failed: bool = False, scripted: bool = False
) -> str:
    told = f"Error: {title}" if failed else title
    script = '\n<script src="/approve/page.js" defer></script>' if scripted else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(told)} - Behavry</title>
<link rel="stylesheet" href="/approve/style.css">{script}
</head>
<body>
<header><strong>Behavry</strong>{header}</header>
<main>{body}</main>
</body>
</html>
"""


def passkey_fields(without_script: str, challenge: str = "") -> str:
    """What the script fills in, and what is said until it runs: a browser may have one, and keep
    ours from running.
    """
    return (
        f'<input type="hidden" name="challenge" value="{escape(challenge)}">'
        '<input type="hidden" name="passkey" value="">'
        '<p class="hint" role="status"></p>'
        f'<p class="hint" data-without-script>{escape(without_script)}</p>'
    )


def passkey_button(words: str) -> str:
    """Seen only where the script runs."""
    return f'<button type="button" data-asks hidden>{escape(words)}</button>'


def alert(words: str) -> str:
    return f'<p class="alert" role="alert">{escape(words)}</p>' if words else ""


def failed(title: str, words: str, *, request_id: str) -> str:
    """Something went wrong, in words."""
    told = f"<p>Request <code>{escape(request_id)}</code></p>"
    return document(title, f"<h1>{escape(title)}</h1>{alert(words)}{told}", failed=True)


def page_of(
    text: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    scripted: bool = False,
) -> Response:
    base = SCRIPTED if scripted else HEADERS
    return HTMLResponse(text, status_code=status, headers={**base, **(headers or {})})


def file_of(text: str, media_type: str) -> Response:
    headers = {**HEADERS, "cache-control": "max-age=300"}
    return Response(text, media_type=media_type, headers=headers)
