"""A real PostgreSQL for tests: one embedded server per session, a fresh migrated database per test.

A database is a copy of a template made once per session, which holds what its fixture plants there.
`control_database` has the schema of control alone; the others are databases.py's.
"""

import asyncio
import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.common.postgres import embedded, migrations, roles
from services.common.postgres.connection import SingleConnection

Work = Callable[[SingleConnection], Awaitable[None]]
Plant = Callable[["Database"], Coroutine[Any, Any, None]]


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database; `dsn` answers the address of a role (`behavry_control`, `behavry_audit_writer`,
    ...).
    """

    admin_dsn: str
    passfiles: Path
    #: Tables in which a test changes rows of the second tenant (neighbour.py), and why it may.
    may_change: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.admin_dsn.split("/")[3].split("?")[0]

    def dsn(self, role: str) -> str:
        return roles.role_dsn(self.admin_dsn, role, roles.passfile_of(self.passfiles, role))


@dataclass(kw_only=True)
class Server:
    """The running server; a test that kills it makes one of its own."""

    directory: Path
    cluster: embedded.Cluster
    process: subprocess.Popen[bytes]
    templates: dict[tuple[tuple[str, ...], tuple[Plant, ...]], str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def passfiles(self) -> Path:
        return self.directory / "passfiles"

    def create_database(self, services: tuple[str, ...], plants: Sequence[Plant] = ()) -> Database:
        """A new database with the schemas of these services, and what is planted in it."""
        key = (services, tuple(plants))
        if key not in self.templates:
            name = f"template_{next(self.numbers)}"
            self._run("postgres", _create(name, template="template0"))
            self._run(name, lambda connection: self._migrate(connection, services, name))
            for plant in plants:
                asyncio.run(plant(self._database(name)))
            self.templates[key] = name
        name = f"test_{next(self.numbers)}"
        self._run("postgres", _create(name, template=self.templates[key]))
        return self._database(name)

    def _database(self, name: str) -> Database:
        return Database(admin_dsn=self.cluster.dsn(database=name), passfiles=self.passfiles)

    async def _migrate(
        self, connection: SingleConnection, services: tuple[str, ...], name: str
    ) -> None:
        for service in services:
            await roles.ensure_roles(
                connection,
                service=service,
                admin_dsn=self.cluster.dsn(database=name),
                passfiles=self.passfiles,
            )
            await migrations.migrate(connection, service=service, package=f"services.{service}")

    def drop_database(self, database: Database) -> None:
        self._run("postgres", _drop(database.name))

    def _run(self, database: str, work: Work) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(self.cluster.dsn(database=database))
            try:
                await work(connection)
            finally:
                await connection.close()

        asyncio.run(run())


def _create(name: str, *, template: str) -> Work:
    async def work(connection: SingleConnection) -> None:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")

    return work


def _drop(name: str) -> Work:
    async def work(connection: SingleConnection) -> None:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    return work


def start_server(directory: Path, *, durable: bool = False) -> Server:
    """Make and start a server in this directory (kept short: a socket's path has a limit)."""
    cluster = embedded.locate(
        directory,
        socket_dir=directory / "run",
        passfile=directory / "passfiles" / f"{embedded.SUPERUSER}.pgpass",
        durable=durable,
    )
    embedded.initialise(cluster)
    with (directory / "postgres.log").open("ab") as log:
        process = subprocess.Popen(
            cluster.argv(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **cluster.spawn_identity(),  # type: ignore[call-overload]  # user, group, extra_groups only
        )
    try:
        asyncio.run(embedded.await_ready(cluster, pid=process.pid, timeout_s=30))
    except TimeoutError:
        process.kill()
        raise RuntimeError((directory / "postgres.log").read_text()[-2000:]) from None
    return Server(directory=directory, cluster=cluster, process=process)


def stop_server(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.process.send_signal(signal.SIGQUIT)
        server.process.wait(timeout=10)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The session's server. Not durable: no test of ours cuts the machine's power."""
    directory = Path(tempfile.mkdtemp(prefix="bvpg-"))
    try:
        server = start_server(directory)
        try:
            yield server
        finally:
            stop_server(server)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def fresh(
    postgres: Server, services: tuple[str, ...], plants: Sequence[Plant] = ()
) -> Iterator[Database]:
    made = postgres.create_database(services, plants)
    yield made
    postgres.drop_database(made)


@pytest.fixture
def control_database(postgres: Server) -> Iterator[Database]:
    yield from fresh(postgres, ("control",))
