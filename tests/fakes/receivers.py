"""Where notices arrive in tests: a real HTTP server and a real mail server on this machine, each of
which can be told to refuse, to hang or to go away.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

PATIENCE_S = 5


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class HttpReceiver:
    """Answers 200 unless `status` says otherwise, or the next of `statuses`."""

    status: int = 200
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "ok"
    #: While it is clear, answers wait.
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    port: int = 0
    received: list[Received] = field(default_factory=list)
    _arrived: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.go_on.set()

    async def next(self) -> Received:
        """The next request that arrived, at most 5 s from now."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived.get()

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(path=request.path, headers=headers, body=await request.read())
        self.received.append(received)
        self._arrived.put_nowait(received)
        await self.go_on.wait()
        status = self.statuses.pop(0) if self.statuses else self.status
        return web.Response(status=status, headers=self.headers, text=self.body)


@asynccontextmanager
async def http_receiver(
    *, port: int = 0, tls: ssl.SSLContext | None = None, **answers: Any
) -> AsyncIterator[HttpReceiver]:
    receiver = HttpReceiver(**answers)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    receiver.port = runner.addresses[0][1]
    receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{receiver.port}"
    try:
        yield receiver
    finally:
        receiver.go_on.set()
        await runner.cleanup()


@dataclass(kw_only=True)
class MailReceiver:
    """`reply` answers the end of a message, `refused` recipients. `accounts`: who may send."""

    reply: str = "250 OK"
    refused: set[str] = field(default_factory=set)
    accounts: dict[str, str] = field(default_factory=dict)
    port: int = 0
    signed_in: list[str] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    _arrived: asyncio.Queue[tuple[EmailMessage, Envelope]] = field(default_factory=asyncio.Queue)

    async def next(self) -> EmailMessage:
        message, _ = await self.next_envelope()
        return message

    async def next_envelope(self) -> tuple[EmailMessage, Envelope]:
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived.get()

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address in self.refused:
            return "550 no such mailbox: s3cr3t-of-the-server"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        if self.reply.startswith("2"):
            content = envelope.content
            assert isinstance(content, bytes)
            self.raw.append(content)
            message = email.message_from_bytes(content, policy=email.policy.default)
            self._arrived.put_nowait((message, envelope))
        return self.reply

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: Any
    ) -> AuthResult:
        name, password = data.login.decode(), data.password.decode()
        good = bool(self.accounts) and self.accounts.get(name) == password
        if good:
            self.signed_in.append(name)
        return AuthResult(success=good, handled=False)


@asynccontextmanager
async def mail_receiver(
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    **answers: Any,
) -> AsyncIterator[MailReceiver]:
    receiver = MailReceiver(**answers)
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of passwords in clear, which stay here
            return SMTP(
                receiver,
                hostname="mail.test",
                loop=loop,
                tls_context=starttls,
                require_starttls=starttls is not None,
                authenticator=receiver.authenticate,
                auth_required=bool(receiver.accounts),
                auth_require_tls=False,
            )

    server = await loop.create_server(protocol, "127.0.0.1", port, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()
