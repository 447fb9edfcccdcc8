"""Where notices and letters arrive, as ever; what came tells nothing of the second tenant."""

from __future__ import annotations

import email
import email.policy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes import receivers
from tests.fakes.receivers import HttpReceiver, MailReceiver
from tests.integration.control import neighbour

__all__ = ["HttpReceiver", "MailReceiver", "http_receiver", "mail_receiver"]


@asynccontextmanager
async def http_receiver(**options: Any) -> AsyncIterator[HttpReceiver]:
    async with receivers.http_receiver(**options) as receiver:
        yield receiver
    for got in receiver.received:
        neighbour.unseen("a notice", got.path, str(got.headers), got.body)


@asynccontextmanager
async def mail_receiver(**options: Any) -> AsyncIterator[MailReceiver]:
    async with receivers.mail_receiver(**options) as receiver:
        yield receiver
    for raw in receiver.raw:
        letter = email.message_from_bytes(raw, policy=email.policy.default)
        parts = [part.get_content() for part in letter.walk() if not part.is_multipart()]
        neighbour.unseen("a letter", raw, str(letter.items()), *parts)
