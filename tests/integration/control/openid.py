"""What tests of sign-in by a provider share: a tenant that has one, and a browser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from tests.fakes.openid import CLIENT, SECRET, OpenIdProvider
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import run

LOGIN: Final = "/api/v1/auth/login"
CALLBACK: Final = "/api/v1/auth/callback"
LOGOUT: Final = "/api/v1/auth/backchannel-logout"
SESSION: Final = "behavry_local"
FORM: Final = "application/x-www-form-urlencoded"


async def signs_in_by(rest: Rest, issuer: str, tenant: str = "", **more: Any) -> None:
    """The tenant's settings, as two people would have agreed on them."""
    secrets = rest.state / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "oidc").write_text(SECRET)
    oidc = {
        "issuer": issuer, "client_id": CLIENT, "client_secret": "secret://oidc",
        "scopes": ["openid", "email"], "role_claim": None, "roles": [], "just_in_time": True,
        "email_domains": [], **more,
    }  # fmt: skip
    await run(
        rest,
        "INSERT INTO control.auth_settings VALUES ($1, 'oidc', $2, 1, now(), 1)"
        " ON CONFLICT (tenant_id) DO UPDATE SET provider = 'oidc', document = excluded.document,"
        " revision = auth_settings.revision + 1, in_force = auth_settings.revision + 1",
        tenant or rest.running.tenant.id, json.dumps({"oidc": oidc}),
    )  # fmt: skip


async def by_password_again(rest: Rest) -> None:
    tenant = rest.running.tenant.id
    await run(rest, "DELETE FROM control.auth_settings WHERE tenant_id = $1", tenant)


@dataclass(kw_only=True)
class Browser:
    """Keeps cookies, follows nothing."""

    rest: Rest
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, **query: str) -> Answered:
        url = f"{path}?{urlencode(query)}" if query else path
        answer = await self.rest.get(url, key=None, headers=self._headers())
        self.take(answer)
        return answer

    def take(self, answer: Answered) -> None:
        """The cookies of an answer."""
        for line in answer.cookies:
            name, _, rest = line.partition("=")
            value = rest.partition(";")[0]
            self.cookies.pop(name, None)
            if value:
                self.cookies[name] = value

    def _headers(self) -> dict[str, str]:
        sent = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {"cookie": sent} if sent else {}

    async def begin(self, **query: str) -> str:
        """Where the provider is."""
        answer = await self.get(LOGIN, **{"tenant": self.rest.running.tenant.slug} | query)
        assert 302 == answer.status, answer.body
        return answer.headers["location"]

    async def sign_in(
        self, provider: OpenIdProvider, subject: str = "anna", **claims: Any
    ) -> Answered:
        location = await self.begin()
        return await self.get(CALLBACK, **provider.consent(location, subject, **claims))

    async def me(self) -> dict[str, Any]:
        answer = await self.get("/api/v1/me")
        assert 200 == answer.status, answer.body
        me: dict[str, Any] = answer.json
        return me

    async def send(self, path: str, **fields: str) -> Answered:
        """A form of our own page."""
        headers = {**self._headers(), "origin": PUBLIC, "content-type": FORM}
        data = urlencode(fields)
        answer = await self.rest.call("POST", path, data=data, headers=headers, key=None)
        self.take(answer)
        return answer

    async def post(self, path: str, body: Any = None, *, csrf: str = "") -> Answered:
        headers = self._headers() | {"origin": PUBLIC, "x-csrf-token": csrf}
        return await self.rest.post(path, body, key=None, headers=headers)


async def failures(rest: Rest) -> list[str]:
    """Why sign-ins were refused, as recorded."""
    return [
        str(one["reason"]) for one in await rest.records() if one["type"] == "user.signin_failed"
    ]
