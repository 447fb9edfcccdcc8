"""The life of a policy: which step is allowed from which state, and what a step does. Pure.

`draft -> shadow -> enforce -> retired`. A policy has one active version at most; versions never
change, so going back is an old text under a new number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from services.control.problems import Refusal

State = Literal["draft", "shadow", "enforce", "retired"]
MAX_PER_TENANT: Final = 200
MAX_TESTS: Final = 200


@dataclass(frozen=True, slots=True)
class Activation:
    """The state after a step, and the version that decides in it (None: none)."""

    state: State
    active_version: int | None


def enforce(*, version: int, tests: int) -> Activation:
    """From any state. Raises CONFLICT where no test case says what the policy is for."""
    if tests == 0:
        raise Refusal("CONFLICT", "A policy needs at least one test case before it is enforced.")
    return Activation("enforce", version)


def shadow(state: State, *, version: int) -> Activation:
    """Observed, never counted. Raises CONFLICT on an enforced policy: it would stop enforcing."""
    if state == "enforce":
        raise Refusal(
            "CONFLICT", "The policy is enforced. Observe the change as a policy of its own."
        )
    return Activation("shadow", version)


def retire() -> Activation:
    return Activation("retired", None)
