"""Control as it runs, on a real PostgreSQL, with the REST API as the only door.

Each test's database holds a second tenant (neighbour.py). Every answer is looked at: whoever may
see something of that tenant says so at the call. At a test's end its rows are as they were.
"""

import asyncio
import functools
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import uuid4

import aiohttp
import asyncpg
import orjson
import pytest
from argon2.profiles import CHEAPEST
from joserfc.jwk import RSAKey

from services.cli import secrets_made
from services.cli.state import open_state
from services.common.ids import TenantId
from services.common.postgres import roles
from services.common.postgres.pool import tenant_tx
from services.common.settings import load
from services.control import api_keys, app
from services.control.settings import ControlSettings
from services.control.store import keys
from tests.fakes.clock import ManualClock
from tests.fakes.lending import Lending, looked_at
from tests.fakes.planted import plant_audit
from tests.fakes.postgres import Database, Plant
from tests.integration.control import neighbour, neighbour_rows

PUBLIC: Final = "http://127.0.0.1:8701"
_GZIP: Final = b"\x1f\x8b"


@dataclass(kw_only=True)
class Answered:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    json: Any
    cookies: list[str] = field(default_factory=list)

    def looked_at(self, what: str) -> None:
        """Raises AssertionError where something of the second tenant is in it."""
        neighbour.unseen(what, str(list(self.headers.items())), *self.cookies, self.body)
        if self.body.startswith(_GZIP):
            neighbour.unseen_in_bundle(self.body)


