"""Sends people mail about their own account, where their tenant has a mail server for notices.

A letter goes out after the commit of what it tells of. One that did not go out is never sent by
itself later: nothing keeps the link that it holds.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from services.common.postgres.connection import Connection
from services.control.api.context import Visit
from services.control.notifications import destinations, letters
from services.control.notifications.destinations import Email
from services.control.notifications.letters import Letter
from services.control.notifications.sending import SendFailed
from services.control.store import notification_destinations as store

#: Whoever waits for the answer of a request waits for no slow mail server.
PATIENCE_S: Final = 5.0


async def way(connection: Connection, address: str) -> Email | None:
    """How mail gets to that address from the transaction's tenant; None where it does not."""
    if not letters.is_mailable(address):
        return None
    stored: dict[str, Any] | None = await store.mail(connection)
    settings = destinations.read("email", stored) if stored else None
    return settings if isinstance(settings, Email) else None


async def post(visit: Visit, settings: Email, letter: Letter) -> bool:
    """Whether the mail server has taken it."""
    control, code = visit.control, ""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await control.sender.post(settings, letter)
    except SendFailed as failure:
        code = failure.code
    except TimeoutError:
        code = "timed_out"
    if code:
        control.log.warning("letter_failed", letter=letter.id, code=code)
    else:
        control.log.info("letter_posted", letter=letter.id)
    return not code


def link(visit: Visit, page: str, token: str) -> str:
    return letters.link(visit.control.settings.public_url, page, token)
