"""`behavry up`: everything on one machine, from nothing to ready, until it is told to stop.

Numbered in the order things run: 1. settings that do not go together 2. the state directory, held
3. secrets 4. ports 5. PostgreSQL, its roles and migrations 6. the five services, OPA and a host of
stdio servers 7. demo data through the REST API 8. all ready: say where everything is 9. a signal:
end everything in reverse.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli import database, demo_data, engines, plan, ports, secrets_made, summary
from services.cli.children import Children, NotReady
from services.cli.output import CommandFailed, Exit, say
from services.cli.state import (
    Remembered,
    State,
    hold,
    open_state,
    recall,
    remember,
    runtime_dir,
    write_json,
)
from services.common.postgres import embedded
from services.common.postgres.pool import check_url

READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller asked for."""

    root: Path
    port_base: int | None
    db_url: str | None
    engine: str
    json: bool
    demo: bool


def run(options: Options, caller: Mapping[str, str]) -> None:
    """Block until a signal. Raises CommandFailed when it cannot start."""
    os.umask(0o077)  # whatever a process makes in the state directory is ours alone
    asyncio.run(_until_signal(options, caller))


async def _until_signal(options: Options, caller: Mapping[str, str]) -> None:
    """A signal unwinds the running step wherever it is; a second one is not needed and changes
    nothing.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # asyncio.run made one
    signalled = False

    def leave() -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, leave)
    try:
        await _serve(options, caller)
    except asyncio.CancelledError:
        if not signalled:
            raise
        say("stopped")


async def _serve(options: Options, caller: Mapping[str, str]) -> None:
    chosen = engines.choose(options.engine, opa_url=caller.get("BEHAVRY_OPA_URL", ""))
    production = _refuse_embedded_in_production(options, chosen, caller)  # 1
    plan.several_proxies(caller)
    state = open_state(options.root)  # 2
    async with AsyncExitStack() as stack:
        stack.enter_context(hold(state))
        stack.callback(state.running_file.unlink, missing_ok=True)
        known = recall(state)
        await asyncio.to_thread(secrets_made.make_all, state, plane_id=known.plane_id)  # 3
        remembered = ports.choose(known, base=options.port_base)  # 4
        run_dir = runtime_dir(state, remembered.run_dir)
        remembered = _keep(state, remembered, run_dir)
        decided = plan.Plan(
            state=state,
            remembered=remembered,
            run_dir=run_dir,
            engine=chosen,
            production=production,
            caller=caller,
        )
        await _start(options, decided, stack)


def _refuse_embedded_in_production(
    options: Options, chosen: engines.Engine, caller: Mapping[str, str]
) -> bool:
    environment = caller.get("BEHAVRY_ENV") or "development"
    if environment not in {"production", "development"}:
        raise CommandFailed(
            f"BEHAVRY_ENV={environment!r} cannot be used. Allowed: production, development.",
            status=Exit.USAGE,
        )
    if options.db_url is not None:
        try:
            check_url(options.db_url)
        except ValueError as bad:
            raise CommandFailed(f"--db-url: {bad}", status=Exit.USAGE) from None
    if environment == "development":
        return False
    if options.db_url is None:
        raise CommandFailed(
            "BEHAVRY_ENV=production refuses the embedded PostgreSQL: name a server with --db-url."
            " Allowed here: development.",
            status=Exit.USAGE,
        )
    if chosen is engines.Engine.EMBEDDED:
        raise CommandFailed(
            "BEHAVRY_ENV=production refuses BEHAVRY_AUTHORIZER_ENGINE=embedded. Allowed here: opa.",
            status=Exit.USAGE,
        )
    return True


def _keep(state: State, remembered: Remembered, run_dir: Path) -> Remembered:
    kept = Remembered(
        **{
            **{name: getattr(remembered, name) for name in remembered.__slots__},
            "run_dir": str(run_dir),
        }
    )
    remember(state, kept)
    return kept


async def _start(options: Options, decided: plan.Plan, stack: AsyncExitStack) -> None:
    document: dict[str, Any] = {}

    def changed() -> None:
        write_json(
            decided.state.running_file, {**document, "processes": summary.processes(children)}
        )

    children = Children(changed=changed)
    try:
        await stack.enter_async_context(children)
        admin_dsn = options.db_url or await _embedded(decided, children)  # 5
        dsns = await database.prepare(admin_dsn, passfiles=decided.state.passfiles)
        if decided.engine is engines.Engine.OPA_CHILD:  # 6
            children.start(plan.opa(decided))
        if decided.hosts_stdio:
            children.start(plan.stdio_host(decided))
        started = {
            name: children.start(plan.service(decided, name, dsns)) for name in plan.SERVICES
        }
        await started["control"].until_ready(timeout_s=READY_TIMEOUT_S)
        demo = await asyncio.to_thread(demo_data.ensure, decided) if options.demo else None  # 7
        await children.until_ready(timeout_s=READY_TIMEOUT_S)
        document |= summary.document(decided, children, demo)  # 8
        changed()
        summary.show(document, as_json=options.json)
        await asyncio.Event().wait()  # 9
    except NotReady as late:
        raise CommandFailed(str(late)) from None


async def _embedded(decided: plan.Plan, children: Children) -> str:
    state = decided.state
    try:
        cluster = embedded.locate(
            state.root,
            socket_dir=decided.run_dir,
            passfile=state.passfiles / f"{embedded.SUPERUSER}.pgpass",
        )
        await asyncio.to_thread(embedded.initialise, cluster)
    except embedded.EmbeddedUnavailable as why:
        raise CommandFailed(str(why)) from why
    server = children.start(plan.postgres(decided, cluster))
    await server.until_ready(timeout_s=READY_TIMEOUT_S)
    await database.create_database(cluster)
    return cluster.dsn()
