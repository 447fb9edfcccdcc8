"""Tasks of tool servers that agents hear of when they change (`notifications/tasks`, mcp.md 7, 8).

Decides which task of a listening request is the agent's to hear of, and that what is told is what a
poll would have been: under the agent's own id, after the same questions, on record in the same way.
What of an approval became a task changes when it is asked for, and is told of by no stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.proxy.answers import bad_params
from services.proxy.asking.nobody import Nobody
from services.proxy.asking.their_tasks import GET, TheirTasks, missing_extension, not_found
from services.proxy.bridge import knows_tasks
from services.proxy.calls import Spawn, Visit
from services.proxy.continuing import Carried, TheirTask
from services.proxy.encodings import declared_by
from services.proxy.eras import Route
from services.proxy.governed import Incoming
from services.proxy.local import Refused
from services.proxy.messages import Kind, Message
from services.proxy.seals import Unsealed

CHANGED: Final = "notifications/tasks"
MEMBER: Final = "taskIds"
MOST: Final = 64
MOST_NEWS: Final = 16
ENDED: Final = frozenset({"completed", "failed", "cancelled"})

#: The visit by the policy of now.
Now = Callable[[], Visit]
Tell = Callable[[dict[str, Any]], None]


@dataclass(slots=True, eq=False)
class _Watched:
    """One task, and how it is asked for."""

    task: TheirTask
    poll: Message
    #: What its server said and nobody was told yet; of a flood the last, each is the whole state.
    news: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_NEWS))
    telling: bool = False


@dataclass(slots=True, eq=False)
class Watched:
    """What one stream hears of, by the server's own ids. `changed` is set when that changes."""

    route: Route
    changed: asyncio.Event
    all: dict[str, _Watched] = field(default_factory=dict)

    @property
    def sealed(self) -> list[str]:
        """The agent's ids."""
        return [str(one.poll.params["taskId"]) for one in self.all.values()]

    def drop(self, theirs: str) -> None:
        if self.all.pop(theirs, None) is not None:
            self.changed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskNews:
    """One per worker."""

    carried: Carried
    theirs: TheirTasks
    spawn: Spawn

    async def watch(self, visit: Visit, message: Message, watched: Watched) -> list[str]:
        """1. the extension is declared  2. each is a task of this agent's  3. that it may ask for
        now; the others nobody watches. Answers what was asked for. Raises Refused.
        """
        asked = _asked_for(message.params)
        meta = message.params.get("_meta")
        if asked and not knows_tasks(declared_by(message.params)):  # 1
            raise missing_extension()
        for sealed in asked:
            params = {"taskId": sealed, "_meta": meta}
            poll = Message(Kind.REQUEST, message.id, GET, params, has_params=True)
            try:
                task = self.carried.open_task(visit, sealed)  # 2
                if isinstance(task, TheirTask):
                    incoming = _incoming(visit, poll, watched.route)
                    await self.theirs.allow(incoming, task)  # 3
                    watched.all[task.theirs] = _Watched(task, poll)
            except (Unsealed, Refused):
                continue
        return asked

    def heard(self, watched: Watched, now: Now, params: dict[str, Any], tell: Tell) -> bool:
        """Its server says how a task is. False where nobody watches it."""
        one = watched.all.get(str(params.get("taskId", "")))
        if one is None:
            return False
        one.news.append(params)
        if not one.telling:
            one.telling = True
            self.spawn("task news", lambda: self._tell(watched, now, one, tell))
        return True

    async def _tell(self, watched: Watched, now: Now, one: _Watched, tell: Tell) -> None:
        """One at a time of each task, in the order in which they came; whoever lost the right to
        ask for it hears of it no more.
        """
        try:
            while one.news:
                found = one.news.popleft()
                if self.carried.now_ms() > one.task.until_ms:
                    raise not_found()
                incoming = _incoming(now(), one.poll, watched.route)
                state = await self.theirs.news(incoming, one.task, found)
                if state is None:  # nothing that an agent could be told
                    continue
                tell({name: value for name, value in state.items() if name != "resultType"})
                if state["status"] in ENDED:
                    watched.drop(one.task.theirs)
        except Refused:
            watched.drop(one.task.theirs)
        finally:
            one.telling = False


def _incoming(visit: Visit, poll: Message, route: Route) -> Incoming:
    return Incoming(
        visit=visit, message=poll, route=route, session=None, headers={}, stream=Nobody()
    )


def _asked_for(params: Mapping[str, Any]) -> list[str]:
    """Raises Refused."""
    wanted = params.get("notifications")
    asked = (wanted.get(MEMBER) if type(wanted) is dict else None) or []
    if type(asked) is not list or not all(type(one) is str for one in asked):
        raise Refused(bad_params(f"{MEMBER} must be a list of strings"))
    if len(asked) > MOST:
        raise Refused(bad_params(f"too many {MEMBER}"))
    return list(dict.fromkeys(asked))
