"""A provider of others' making (npm oidc-provider), its forms filled in over HTTP: it is tried and
comes into force; somebody signs in, proves it again, gets the role of their groups, lets a command
line in, and is signed out there and so here.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urljoin, urlsplit

import aiohttp
import pytest

from services.cli import devices
from services.common.clock import SystemClock
from tests.fakes.asking import ask_until
from tests.fakes.openid import CLIENT, SECRET
from tests.house import IDP, tool
from tests.integration.control.conftest import PUBLIC, Rest
from tests.integration.control.escalated import joined
from tests.integration.control.openid import (
    CALLBACK,
    LOGOUT,
    SESSION,
    Browser,
    by_password_again,
    signs_in_by,
)
from tests.integration.control.people import entitle, operator
from tests.integration.control.test_auth_settings import approve, put, tried
from tests.promises import promise

pytestmark = pytest.mark.needs_idp

SERVER: Final = Path(__file__).parent / "idp" / "server.mjs"
GROUPS: Final = {"anna": ["staff"], "bob": []}
_FORM: Final = re.compile(r'<form[^>]*\baction="([^"]*)"', re.DOTALL)
_INPUT: Final = re.compile(r"<input\b[^>]*>", re.DOTALL)
_ATTRIBUTE: Final = re.compile(r'\b(name|value)="([^"]*)"')


@pytest.fixture
def clock() -> SystemClock:
    """The provider's time is the machine's."""
    return SystemClock()


@pytest.fixture
async def issuer(rest: Rest) -> AsyncIterator[str]:
    told = {
        "module": str(IDP), "client_id": CLIENT, "client_secret": SECRET, "groups": GROUPS,
        "redirect_uri": f"{PUBLIC}{CALLBACK}", "logout_uri": f"{rest.base}{LOGOUT}",
    }  # fmt: skip
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        str(tool("node")), str(SERVER), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(told).encode() + b"\n")
        async with asyncio.timeout(30):
            said = json.loads(await child.stdout.readline())
        roles = [{"value": "staff", "role": "analyst"}]
        await signs_in_by(rest, said["issuer"], role_claim="groups", roles=roles)
        entitle(rest)
        yield said["issuer"]
    finally:
        child.kill()
        await child.wait()


class Shown(asyncio.Queue[str]):
    """What the command line says, from its thread to here."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()

    def say(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self.put_nowait, text)


def inputs(page: str) -> dict[str, str]:
    """What a form sends of itself."""
    found = (dict(_ATTRIBUTE.findall(tag)) for tag in _INPUT.findall(page))
    return {one["name"]: unescape(one.get("value", "")) for one in found if "name" in one}


@dataclass(kw_only=True)
class Person:
    """Somebody before the provider's pages, in a browser that the provider remembers."""

    name: str
    http: aiohttp.ClientSession = field(repr=False)

    async def sign_in(self, location: str) -> dict[str, str]:
        """Fills in whatever form comes, until the browser is sent back: with what."""
        fields, method, asked = dict[str, str](), "GET", location
        for _ in range(12):
            async with self.http.request(
                method, asked, data=fields or None, allow_redirects=False
            ) as answer:
                text, goes = await answer.text(), answer.headers.get("location", "")
            if goes.startswith(PUBLIC):
                return dict(parse_qsl(urlsplit(goes).query))
            if goes:
                method, asked, fields = "GET", urljoin(asked, goes), {}
                continue
            form = _FORM.search(text)
            assert form, text
            fields = inputs(text)
            fields |= {"login": self.name, "password": "any"} if "login" in fields else {}
            method, asked = "POST", urljoin(asked, unescape(form[1]))
        raise AssertionError("the provider asks and asks")

    async def sign_out(self, issuer: str) -> None:
        async with self.http.get(f"{issuer}/session/end") as answer:
            text = await answer.text()
        form = _FORM.search(text)
        assert form, text
        fields = inputs(text) | {"logout": "yes"}
        async with self.http.post(urljoin(issuer, unescape(form[1])), data=fields) as answer:
            assert 200 == answer.status


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address are kept too
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        yield session


