"""Tells the outside how this plane's policy is: ready once there is some, recorded when its age
crosses a limit, told to the proxies where a newer one ends rights. Denying is decision.py's
business.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from services.authorizer import rights
from services.authorizer.active import ActivePolicy
from services.authorizer.bundles import VerifiedBundle
from services.authorizer.journal import Journal
from services.authorizer.rights import Proxies
from services.common.rpc.server import Serving

LOOK_S: Final = 1.0


@dataclass(slots=True, kw_only=True)
class PolicyWatch:
    active: ActivePolicy
    serving: Serving
    proxies: Proxies
    journal: Journal
    _told: str = ""
    _seen: VerifiedBundle | None = None

    async def run(self) -> None:
        """Until cancelled. An expired policy stays ready, so that refusals are recorded."""
        version = -1
        while True:
            if self.active.bundle is not None:
                self._tell_proxies(self.active.bundle)
                age = self.active.age()
                if age.state != self._told:
                    first, self._told = not self._told, age.state
                    await self.serving.set_health("", serving=True)
                    if not (first and age.state == "fresh"):
                        await self.journal.policy_state(age.state, age_s=age.age_s)
            try:
                version = await asyncio.wait_for(self.active.next_version(version), LOOK_S)
            except TimeoutError:
                continue

    def _tell_proxies(self, bundle: VerifiedBundle) -> None:
        seen, self._seen = self._seen, bundle
        if seen is None or seen is bundle:
            return
        for one in rights.ended(seen.state, bundle.state):
            self.proxies.revoked(one.tenant, agents=one.agents, sessions=one.sessions)
