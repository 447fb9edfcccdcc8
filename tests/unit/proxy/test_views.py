"""Who looks whether a list changed, and how often."""

import asyncio
from collections.abc import Awaitable, Callable

from services.proxy.asking.nobody import Nobody
from services.proxy.calls import Visit
from services.proxy.streams.views import PROMPTS, Views
from tests.fakes.http_leg import visit

HERE = visit("http://tools.example/mcp")


class Slow:
    """A catalogue, its lists and their server in one: each look waits for the test."""

    def __init__(self) -> None:
        self.lists = self
        self.gate = asyncio.Event()
        self.looked = asyncio.Event()
        self.looks = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.told: list[str] = []

    def of(self, server: object) -> object:
        return server

    async def renew(self, visit: Visit, backend: object) -> None:
        assert (visit, backend) == (HERE, HERE.server)

    async def differs(self, visit: Visit, backend: object, listed: str = "") -> bool:
        assert (visit, backend) == (HERE, HERE.server)
        assert listed in {"", "prompts/list"}
        self.looks += 1
        self.looked.set()
        await self.gate.wait()
        return True

    def spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            await work()

        self.tasks.append(asyncio.get_running_loop().create_task(run(), name=name))
        return self.tasks[-1]

    def views(self) -> Views:
        return Views(
            catalog=self,  # type: ignore[arg-type]  # as much of one as is asked
            backends=self,  # type: ignore[arg-type]  # likewise
            spawn=self.spawn,
            listening=lambda: [HERE],
            tell=lambda whose: self.told.append(whose[2]),
        )

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            await self.looked.wait()
            self.gate.set()
            await asyncio.gather(*self.tasks)


class Told(Nobody):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    def push(self, message: bytes, event_id: str = "") -> None:
        assert event_id == ""
        self.heard.append(message)


async def test_a_flood_of_changed_tools_brings_one_look_for_each_call() -> None:
    slow, stream = Slow(), Told()
    views = slow.views()
    for _ in range(1000):
        views.list_changed(HERE, stream)
    views.list_changed(HERE, Told())
    assert 2 == len(slow.tasks)
    await slow.settled()

    assert (1, 2) == (len(stream.heard), slow.looks)


async def test_a_flood_of_changed_prompts_brings_two_looks_for_an_agent() -> None:
    slow = Slow()
    views = slow.views()

    def tell() -> None:
        slow.told.append("prompts")

    views.other_changed(HERE, PROMPTS, tell)
    assert 1 == len(slow.tasks)
    await slow.looked.wait()
    for _ in range(1000):
        views.other_changed(HERE, PROMPTS, tell)
    assert 1 == len(slow.tasks)
    await slow.settled()

    assert (2, ["prompts", "prompts"]) == (slow.looks, slow.told)


async def test_policy_and_a_server_are_looked_at_apart() -> None:
    slow = Slow()
    views = slow.views()
    for _ in range(1000):
        views.policy_changed()
        views.list_changed(HERE)
    assert 2 == len(slow.tasks)
    await slow.settled()

    assert {HERE.slug} == set(slow.told)
