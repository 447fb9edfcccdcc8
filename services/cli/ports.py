"""Which loopback ports an installation uses. Remembered ones come first: tokens name them (`iss`,
`aud`).
"""

import socket
from itertools import islice
from pathlib import Path
from random import SystemRandom
from typing import Final

from services.cli.output import CommandFailed
from services.cli.state import Remembered

DEFAULT_BASE: Final = 8700
_FIRST: Final = 10_000
_TRIES: Final = 1_000
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose(remembered: Remembered, *, base: int | None) -> Remembered:
    """Proxy and control at `base` and `base` + 1, or free ones for 0; without `base`, as before.

    The feed that OPA polls is nobody's address but ours: any free port will do, each time.
    """
    if base is None or (base == 0 and remembered.proxy_port is not None):
        proxy = remembered.proxy_port or DEFAULT_BASE
        control = remembered.control_port or DEFAULT_BASE + 1
    elif base == 0:
        proxy, control = free(2)
    else:
        proxy, control = base, base + 1
    for name, port in (("proxy", proxy), ("control", control)):
        if not is_free(port):
            raise CommandFailed(
                f"port {port} ({name}) is taken; choose others with --port-base N (0: free ones)"
            )
    feed = remembered.feed_port
    if feed is None or feed in {proxy, control} or not is_free(feed):
        (feed,) = free(1)
    return remembered.with_ports(proxy=proxy, control=control, feed=feed)


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free(count: int) -> list[int]:
    """Free ports, all different. None of those that the kernel gives to connections: a port that is
    remembered, or bound a little later, would be one end of somebody's connection by then.
    """
    candidates = SystemRandom().sample(range(_FIRST, max(_given_away_from(), 2 * _FIRST)), _TRIES)
    found = list(islice(filter(is_free, candidates), count))
    if len(found) < count:
        raise CommandFailed(f"no free port found in {_TRIES} tries; choose with --port-base N")
    return found


def _given_away_from() -> int:
    """The first port that a connection may get (Linux: ip_local_port_range; else IANA's)."""
    try:
        return int(_RANGE.read_text("ascii").split()[0])
    except OSError:
        return 49152