@dataclass(kw_only=True)
class Rest:
    """Speaks to one running control; `key` is the admin's unless a test says otherwise."""

    base: str
    key: str
    clock: ManualClock
    running: app.Running
    database: Database
    state: Path
    http: aiohttp.ClientSession = field(repr=False)

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        key: str | None = "",
        headers: dict[str, str] | None = None,
        data: Any = None,
        sees_neighbour: bool = False,
    ) -> Answered:
        """`sees_neighbour`: the answer may tell of the second tenant, to whoever runs it all."""
        sent = dict(headers or {})
        if key is not None:
            sent.setdefault("authorization", f"Bearer {key or self.key}")
        async with self.http.request(
            method, self.base + path, json=json, data=data, headers=sent, allow_redirects=False
        ) as answer:
            body = await answer.read()
            is_json = "json" in answer.headers.get("content-type", "")
            answered = Answered(
                status=answer.status,
                headers={name.lower(): value for name, value in answer.headers.items()},
                body=body,
                json=await answer.json(content_type=None) if is_json else None,
                cookies=answer.headers.getall("set-cookie", []),
            )
        if not sees_neighbour:
            answered.looked_at(f"{method} {path}")
        return answered

    async def get(self, path: str, **options: Any) -> Answered:
        return await self.call("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> Answered:
        return await self.call("POST", path, json, **options)

    async def put(self, path: str, json: Any = None, **options: Any) -> Answered:
        return await self.call("PUT", path, json, **options)

    async def token(self, **form: str) -> Answered:
        form = {"grant_type": "client_credentials", **form}
        return await self.call("POST", "/api/v1/auth/token", data=form, key=None)

    async def add_role(self, name: str, *permissions: str) -> None:
        answer = await self.put(f"/api/v1/roles/{name}", {"permissions": list(permissions)})
        assert 200 == answer.status, answer.body

    async def add_agent(self, name: str = "one", **more: Any) -> dict[str, Any]:
        answer = await self.post("/api/v1/agents", {"name": name, **more})
        assert 201 == answer.status, answer.body
        made: dict[str, Any] = answer.json
        return made

    async def add_server(self, slug: str = "time", **more: Any) -> dict[str, Any]:
        body = {"slug": slug, "transport": "stdio", "stdio": slug, **more}
        answer = await self.post("/api/v1/servers", body)
        assert 201 == answer.status, answer.body
        made: dict[str, Any] = answer.json
        return made

    async def records(self) -> list[dict[str, Any]]:
        """What control recorded, oldest first: the drafts in its outbox table."""
        connection = await asyncpg.connect(self.database.admin_dsn)
        try:
            rows = await connection.fetch("SELECT draft FROM control.outbox ORDER BY id")
        finally:
            await connection.close()
        for row in rows:
            neighbour.unseen("a record", row["draft"])
        return [orjson.loads(row["draft"]) for row in rows]


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 at its least: each control that starts hashes one. What it costs is shown in
    unit/control and test_sign_in.py.
    """
    monkeypatch.setattr("services.control.passwords.RFC_9106_LOW_MEMORY", CHEAPEST)


@pytest.fixture(autouse=True)
def keys_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL takes a tenth of a second to find that an RSA key is one: each key is asked once, not
    by each control that starts.
    """
    monkeypatch.setattr("services.control.keys.RSAKey", SimpleNamespace(import_key=_imported))


_imported: Final = functools.cache(RSAKey.import_key)


@pytest.fixture(autouse=True)
def patient_with_entitlements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is for people who wait; beside other tests a change may take longer. That the
    service keeps to it is shown in integration/entitlements/test_size.py.
    """
    monkeypatch.setattr("services.control.clients.entitlements.ENTITLEMENTS_S", 5.0)


@pytest.fixture(scope="session")
def made_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with every secret, made once: keys are dear."""
    root = tmp_path_factory.mktemp("state") / "s"
    secrets_made.make_all(open_state(root), plane_id="dp-local")
    return root


@pytest.fixture
def state(made_state: Path, tmp_path: Path) -> Path:
    root = tmp_path / "s"
    shutil.copytree(made_state, root)
    (root / "run").mkdir(mode=0o700)
    if not (root / "plane-keys.json").exists():
        (root / "plane-keys.json").write_text("{}")
    return root


def beside_neighbour(
    lending: Lending, services: tuple[str, ...], *plants: Plant
) -> Iterator[Database]:
    """A database that holds the second tenant, and holds it unchanged in the end."""
    made = lending.lend(services, plants)
    try:
        before = lending.once(made, neighbour.found)
        yield made
        neighbour.untouched(before, looked_at(made, neighbour.found))
    finally:
        lending.take_back(made)


@pytest.fixture
def control_database(lending: Lending) -> Iterator[Database]:
    yield from beside_neighbour(lending, ("control",), neighbour_rows.plant)


@pytest.fixture
def database(lending: Lending) -> Iterator[Database]:
    """Every service's schema. One tenant alone is left, for its admin to activate licences."""
    plants = (plant_audit, neighbour_rows.plant_gone)
    yield from beside_neighbour(lending, tuple(roles.SCHEMAS), *plants)


@pytest.fixture
def settings(state: Path, control_database: Database) -> ControlSettings:
    return load(
        ControlSettings,
        {
            "BEHAVRY_STATE_DIR": str(state),
            "BEHAVRY_ENV": "development",
            "BEHAVRY_CONTROL_DB_URL": control_database.dsn("behavry_control"),
            "BEHAVRY_CONTROL_HTTP_LISTEN": "127.0.0.1:0",
            "BEHAVRY_CONTROL_PUBLIC_URL": PUBLIC,
        },
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def opened(
    settings: ControlSettings, clock: ManualClock, database: Database
) -> AsyncIterator[Rest]:
    async with (
        app.running(settings, clock=clock) as running,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        await _listening(running)
        yield Rest(
            base=f"http://{running.http_address}",
            key=settings.admin_api_key_file.read_text().strip(),
            clock=clock,
            running=running,
            database=database,
            state=settings.state_dir,
            http=http,
        )


async def _listening(running: app.Running) -> None:
    """Until it hears other processes of control: it looks at everything once more then."""
    signals = running.control.signals
    heard = signals.listen()
    async with asyncio.timeout(5):
        while not signals.escalations:
            await heard.wait()
    signals.forget(heard)


@pytest.fixture
async def rest(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> AsyncIterator[Rest]:
    async with opened(settings, clock, control_database) as running:
        yield running


@pytest.fixture
async def other_key(rest: Rest) -> str:
    """The API key of a second tenant's admin."""
    key, tenant = api_keys.new_key("local"), uuid4()
    connection = await asyncpg.connect(rest.database.admin_dsn)
    now = datetime.fromtimestamp(rest.clock.now_ns() / 1e9, UTC)
    await connection.execute(
        "INSERT INTO control.tenants VALUES ($1, 'second', 'Second', 'active', $2)", tenant, now
    )
    await connection.execute(
        "INSERT INTO control.agent_classes VALUES ($1, 'default', true)", tenant
    )
    await connection.close()
    pool = rest.running.control.pool
    async with tenant_tx(pool, str(tenant)) as transaction:
        made = await keys.insert(
            transaction, TenantId(str(tenant)), key, name="second", role="admin", created_by="test",
            now=now, expires_at=now + timedelta(days=1),
        )  # fmt: skip
    assert made
    return key.text
