"""A check's answer, and the list of all checks in the order in which they are shown.

Decides what the sum of them means: fail, or nothing worse than a warning.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.cli.state import Remembered, State

#: unknown: it could not be looked at, for a reason that another check tells.
Outcome = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, how it stands, why, and what mends it."""

    id: str
    state: Outcome
    why: str
    fix: str = ""

    def told(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What the checks are about. `running`: the pid of its `up`, if it runs."""

    state: State
    remembered: Remembered
    document: dict[str, Any] = field(default_factory=dict)
    running: int | None
    now_s: int
    project: Path
    home: Path
    environment: dict[str, str]

    @property
    def run_dir(self) -> Path:
        return Path(self.remembered.run_dir or self.state.root / "run")


Look = Callable[[Installation], Iterator[Check]]


def ok(id: str, why: str) -> Check:
    return Check(id=id, state="ok", why=why)


def warn(id: str, why: str, fix: str) -> Check:
    return Check(id=id, state="warn", why=why, fix=fix)


def fail(id: str, why: str, fix: str) -> Check:
    return Check(id=id, state="fail", why=why, fix=fix)


def unknown(id: str, why: str) -> Check:
    return Check(id=id, state="unknown", why=why)


def every(installation: Installation) -> Iterator[Check]:
    """All checks. Cheap and local ones come first."""
    from services.cli.doctor import (  # noqa: PLC0415  # gRPC and asyncpg are slow to import
        bypasses,
        database,
        machine,
        running,
    )

    looks: tuple[Look, ...] = (
        machine.permissions,
        machine.disk,
        machine.clock,
        machine.outbox,
        machine.local_stops,
        running.processes,
        running.ports,
        running.grpc_health,
        running.http,
        running.engine,
        running.bundle,
        running.jwks,
        running.plan,
        running.notifications,
        database.migrations,
        bypasses.clients,
    )
    for look in looks:
        yield from look(installation)
