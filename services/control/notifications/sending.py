"""Sends one notice to one destination, once. What became of it is a short code: no text of the
other side, which may quote a secret, leaves here.

TLS is verified; in clear only to this machine, or where the destination says so. Nothing follows a
redirect. Trying again is deliveries.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final, assert_never
from urllib.parse import urlsplit

import aiohttp
import aiosmtplib

from services.common.clock import Clock
from services.common.secret_refs import SecretFiles, SecretUnresolved
from services.control.notifications import egress, forms, letters
from services.control.notifications.destinations import (
    Email,
    PagerDuty,
    Settings,
    Slack,
    Webhook,
    encrypted_enough,
    mail_encrypted_enough,
)
from services.control.notifications.egress import AddressRefused
from services.control.notifications.forms import KeyUnusable, Post
from services.control.notifications.letters import Letter
from services.control.notifications.notices import Notice

#: Of one attempt, from the first packet to the answer.
TIMEOUT_S: Final = 10.0
QUIT_S: Final = 1.0
MAX_RETRY_AFTER_S: Final = 300.0
#: The same bytes would be refused again.
_FINAL: Final = frozenset({400, 410, 413, 415, 422})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """It arrived. `status` is the other side's number; `note` a code where not all of it did."""

    status: int
    note: str = ""


class SendFailed(Exception):
    """It did not arrive, as far as we know. `final`: the same again would be refused again."""

    def __init__(
        self, code: str, *, status: int | None = None, final: bool = False, after_s: float = 0
    ) -> None:
        super().__init__(code)
        self.code = code
        self.status = status
        self.final = final
        #: How long the other side asked us to wait.
        self.after_s = after_s


class Sender:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        secrets: SecretFiles,
        clock: Clock,
        tls: ssl.SSLContext,
    ) -> None:
        self._session = session
        self._secrets = secrets
        self._clock = clock
        self._tls = tls

    async def send(self, settings: Settings, notice: Notice) -> Sent:
        """Raises SendFailed."""
        async with self._told_by_code():
            return await self._send(settings, notice)

    @asynccontextmanager
    async def _told_by_code(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield
        except SecretUnresolved:
            raise SendFailed("secret_unresolved") from None
        except KeyUnusable:
            raise SendFailed("secret_unusable") from None
        except AddressRefused:
            raise SendFailed("address_refused") from None
        except TimeoutError:
            raise SendFailed("timed_out") from None
        except OSError:
            raise SendFailed("not_reachable") from None

    async def _send(self, settings: Settings, notice: Notice) -> Sent:
        match settings:
            case Email():
                message = forms.mail(notice, sender=settings.sender, recipients=settings.recipients)
                return await self._hand_over(settings, settings.recipients, message)
            case Webhook():
                now_s = self._clock.now_ns() // 1_000_000_000
                key = self._secrets.resolve(settings.key)
                post = forms.webhook(notice, key=key, now_s=now_s)
                return await self._post(settings.url, post, plaintext=settings.plaintext)
            case Slack():
                url = self._secrets.resolve(settings.url)
                return await self._post(url, forms.slack(notice), plaintext=settings.plaintext)
            case PagerDuty():
                return await self._page(settings, notice)
            case _:
                assert_never(settings)

    async def _page(self, settings: PagerDuty, notice: Notice) -> Sent:
        """A test opens an incident of the lowest severity and resolves it at once."""
        key = self._secrets.resolve(settings.routing_key)
        sent = Sent(status=0)
        for resolve in (False, True) if notice.facts is None else (False,):
            post = forms.pagerduty(
                notice, routing_key=key, severity=settings.severity, resolve=resolve
            )
            sent = await self._post(settings.url, post, plaintext=settings.plaintext)
        return sent

    # --- HTTP ---------------------------------------------------------------------------------

    async def _post(self, url: str, post: Post, *, plaintext: bool) -> Sent:
        host = _host(url)
        if not encrypted_enough(url, plaintext=plaintext):
            raise SendFailed("plaintext_refused")
        egress.check(host)  # an address in the URL is never resolved
        try:
            async with self._session.post(
                url, data=post.body, headers=post.headers, allow_redirects=False
            ) as answer:
                return _judged(answer.status, answer.headers)
        except aiohttp.ClientConnectorError as failure:
            raise _connecting(failure) from None
        except (aiohttp.ClientError, ValueError):
            raise SendFailed("protocol_error") from None

    # --- mail ---------------------------------------------------------------------------------

    async def post(self, settings: Email, letter: Letter) -> Sent:
        """To one person, by the server that notices go through. Raises SendFailed."""
        message = letters.mail(letter, sender=settings.sender)
        async with self._told_by_code():
            return await self._hand_over(settings, (letter.to,), message)

    async def _hand_over(
        self, settings: Email, recipients: tuple[str, ...], message: bytes
    ) -> Sent:
        if not mail_encrypted_enough(settings):
            raise SendFailed("plaintext_refused")
        password = self._secrets.resolve(settings.password) if settings.password else None
        server = aiosmtplib.SMTP(
            hostname=settings.host,
            sock=await egress.connect(settings.host, settings.port),
            local_hostname=settings.sender.rpartition("@")[2],
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=self._tls,
            username=settings.username or None,
            password=password,
            timeout=TIMEOUT_S,
        )
        try:
            await server.connect()
            refused, _ = await server.sendmail(settings.sender, recipients, message)
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):  # it is theirs by now
                await server.quit(timeout=QUIT_S)
        except (aiosmtplib.SMTPException, ssl.SSLError, ValueError) as failure:
            raise _of_mail(failure) from None
        finally:
            server.close()
        return Sent(status=250, note="recipients_refused" if refused else "")