@promise("people:provider-real")
async def test_somebody_signs_in_proves_it_again_and_is_signed_out_by_a_real_provider(
    rest: Rest, issuer: str, http: aiohttp.ClientSession
) -> None:
    anna, browser = Person(name="anna", http=http), Browser(rest=rest)
    back = await anna.sign_in(await browser.begin())
    assert issuer == back["iss"]
    assert 303 == (await browser.get(CALLBACK, **back)).status
    me, first = await browser.me(), browser.cookies[SESSION]
    assert ("analyst", "default:anna@example.org") == (me["role"], me["name"])

    again = await anna.sign_in(await browser.begin(step_up="true"))
    assert 303 == (await browser.get(CALLBACK, **again)).status
    assert first != browser.cookies[SESSION]
    assert me["id"] == (await browser.me())["id"]
    assert 401 == (await browser.get(CALLBACK, **again)).status  # once

    await anna.sign_out(issuer)
    gone = await ask_until(lambda: browser.get("/api/v1/me"), lambda a: a.status != 200)
    assert (401, "session_expired") == (gone.status, gone.json["code"])


async def test_whoever_has_no_group_is_a_viewer_at_a_real_provider(
    rest: Rest, issuer: str, http: aiohttp.ClientSession
) -> None:
    bob, browser = Person(name="bob", http=http), Browser(rest=rest)
    back = await bob.sign_in(await browser.begin())
    thief = Browser(rest=rest)
    assert 401 == (await thief.get(CALLBACK, **back)).status
    assert 303 == (await browser.get(CALLBACK, **back)).status

    assert "viewer" == (await browser.me())["role"]


@promise("people:provider-real")
async def test_a_real_provider_is_tried_comes_into_force_and_lets_a_command_line_in(
    rest: Rest, issuer: str, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await by_password_again(rest)
    chief, boss = await joined(rest, "chief", "admin"), await operator(rest)
    oidc = {"issuer": issuer, "client_id": CLIENT, "client_secret": "secret://oidc",
            "just_in_time": True, "role_claim": "groups",
            "roles": [{"value": "staff", "role": "analyst"}]}  # fmt: skip
    assert 200 == (await put(rest, chief, {"provider": "oidc", "oidc": oidc})).status
    assert 200 == (await approve(rest, boss, 1)).status
    anna, browser = Person(name="anna", http=http), Browser(rest=rest)
    link = dict(parse_qsl(urlsplit((await tried(rest, chief)).json["uri"]).query))
    back = await anna.sign_in(await browser.begin(**link))
    passed = await browser.get(CALLBACK, **back)
    assert (200, {}) == (passed.status, browser.cookies)
    assert "come in here as analyst" in passed.body.decode()

    shown, go_on = Shown(), threading.Event()
    monkeypatch.setattr(devices, "say", shown.say)
    monkeypatch.setattr(devices, "pause", lambda _: go_on.wait(30) or None)
    waits = asyncio.create_task(asyncio.to_thread(devices.open_session, rest.base))
    page = urlsplit((await shown.get()).removeprefix("open ")).path
    form = (await browser.get(page, tenant="default")).body.decode()
    [login] = re.findall(r'href="(/api/v1/auth/login[^"]*)"', form)
    location = (await browser.get(unescape(login))).headers["location"]
    assert 303 == (await browser.get(CALLBACK, **await anna.sign_in(location))).status
    csrf = (await browser.me())["csrf_token"]
    said = await browser.send(page, act="approve", csrf=csrf)
    assert 200 == said.status
    go_on.set()
    session = await waits
    me = (await rest.get("/api/v1/me", key=session.token)).json
    assert ("analyst", session.username) == (me["role"], me["name"])

    await anna.sign_out(issuer)
    gone = await ask_until(
        lambda: rest.get("/api/v1/me", key=session.token), lambda a: a.status != 200
    )
    assert (401, "session_expired") == (gone.status, gone.json["code"])
