"""stdio tool servers as children of this process, put together from its settings: the proxy's own,
or those of the one host that several workers share.
"""

from __future__ import annotations

from services.common.clock import Clock
from services.common.settings import environment
from services.common.telemetry.counters import Counters
from services.proxy.backends import leftovers
from services.proxy.backends.commands import Commands
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.stdio import StdioBackend
from services.proxy.calls import Spawn
from services.proxy.settings import ProxySettings


def own_children(
    settings: ProxySettings, clock: Clock, counters: Counters, spawn: Spawn
) -> StdioBackend:
    """What an earlier process left running ends first: one process at a time may call this."""
    leftovers.end_all(settings.stdio_homes)
    return StdioBackend(
        commands=Commands(settings.stdio_file),
        secrets=Secrets(settings.secrets_dir),
        clock=clock,
        counters=counters,
        homes=settings.stdio_homes,
        hidden=settings.hidden,
        inherited=environment(),
        spawn=spawn,
    )
