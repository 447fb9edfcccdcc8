"""Which loopback ports an installation uses. Remembered ones come first: tokens name them (`iss`,
`aud`).
"""

import socket

from services.cli.output import CommandFailed
from services.cli.state import Remembered

DEFAULT_BASE = 8700


def choose(remembered: Remembered, *, base: int | None) -> Remembered:
    """Proxy and control at `base` and `base` + 1, or free ones for 0; without `base`, as before.

    The feed that OPA polls is nobody's address but ours: any free port will do, each time.
    """
    if base is None or (base == 0 and remembered.proxy_port is not None):
        proxy = remembered.proxy_port or DEFAULT_BASE
        control = remembered.control_port or DEFAULT_BASE + 1
    elif base == 0:
        proxy, control = _free(2)
    else:
        proxy, control = base, base + 1
    for name, port in (("proxy", proxy), ("control", control)):
        if not is_free(port):
            raise CommandFailed(
                f"port {port} ({name}) is taken; choose others with --port-base N (0: free ones)"
            )
    feed = remembered.feed_port
    if feed is None or feed in {proxy, control} or not is_free(feed):
        (feed,) = _free(1)
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


def _free(count: int) -> list[int]:
    """Free ports, all different: held together before any is given back."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
