"""Tool servers as children of this process: one per (tenant, agent, server), never one per call.

Decides when a child is started, started again or let go (mcp.md 10.1). The command lines are
commands.py's, the talk with a child child.py's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.common.telemetry.counters import Counters
from services.proxy.backends.child import Child, start
from services.proxy.backends.commands import Command, Commands, CommandsInvalid, environment
from services.proxy.backends.secrets import PREFIX, Secrets
from services.proxy.backends.streamable import discovered, introduced
from services.proxy.backends.upstream import (
    Hear,
    Listening,
    Reply,
    Request,
    Session,
    UpstreamFailed,
)
from services.proxy.bridge import OURS, Facts, modern_meta
from services.proxy.calls import Visit
from services.proxy.eras import NEWEST_LEGACY, NEWEST_MODERN

HANDSHAKE_S: Final = 15.0
IDLE_NS: Final = 600 * 1_000_000_000
FIRST_DELAY_NS: Final = 500_000_000
LONGEST_DELAY_NS: Final = 30 * 1_000_000_000
FAILED_STARTS: Final = 5
FAILED_WINDOW_NS: Final = 300 * 1_000_000_000
PER_TENANT: Final = 20
PER_HOST: Final = 100
LAUNCHER: Final = Path(__file__).with_name("launch.py")

_Holder = tuple[TenantId, AgentId, ServerSlug]


@dataclass(slots=True)
class _Slot:
    """A child and its history."""

    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    child: Child | None = None
    facts: Facts | None = None
    entry: str = ""
    used_ns: int = 0
    delay_ns: int = 0
    not_before_ns: int = 0
    failures: list[int] = field(default_factory=list)


class StdioBackend:
    """One per process: it hosts all children."""

    def __init__(
        self,
        *,
        commands: Commands,
        secrets: Secrets,
        clock: Clock,
        counters: Counters,
        homes: Path,
        hidden: Sequence[Path],
        inherited: Mapping[str, str],
        spawn: Callable[[str, Callable[[], Any]], Any],
    ) -> None:
        self._commands = commands
        self._secrets = secrets
        self._clock = clock
        self._requests = counters.counter("proxy.upstream.requests")
        self._started = counters.counter("proxy.upstream.connections")
        self._homes = homes
        self._hidden = hidden
        self._inherited = inherited
        self._spawn = spawn
        self._slots: dict[_Holder, _Slot] = {}

    async def facts(self, visit: Visit) -> Facts:
        return (await self._ready(visit))[1]

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:  # noqa: ARG002
        """A child has one conversation, opened by us: sessions of agents end at the proxy."""
        facts = await self.facts(visit)
        return None if facts.modern else Session("", facts.version)

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,  # noqa: ARG002  # of HTTP
        hear: Hear | None = None,  # noqa: ARG002  # heard later
    ) -> Reply:
        child, _ = await self._ready(visit)
        self._requests.value += 1
        return await child.ask(request.method, request.params, request.timeout_s)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        raise UpstreamFailed("upstream_protocol", ran=False)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        raise UpstreamFailed("upstream_protocol", ran=False, status=405)

    async def close(self, visit: Visit, session: Session) -> None:
        """The child stays: it is the agent's, not the session's."""

    async def sweep(self) -> None:
        """Lets idle children go."""
        now_ns = self._clock.monotonic_ns()
        for holder, slot in list(self._slots.items()):
            child = slot.child
            if slot.starting.locked() or (child is not None and child.busy):
                continue
            if now_ns - slot.used_ns > IDLE_NS:
                del self._slots[holder]
                if child is not None:
                    self._spawn("stop child", child.stop)

    async def shut(self) -> None:
        """All children end; at most ten seconds and a bit."""
        slots, self._slots = self._slots, {}
        async with asyncio.TaskGroup() as group:
            for slot in slots.values():
                if slot.child is not None:
                    group.create_task(slot.child.stop())

    async def _ready(self, visit: Visit) -> tuple[Child, Facts]:
        holder = (visit.caller.tenant, visit.caller.agent, visit.slug)
        slot = self._slots.get(holder)
        if slot is None:
            self._room(visit)
            slot = self._slots[holder] = _Slot()
        slot.used_ns = self._clock.monotonic_ns()
        if slot.child is not None and slot.child.alive and slot.facts is not None:
            return slot.child, slot.facts
        async with slot.starting:
            if slot.child is not None and slot.child.alive and slot.facts is not None:
                return slot.child, slot.facts
            return await self._start(visit, slot)

    def _room(self, visit: Visit) -> None:
        live = [holder for holder, slot in self._slots.items() if slot.child is not None]
        mine = sum(tenant == visit.caller.tenant for tenant, _, _ in live)
        if len(live) >= PER_HOST or mine >= PER_TENANT:
            raise UpstreamFailed("capacity", ran=False)

    async def _start(self, visit: Visit, slot: _Slot) -> tuple[Child, Facts]:
        """1. an entry here  2. not too soon  3. the process  4. the handshake. Raises."""
        command = self._command(visit)  # 1
        now_ns = self._clock.monotonic_ns()
        slot.failures = [at for at in slot.failures if now_ns - at < FAILED_WINDOW_NS]
        if now_ns < slot.not_before_ns or len(slot.failures) >= FAILED_STARTS:  # 2
            raise UpstreamFailed("upstream_unreachable", ran=False)
        if slot.child is not None:  # it ended by itself
            self._back_off(slot, now_ns, failed=False)
        slot.child = slot.facts = None
        home = self._home(visit)
        try:
            env = environment(command, self._inherited, home=home, secrets=self._resolved(command))
            child = await start(self._line(command, home), env=env, cwd=command.cwd)  # 3
        except OSError:
            self._back_off(slot, now_ns, failed=True)
            raise UpstreamFailed("upstream_unreachable", ran=False) from None
        self._started.value += 1
        self._spawn("read child", child.run)
        try:
            facts = await self._greet(child, visit)  # 4
        except UpstreamFailed:
            self._back_off(slot, self._clock.monotonic_ns(), failed=True)
            self._spawn("stop child", child.stop)
            raise
        slot.child, slot.facts = child, facts
        slot.delay_ns = 0
        return child, facts

    async def _greet(self, child: Child, visit: Visit) -> Facts:
        """`server/discover` first: a modern server answers it, a legacy one refuses it."""
        if visit.server.era != "legacy":
            meta = {"_meta": modern_meta(NEWEST_MODERN)}
            reply = await child.ask("server/discover", meta, HANDSHAKE_S)
            facts = discovered(reply)
            if facts is not None:
                return facts
            if visit.server.era == "modern":
                raise UpstreamFailed("upstream_protocol", ran=False)
        params = {"protocolVersion": NEWEST_LEGACY, "capabilities": {}, "clientInfo": OURS}
        facts = introduced(await child.ask("initialize", params, HANDSHAKE_S))
        await child.notify("notifications/initialized")
        return facts

    def _command(self, visit: Visit) -> Command:
        try:
            command = self._commands.get(visit.server.stdio or "")
        except CommandsInvalid:
            raise UpstreamFailed("not_available_here", ran=False) from None
        if command is None:
            raise UpstreamFailed("not_available_here", ran=False)
        return command

    def _back_off(self, slot: _Slot, now_ns: int, *, failed: bool) -> None:
        slot.delay_ns = min(max(FIRST_DELAY_NS, slot.delay_ns * 2), LONGEST_DELAY_NS)
        if failed:
            slot.failures.append(now_ns)
            slot.not_before_ns = now_ns + slot.delay_ns

    def _resolved(self, command: Command) -> dict[str, str]:
        return {
            name: self._secrets.resolve(value)
            for name, value in command.env.items()
            if value.startswith(PREFIX)
        }

    def _home(self, visit: Visit) -> Path:
        """Private to the agent and server; its name tells neither."""
        name = f"{visit.caller.tenant}|{visit.caller.agent}|{visit.slug}"
        home = self._homes / sha256(name.encode()).hexdigest()[:24]
        (home / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
        return home

    def _line(self, command: Command, home: Path) -> list[str]:
        options: list[str] = ["--parent", str(os.getpid())]
        for directory in self._hidden:
            if directory.is_dir():
                options += ["--hide", str(directory)]
        # What the owner of the machine wrote on the command line is what the child is for.
        named = [command.cwd, *command.args, str(home)]
        for path in named:
            if path and self._below_hidden(path):
                options += ["--keep", path]
        line = [*command.sandbox, command.command, *command.args]
        return [sys.executable, "-I", "-S", str(LAUNCHER), *options, "--", *line]

    def _below_hidden(self, path: str) -> bool:
        return Path(path).is_absolute() and any(
            Path(path).is_relative_to(directory) and Path(path) != directory
            for directory in self._hidden
        )
