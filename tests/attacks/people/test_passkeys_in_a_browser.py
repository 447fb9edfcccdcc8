"""A real browser's passkey (Chromium's virtual authenticator, CTAP 2): what it makes and signs is
taken by control, on the site that it is for and no other.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
from aiohttp import web
from playwright.async_api import Page

from services.control.settings import ControlSettings
from tests.fakes.authenticator import Authenticator
from tests.fakes.browser import browsing
from tests.fakes.clock import ManualClock
from tests.fakes.ports import free_port
from tests.fakes.postgres import Database
from tests.integration.control.conftest import opened
from tests.integration.control.escalated import asked, joined, signed_in, state_of
from tests.integration.control.factors import (
    MFA,
    STEP_UP,
    first_half,
    second_half,
    with_passkey,
)
from tests.integration.control.people import USERS, entitle
from tests.integration.control.planes import linked, plane_token
from tests.integration.control.test_problems import check
from tests.promises import promise

pytestmark = pytest.mark.needs_browser

_CREATE: Final = """async (options) => {
    const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
    return (await navigator.credentials.create({publicKey})).toJSON();
}"""
_GET: Final = """async (options) => {
    const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
    return (await navigator.credentials.get({publicKey})).toJSON();
}"""


@asynccontextmanager
async def page_of_the_site() -> AsyncIterator[str]:
    """An empty page on localhost, which is what a passkey is bound to."""
    application = web.Application()

    async def empty(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>x</title>", content_type="text/html")

    application.router.add_get("/", empty)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def authenticator(page: Page, *, verified: bool = True) -> None:
    tool = await page.context.new_cdp_session(page)
    await tool.send("WebAuthn.enable")
    await tool.send(
        "WebAuthn.addVirtualAuthenticator",
        {
            "options": {
                "protocol": "ctap2",
                "transport": "internal",
                "hasResidentKey": True,
                "hasUserVerification": True,
                "isUserVerified": verified,
                "automaticPresenceSimulation": True,
            }
        },
    )


async def in_page(page: Page, script: str, options: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(await page.evaluate(script, options)))
    return answer


@promise("people:second-factor")
async def test_a_browsers_passkey_signs_in_and_proves_again_and_not_from_another_site(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    async with page_of_the_site() as ours, page_of_the_site() as theirs, browsing() as seat:
        here = replace(settings, public_url=ours.replace("localhost", "127.0.0.1"))
        async with opened(here, clock, control_database) as rest:
            page, anna = seat.page, await joined(rest, "anna")
            await page.goto(ours)
            await authenticator(page)
            begun = (await rest.post(f"{MFA}/passkeys:begin", key=anna.token)).json
            made = await in_page(page, _CREATE, begun["options"])
            body = {"name": "laptop", "token": begun["token"], "credential": made}
            added = await rest.post(f"{MFA}/passkeys", body, key=anna.token)
            assert 201 == added.status, added.body

            half = await first_half(rest, anna)
            proof = await in_page(page, _GET, half["passkey"])
            answer = await second_half(rest, half["token"], passkey=proof)
            assert 200 == answer.status, answer.body
            token = answer.json["token"]
            begun = (await rest.post(f"{STEP_UP}:begin", key=token)).json
            proof = await in_page(page, _GET, begun["passkey"])
            said = {"token": begun["token"], "passkey": proof}
            assert 200 == (await rest.post(STEP_UP, said, key=token)).status

            half = await first_half(rest, anna)  # the same machine, another port: another site
            await page.goto(theirs)
            proof = await in_page(page, _GET, half["passkey"])
            stolen = await second_half(rest, half["token"], passkey=proof)
            check(stolen, 401, "unauthenticated")


@promise("page:passkeys-decide")
async def test_a_person_decides_on_the_page_by_their_browsers_passkey(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    """Signs in and proves it again by the page's own script, under the page's own policy."""
    port = free_port()
    here = replace(settings, public_url=f"http://127.0.0.1:{port}", http_listen=f"127.0.0.1:{port}")
    async with browsing() as seat, opened(here, clock, control_database) as rest:
        page, anna = seat.page, await joined(rest, "anna")
        async with linked(rest, plane_token(rest, aud=here.public_url)) as plane:
            escalation = await asked(rest, plane, tier="high")
        at = f"http://localhost:{port}/approve/{escalation}"
        await page.goto(at)
        await authenticator(page)
        begun = (await rest.post(f"{MFA}/passkeys:begin", key=anna.token)).json
        made = await in_page(page, _CREATE, begun["options"])
        body = {"name": "laptop", "token": begun["token"], "credential": made}
        assert 201 == (await rest.post(f"{MFA}/passkeys", body, key=anna.token)).status

        await page.fill("#username", "anna")
        await page.fill("#password", anna.password)
        await page.click("text=Sign in >> nth=-1")
        await page.wait_for_selector("text=Sign in with your passkey")
        assert [] == await seat.grave_findings()
        await page.click("text=Sign in with your passkey")
        await page.wait_for_selector("text=Approve this one call")
        rest.clock.advance(6 * 60)
        await page.goto(at)
        assert [] == await seat.grave_findings()
        seat.complaints.clear()  # axe itself is refused by the page's policy
        await page.click("text=Approve once, with your passkey")
        await page.wait_for_selector("text=This call is approved.")

        assert "approved" == await state_of(rest, escalation)
        assert [] == seat.complaints
        assert {f"localhost:{port}"} == seat.hosts


async def test_whoever_has_no_script_is_told_what_to_do(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    port = free_port()
    here = replace(settings, public_url=f"http://127.0.0.1:{port}", http_listen=f"127.0.0.1:{port}")
    async with browsing(javascript=False) as seat, opened(here, clock, control_database) as rest:
        page, anna = seat.page, await joined(rest, "anna")
        key = Authenticator(origin=f"http://localhost:{port}")
        assert 201 == (await with_passkey(rest, anna, key)).status
        await page.goto(f"http://localhost:{port}/approve/0199d0d0-0000-7000-8000-0000000000aa")
        await page.fill("#username", "anna")
        await page.fill("#password", anna.password)
        await page.click("text=Sign in >> nth=-1")

        assert await page.is_visible("text=Allow JavaScript for this page")
        assert not await page.is_visible("text=Sign in with your passkey")
        assert await page.is_visible("#code")


@promise("people:links-told-once")
async def test_a_link_fills_its_form_and_leaves_the_address(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    port = free_port()
    here = replace(settings, public_url=f"http://127.0.0.1:{port}", http_listen=f"127.0.0.1:{port}")
    async with browsing() as seat, opened(here, clock, control_database) as rest:
        page, anna = seat.page, await joined(rest, "anna")
        entitle(rest)
        admin = await signed_in(rest)
        made = await rest.post(f"{USERS}/{anna.id}:reset-password", key=admin.token)
        await page.goto(made.json["link"])
        assert [] == await seat.grave_findings()
        seat.complaints.clear()  # as above
        assert f"http://127.0.0.1:{port}/reset" == page.url
        assert not await page.is_visible("#token")
        for field in ("#password", "#again"):
            await page.fill(field, "another password")
        await page.click("button")
        await page.wait_for_selector("text=Sign in as anna")

        assert [] == seat.complaints
        assert {f"127.0.0.1:{port}"} == seat.hosts
