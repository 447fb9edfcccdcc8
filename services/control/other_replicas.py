"""Hears what another process of control decided or published, for the planes whose links end here.

A decision (store/escalations.py) and a bundle (store/bundles.py) are committed with a word to all
processes; whichever holds the plane's link looks at what there is. A connection that was lost may
have missed one: it looks then.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import asyncpg

from services.control.signals import Signals
from services.control.store import bundles, escalations


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
            await connection.add_listener(escalations.CHANNEL, lambda *_: self.signals.escalation())
            await connection.add_listener(bundles.CHANNEL, self._published)
            self.signals.escalation()
            self.signals.touch()
            await lost.wait()
            raise ConnectionLost
        finally:
            connection.terminate()

    def _published(self, *said: object) -> None:
        """The publisher looks for it; what this process built itself it knows."""
        *_, serial = said
        if int(str(serial)) > self.signals.serial:
            self.signals.touch()
