"""Tells what a kill switch does to those who must hear it at once: the proxies, whose held calls
ask again and whose streams end, and the record. What it stops is kill_switch.py's to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from services.authorizer.active import ActivePolicy
from services.authorizer.kill_switch import Change, Switch, reach
from services.authorizer.rights import Proxies
from services.common.telemetry.logging import Log


class Journal(Protocol):
    async def kill_switch(self, switch: Switch, *, on: bool, source: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class StopNews:
    active: ActivePolicy
    proxies: Proxies
    journal: Journal
    log: Log
    _unrecorded: deque[Change] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self, changes: list[Change]) -> None:
        """A listener of the kill switch. Proxies hear of what went on; what went off they see in
        the next snapshot.
        """
        state = self.active.bundle.state if self.active.bundle else None
        for change in changes:
            one = change.switch
            self.log.error(
                "kill_switch",
                alert="critical",
                on=change.on,
                scope=one.scope,
                tenant=one.tenant,
                subject=one.subject,
                source=change.source,
            )
            if change.on:
                for tenant, agents in reach(one, state):
                    self.proxies.revoked(tenant, agents=agents)
            self._unrecorded.append(change)
        self._wake.set()

    async def run(self) -> None:
        """Records until cancelled; what could not be recorded is still the next one."""
        while True:
            while self._unrecorded:
                change = self._unrecorded[0]
                await self.journal.kill_switch(change.switch, on=change.on, source=change.source)
                self._unrecorded.popleft()
            self._wake.clear()
            await self._wake.wait()
