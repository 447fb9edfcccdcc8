"""The distribution's Chromium, headless, in a profile of its own: a person in front of a page.

Decides how the browser is started and how a page is judged: by axe, and by what the page's own
security policy refused.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Page, async_playwright

from tests.fakes.neighbour import unseen
from tests.house import AXE, tool

#: No sandbox: tests run as root in a namespace that holds nothing but loopback.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
GRAVE = frozenset({"serious", "critical"})


@dataclass(slots=True, kw_only=True)
class Seat:
    """A page, and what went wrong on it."""

    page: Page
    #: Hosts that the page asked for anything.
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    async def grave_findings(self) -> list[str]:
        """What axe calls serious or critical, as `rule: selector`."""
        unseen(await self.page.content())
        await self.page.evaluate(AXE.read_text())
        report: dict[str, Any] = await self.page.evaluate("() => axe.run(document)")
        return [
            f"{one['id']}: {node['target']}"
            for one in report["violations"]
            if one["impact"] in GRAVE
            for node in one["nodes"]
        ]


@asynccontextmanager
async def browsing(*, javascript: bool = True, dark: bool = False) -> AsyncIterator[Seat]:
    chromium = tool("chromium")
    assert chromium is not None
    async with (
        async_playwright() as driver,
        await driver.chromium.launch(executable_path=chromium, args=list(FLAGS)) as browser,
        await browser.new_context(
            java_script_enabled=javascript, color_scheme="dark" if dark else "light"
        ) as context,
    ):
        page = await context.new_page()
        seat = Seat(page=page)
        page.on("request", lambda asked: seat.hosts.add(asked.url.split("/")[2]))
        page.on(
            "console",
            lambda said: seat.complaints.append(said.text) if said.type == "error" else None,
        )
        page.on("pageerror", lambda failed: seat.complaints.append(str(failed)))
        yield seat
        unseen(await page.content())
