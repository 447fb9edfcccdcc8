"""What the authorizer asks of an engine, whichever it is. `opa.py` and `embedded.py` implement it,
one contract suite holds both to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.common.errors import BehavryError
from services.common.rego.names import PolicyRef
from services.common.rego.verdicts import ShadowVerdict

Known = TypeVar("Known")


class EngineState(Enum):
    """DOWN by the monitor alone: one slow or failing evaluation never makes it (core.md 6)."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPolicies:
    """A tenant's part of a bundle, base policies included."""

    policies: tuple[PolicyRef, ...]

    @property
    def has_shadow(self) -> bool:
        return any(policy.state == "shadow" for policy in self.policies)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBundle:
    """A verified bundle. `archive` is the signed file; the rest is what was read from it."""

    revision: str
    etag: str
    archive: bytes = field(repr=False)
    modules: Mapping[str, str] = field(repr=False)
    tenants: Mapping[str, TenantPolicies]
    data_json: bytes = field(default=b"{}", repr=False)

    @property
    def shadowed(self) -> frozenset[str]:
        return frozenset(tenant for tenant, part in self.tenants.items() if part.has_shadow)


class EngineRefused(BehavryError):
    """The engine does not take this bundle; the one before it stays."""


class EngineCapacity(EngineRefused):
    """More tenants or policies than this engine is made for."""

    def __init__(self, message: str) -> None:
        super().__init__("ENGINE_CAPACITY", message)


class Engine(Protocol):
    """Opened and closed by app.py."""

    @property
    def name(self) -> str:
        """`opa` or `embedded`, as decisions are recorded."""

    @property
    def state(self) -> EngineState: ...

    def on_state(self, call: Callable[[EngineState], None]) -> None:
        """`call` is told of each change from now on."""

    async def offer(self, bundle: EngineBundle) -> None:
        """Returns once the engine answers with this revision. Raises EngineRefused or
        EngineCapacity; then the revision before it goes on answering.
        """

    async def evaluate(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[EngineAnswer | EngineFailure]:
        """One outcome per item, in order. Items are pruned envelopes; `deadline` is the loop's
        time after which no answer is of use. Never raises for what the engine does.
        """

    def shadows(self, tenant: str, revision: str) -> bool:
        """Whether `observe` has anything to say there."""

    async def observe(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[tuple[ShadowVerdict, ...]]:
        """What policies in shadow would have said; empty where they failed. Never counts."""

    async def close(self) -> None: ...


def latest(kept: Mapping[str, Known], revision: str, value: Known) -> dict[str, Known]:
    """What is known per revision, of this one and the one before it."""
    return {**dict(list(kept.items())[-1:]), revision: value}
