"""Requests that their agents gave up while they run (mcp.md 7): what is cancelled by what.

A modern agent closes its stream; a legacy one says so in another request, and its disconnect means
nothing. Cancelling the request at the tool server is the backend's part.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from services.proxy.calls import Stream
from services.proxy.sessions import Session

#: A request, as its legacy session names it.
Name = tuple[str, int | str]


class GivenUp(Exception):
    """Nobody waits for the answer any more."""


class Abandonment:
    """Around what runs for one request. Like asyncio's own timeout, it cancels its task and turns
    that cancellation, and no other one, into GivenUp.
    """

    __slots__ = ("_before", "_given_up", "_name", "_registry", "_stream", "_task")

    def __init__(self, registry: Abandonments, stream: Stream, name: Name | None) -> None:
        self._registry = registry
        self._stream = stream
        self._name = name
        self._given_up = False
        self._task: asyncio.Task[object] | None = None
        self._before = 0

    def __enter__(self) -> Self:
        self._task = task = asyncio.current_task()
        self._before = task.cancelling() if task is not None else 0
        if self._name is not None:
            self._registry.running[self._name] = self
        elif self._stream.gone.is_set():
            raise GivenUp
        else:
            self._stream.when_gone = self.give_up
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._name is None:
            self._stream.when_gone = None
        elif self._registry.running.get(self._name) is self:
            del self._registry.running[self._name]
        if not self._given_up or task is None:
            return
        if task.uncancel() <= self._before and kind is not None:
            raise GivenUp from value

    def give_up(self) -> None:
        if self._task is not None and not self._given_up:
            self._given_up = True
            self._task.cancel()


class Abandonments:
    """One per worker: what runs for legacy agents, by the names that they know it by."""

    def __init__(self) -> None:
        self.running: Final[dict[Name, Abandonment]] = {}

    def around(self, stream: Stream, session: Session | None, id: int | str | None) -> Abandonment:
        if session is None or id is None:
            return Abandonment(self, stream, None)
        return Abandonment(self, stream, (session.id, id))

    def cancelled(self, name: Name) -> bool:
        """The agent gave its own request up. Whether that runs here."""
        found = self.running.get(name)
        if found is not None:
            found.give_up()
        return found is not None
