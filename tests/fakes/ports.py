"""A port for a process that is told which one to take."""

from services.cli import ports


def free_port() -> int:
    """It stays free until somebody who was told of it listens there: no connection gets it."""
    return ports.free(1)[0]
