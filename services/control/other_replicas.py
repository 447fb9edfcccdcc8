"""Hears what another process of control decided, for the planes whose links end here.

A decision is committed with a word to all processes (store/escalations.py); whichever holds the
plane's link looks at what there is. A connection that was lost may have missed one: it looks then.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import asyncpg

from services.control.signals import Signals
from services.control.store.escalations import CHANNEL


class ConnectionLost(Exception):
    """The supervisor makes another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherReplicas:
    """`run` under a supervisor."""

    db_url: str
    signals: Signals

    async def run(self) -> None:
        connection = await asyncpg.connect(
            self.db_url, server_settings={"application_name": "behavry-replicas"}
        )
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, lambda *_: self.signals.escalation())
            self.signals.escalation()
            await lost.wait()
            raise ConnectionLost
        finally:
            connection.terminate()
