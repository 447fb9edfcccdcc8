"""Where notices go: the four kinds, what each must be told, and what may be reached in clear.

Rules over values alone. What is secret of a destination (a mail password, a signing key, an address
that is a credential) is a reference, `secret://name`, never a value.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from services.common.secret_refs import REFERENCE
from services.control.notifications.notices import EVENTS, Event
from services.control.problems import Refusal, invalid

Kind = Literal["email", "webhook", "slack", "pagerduty"]
Security = Literal["tls", "starttls", "none"]
Severity = Literal["critical", "error", "warning", "info"]

MAX_PER_TENANT: Final = 20
MAX_RECIPIENTS: Final = 20
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$"
SECRET: Final = REFERENCE
HOST: Final = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$|^[0-9A-Fa-f:.]{2,45}$"
ADDRESS: Final = (
    r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$"
)
PAGERDUTY_URL: Final = "https://events.pagerduty.com/v2/enqueue"


class Email(msgspec.Struct, frozen=True, kw_only=True, tag="email", tag_field="kind"):
    host: str
    port: int
    security: Security
    username: str
    password: str
    sender: str
    recipients: tuple[str, ...]
    plaintext: bool


class Webhook(msgspec.Struct, frozen=True, kw_only=True, tag="webhook", tag_field="kind"):
    url: str
    key: str
    plaintext: bool


class Slack(msgspec.Struct, frozen=True, kw_only=True, tag="slack", tag_field="kind"):
    """`url` is a reference: whoever knows the address may post."""

    url: str
    plaintext: bool


class PagerDuty(msgspec.Struct, frozen=True, kw_only=True, tag="pagerduty", tag_field="kind"):
    url: str
    routing_key: str
    severity: Severity
    plaintext: bool


Settings = Email | Webhook | Slack | PagerDuty


def read(kind: str, stored: Mapping[str, Any]) -> Settings:
    """What `check` let through."""
    settings: Settings = msgspec.convert({"kind": kind, **stored}, Settings)
    return settings


def check(settings: Settings) -> None:
    """Raises VALIDATION_FAILED where values do not go together."""
    match settings:
        case Email():
            _check_email(settings)
        case Webhook() | PagerDuty():
            check_url(settings.url, plaintext=settings.plaintext)
        case Slack():
            return  # its address is looked at when it is resolved


def check_url(url: str, *, plaintext: bool) -> None:
    """An address that may be stored and shown: nothing in it may be a credential."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
        parts = urlsplit("")
    clean = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in {"http", "https"} or not usable or not clean or not url.isprintable():
        raise invalid(
            "/settings/url", "url", "https://host[:port]/path without user, query or fragment."
        )
    if not encrypted_enough(url, plaintext=plaintext):
        raise _in_clear("/settings/url")


def encrypted_enough(url: str, *, plaintext: bool) -> bool:
    """Plain HTTP stays on this machine unless somebody said otherwise."""
    parts = urlsplit(url)
    return parts.scheme == "https" or plaintext or is_loopback(parts.hostname or "")


def mail_encrypted_enough(settings: Email) -> bool:
    return settings.security != "none" or settings.plaintext or is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def default_events(kind: str) -> tuple[Event, ...]:
    """An incident must also be closed; a message that nothing is left to do is for who wants it.
    Nobody is woken by a date, and nothing would close that incident.
    """
    if kind == "pagerduty":
        return tuple(e for e in EVENTS if not e.startswith("license."))
    return tuple(e for e in EVENTS if e != "escalation.settled")


def _check_email(settings: Email) -> None:
    if bool(settings.username) != bool(settings.password):
        raise invalid("/settings/password", "incomplete", "A user name and its password.")
    if not mail_encrypted_enough(settings):
        raise _in_clear("/settings/security")


def _in_clear(pointer: str) -> Refusal:
    return invalid(
        pointer, "plaintext", "In clear only to this machine, or where `plaintext` says so."
    )
