"""Mail to one person, about their own account: an invite, another password. Pure.

A letter holds a link that is worth an account. It is made where the link is made, handed to the
mail server once and kept nowhere; whoever gets none is given the link by hand, or asks again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final

from services.control.notifications.destinations import ADDRESS

_MAILABLE: Final = re.compile(ADDRESS)
_LONGEST: Final = 254


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    #: Also its Message-ID.
    id: str
    to: str
    subject: str
    text: str = field(repr=False)
    at: datetime


def is_mailable(address: str) -> bool:
    """Whether it is an address that a header can hold as it is."""
    return len(address) <= _LONGEST and _MAILABLE.fullmatch(address) is not None


def link(public_url: str, page: str, token: str) -> str:
    """The page that the token is for. Behind the `#` no server and no log of one ever sees it."""
    return f"{public_url}/{page}#{token}"


def invite(
    *,
    id: str,
    to: str,
    role: str,
    link: str,
    until: datetime,
    at: datetime,
    by_provider: bool = False,
) -> Letter:
    last = "Whoever has the link can use it, once. If you expect none, leave it."
    if by_provider:
        last = "Sign in there with your organization's account, once until then."
    first = f"You are invited to Behavry, with the role {role}."
    return Letter(
        id=id,
        to=to,
        subject="[Behavry] You are invited",
        text=_text(first, link, until, last),
        at=at,
    )


def reset(*, id: str, to: str, link: str, until: datetime, at: datetime) -> Letter:
    return Letter(
        id=id,
        to=to,
        subject="[Behavry] Another password",
        text=_text(
            "Another password may be chosen for your account at Behavry.",
            link,
            until,
            "Whoever has the link can use it, once. If you did not ask for it, leave it: your "
            "password stays as it is.",
        ),
        at=at,
    )


def changed(*, id: str, to: str, at: datetime) -> Letter:
    """Told after the fact, so that nobody loses an account in silence."""
    text = (
        f"The password of your account at Behavry was changed at {at:%Y-%m-%d %H:%M} UTC, and\n"
        "every other session of yours has ended.\n\n"
        "If that was not you, tell an admin at once.\n"
    )
    return Letter(id=id, to=to, subject="[Behavry] Your password was changed", text=text, at=at)


def mail(letter: Letter, *, sender: str) -> bytes:
    domain = sender.rpartition("@")[2]
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = letter.to
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(letter.at)
    message["Message-ID"] = f"<{letter.id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834 5
    message.set_content(letter.text, charset="utf-8", cte="quoted-printable")
    return message.as_bytes()


def _text(first: str, link: str, until: datetime, last: str) -> str:
    return f"{first}\n\n{link}\n\nThe link is good until {until:%Y-%m-%d %H:%M} UTC.\n{last}\n"
