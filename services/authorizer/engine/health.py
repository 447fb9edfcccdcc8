"""Decides whether an engine is DOWN: misses of its monitor in a row, or a refused live connection.

Holds the state and tells of its edges; probing is the engine's work. A slow or failing evaluation
never counts, because its input could be crafted (core.md 6).
"""

from __future__ import annotations

from collections.abc import Callable

from services.authorizer.engine.protocol import EngineState


class Health:
    def __init__(self, misses_allowed: int) -> None:
        self.state = EngineState.DOWN  # until the first probe was answered
        self._misses = 0
        self._misses_allowed = misses_allowed
        self._listeners: list[Callable[[EngineState], None]] = []

    def on_state(self, call: Callable[[EngineState], None]) -> None:
        self._listeners.append(call)

    def answered(self) -> None:
        self._misses = 0
        self._become(EngineState.UP)

    def missed(self) -> None:
        self._misses += 1
        if self._misses >= self._misses_allowed:
            self._become(EngineState.DOWN)

    def refused(self) -> None:
        """A live connection was refused: nobody listens there."""
        self._misses = self._misses_allowed
        self._become(EngineState.DOWN)

    def _become(self, state: EngineState) -> None:
        if state is self.state:
            return
        self.state = state
        for call in self._listeners:
            call(state)