@asynccontextmanager
async def opened(
    secrets: SecretFiles, clock: Clock, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Sender]:
    """`tls`: whom to trust; the system's own choice where nothing is said."""
    context = tls or _system_trust()
    connector = aiohttp.TCPConnector(
        resolver=egress.GuardedResolver(),
        ssl=context,
        use_dns_cache=False,
        keepalive_timeout=5,
        limit=0,  # who sends knows how many at once
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"user-agent": "Behavry"},
    ) as session:
        yield Sender(session, secrets, clock, context)


@cache
def _system_trust() -> ssl.SSLContext:
    """Read once per process: some hundred certificates."""
    return ssl.create_default_context()


def _host(url: str) -> str:
    """Raises SendFailed: the address came out of a secret, or is none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise SendFailed("secret_unusable") from None
    if parts.scheme not in {"http", "https"} or not host or not url.isprintable():
        raise SendFailed("secret_unusable")
    return host


def _judged(status: int, headers: Mapping[str, str]) -> Sent:
    if 200 <= status < 300:
        return Sent(status=status)
    after_s = _retry_after(headers.get("retry-after", ""))
    match status:
        case _ if status in _FINAL:
            raise SendFailed("refused", status=status, final=True)
        case _ if 300 <= status < 400:
            raise SendFailed("redirected", status=status)
        case 401 | 403:
            raise SendFailed("unauthorized", status=status)
        case 404:
            raise SendFailed("not_found", status=status)
        case 429:
            raise SendFailed("rate_limited", status=status, after_s=after_s)
        case _ if status >= 500:
            raise SendFailed("server_error", status=status, after_s=after_s)
        case _:
            raise SendFailed("protocol_error", status=status)


def _retry_after(text: str) -> float:
    """Seconds alone; a date would need the other side's clock."""
    if not (text.isascii() and text.isdigit()):
        return 0
    return min(float(text[:6]), MAX_RETRY_AFTER_S)


def _connecting(failure: aiohttp.ClientConnectorError) -> SendFailed:
    cause = failure.os_error
    if isinstance(cause, AddressRefused):
        return SendFailed("address_refused")
    if isinstance(failure, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
        return SendFailed("tls_failed")
    return SendFailed("not_reachable")


def _of_mail(failure: Exception) -> SendFailed:
    cause = failure.__cause__
    if isinstance(failure, ssl.SSLError) or isinstance(cause, ssl.SSLError):
        return SendFailed("tls_failed")
    match failure:
        case aiosmtplib.SMTPAuthenticationError():
            return SendFailed("unauthorized", status=failure.code)
        case aiosmtplib.SMTPRecipientsRefused():
            codes = [one.code for one in failure.recipients]
            final = all(code >= 500 for code in codes)
            return SendFailed("recipients_refused", status=max(codes, default=None), final=final)
        case aiosmtplib.SMTPTimeoutError():
            return SendFailed("timed_out")
        case aiosmtplib.SMTPConnectResponseError():
            return SendFailed("server_error", status=failure.code)
        case aiosmtplib.SMTPSenderRefused() | aiosmtplib.SMTPDataError():
            code = "refused" if failure.code >= 500 else "deferred"
            return SendFailed(code, status=failure.code, final=failure.code >= 500)
        case aiosmtplib.SMTPResponseException():
            return SendFailed("server_error", status=failure.code)
        case aiosmtplib.SMTPServerDisconnected() | aiosmtplib.SMTPConnectError():
            return SendFailed("not_reachable")
        case _:  # no STARTTLS, no authentication offered
            return SendFailed("protocol_error")
