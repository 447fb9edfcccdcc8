"""HTTP to a tool server's own addresses, with its credential and within all limits, for transports
whose requests and answers do not meet on one exchange (HTTP+SSE of 2024-11-05).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.proxy.backends.connection import Tap
from services.proxy.backends.sender import Sender, Way
from services.proxy.backends.sites import Sites
from services.proxy.backends.upstream import UpstreamFailed
from services.proxy.calls import Visit


@dataclass(frozen=True, slots=True)
class PlainHttp:
    sites: Sites
    sender: Sender

    async def read(self, visit: Visit, url: str, feed: Tap) -> None:
        """An event stream, as long as it lasts or until `feed` is satisfied. Raises
        UpstreamFailed.
        """
        way = self._way(visit, url)
        response = await self.sender.request(way, way.door.get, b"", math.inf, feed)
        if not response.streams:
            _refused(response.status)

    async def post(self, visit: Visit, url: str, body: bytes, timeout_s: float) -> int:
        """The status. Raises UpstreamFailed."""
        way = self._way(visit, url)
        response = await self.sender.request(way, way.door.post, body, timeout_s, None)
        if response.status in {401, 403, 429}:
            _refused(response.status)
        return response.status

    def _way(self, visit: Visit, url: str) -> Way:
        site = self.sites.of(visit)
        return Way(visit, site, site.door_at(url))


def _refused(status: int) -> None:
    reason = {401: "upstream_auth", 403: "upstream_auth", 429: "upstream_rate_limited"}
    raise UpstreamFailed(reason.get(status, "upstream_protocol"), ran=False, status=status)
