"""Tool servers as children of this process: one per (tenant, agent, server), never one per call.

Decides when a child is started, started again or let go (mcp.md 10.1), and which one an agent
speaks with: a legacy child is told once what its client can do, so agents' sessions that can do
different things have different children. The command lines are commands.py's, the talk with a
child child.py's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.common.telemetry.counters import Counters
from services.proxy import messages
from services.proxy.backends import leftovers
from services.proxy.backends.child import Child, start
from services.proxy.backends.commands import Command, Commands, CommandsInvalid, environment
from services.proxy.backends.secrets import PREFIX, Secrets
from services.proxy.backends.upstream import (
    Hear,
    Listening,
    Reply,
    Request,
    Session,
    UpstreamFailed,
    discovered,
    introduced,
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

#: Tenant, agent (empty where agents share a child), server, and the capabilities of the client as
#: canonical JSON.
_Holder = tuple[TenantId, AgentId, ServerSlug, str]
_NOTHING: Final = "{}"
_SHARED: Final = AgentId("")


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

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.talk.alive

    def fits(self, visit: Visit) -> bool:
        """Whether it runs, and what the server's entry names now."""
        return self.alive and self.facts is not None and self.entry == visit.server.stdio


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
        self._dropped = counters.counter("proxy.upstream.dropped")
        self._homes = homes
        self._hidden = hidden
        self._inherited = inherited
        self._spawn = spawn
        self._slots: dict[_Holder, _Slot] = {}

    async def facts(self, visit: Visit) -> Facts:
        known = next((slot for slot in self._running_of(visit) if slot.facts is not None), None)
        if known is not None and known.facts is not None:
            return known.facts
        return (await self._ready(visit))[1]

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        """A child has one conversation, opened by us. The session says which one."""
        if (await self.facts(visit)).modern:
            return None
        alone = visit.server.share == "agent"  # of a shared child nobody can be asked anything
        told = messages.encode(dict(capabilities), sort=True).decode() if alone else _NOTHING
        _, facts = await self._ready(visit, told)
        return Session(told, facts.version)

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        child, _ = await self._ready(visit, _told(session))
        self._requests.value += 1
        return await child.talk.ask(request, hear)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        slot = self._slots.get(_holder(visit, _told(session)))
        if slot is None or not slot.alive or slot.child is None:
            raise UpstreamFailed("upstream_unreachable", ran=False)  # it asked nothing, then
        await slot.child.talk.tell(message)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        child, facts = await self._ready(visit, _told(session))
        await child.talk.listen(listening, hear, modern=facts.modern)

    async def close(self, visit: Visit, session: Session) -> None:
        """The child stays: it is the agent's, not the session's."""

    async def sweep(self) -> None:
        """Lets idle children go."""
        now_ns = self._clock.monotonic_ns()
        for holder, slot in list(self._slots.items()):
            child = slot.child
            if slot.starting.locked() or (child is not None and child.talk.busy):
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

    def _running_of(self, visit: Visit) -> Iterator[_Slot]:
        """Children of this server, whoever they are for: they are alike in what they are."""
        for (tenant, _, slug, _), slot in self._slots.items():
            if (tenant, slug) == (visit.caller.tenant, visit.slug) and slot.fits(visit):
                yield slot

    async def _ready(self, visit: Visit, told: str = _NOTHING) -> tuple[Child, Facts]:
        holder = _holder(visit, told)
        slot = self._slots.get(holder)
        if slot is None:
            slot = self._slots[holder] = _Slot()
        slot.used_ns = self._clock.monotonic_ns()
        if slot.fits(visit) and slot.child is not None and slot.facts is not None:
            return slot.child, slot.facts
        async with slot.starting:
            if slot.fits(visit) and slot.child is not None and slot.facts is not None:
                return slot.child, slot.facts
            self._room(visit, slot)
            return await self._start(visit, slot, told)

    def _room(self, visit: Visit, slot: _Slot) -> None:
        """For one more beside those that run or are being started. Raises UpstreamFailed."""
        others = ((holder, one) for holder, one in self._slots.items() if one is not slot)
        live = [holder for holder, one in others if one.alive or one.starting.locked()]
        mine = sum(tenant == visit.caller.tenant for tenant, *_ in live)
        if len(live) >= PER_HOST or mine >= PER_TENANT:
            raise UpstreamFailed("capacity", ran=False)

    async def _start(self, visit: Visit, slot: _Slot, told: str) -> tuple[Child, Facts]:
        """1. an entry here  2. not too soon  3. the process  4. the handshake. Raises."""
        command = self._command(visit)  # 1
        now_ns = self._clock.monotonic_ns()
        slot.failures = [at for at in slot.failures if now_ns - at < FAILED_WINDOW_NS]
        if now_ns < slot.not_before_ns or len(slot.failures) >= FAILED_STARTS:  # 2
            raise UpstreamFailed("upstream_unreachable", ran=False)
        if slot.alive and slot.child is not None:  # the entry names another command now
            self._spawn("stop child", slot.child.stop)
        elif slot.child is not None:  # it ended by itself
            self._back_off(slot, now_ns, failed=False)
        slot.child = slot.facts = None
        try:
            home = self._home(visit, command)
            env = environment(command, self._inherited, home=home, secrets=self._resolved(command))
            line = self._line(command, home)
            shared = visit.server.share == "server"
            child = await start(  # 3
                line,
                env=env,
                cwd=command.cwd,
                dropped=self._dropped,
                spawn=self._spawn,
                shared=shared,
            )
            leftovers.note(home, child.pid)
        except OSError:
            self._back_off(slot, now_ns, failed=True)
            raise UpstreamFailed("upstream_unreachable", ran=False) from None
        self._started.value += 1
        self._spawn("read child", child.run)
        try:
            facts = await self._greet(child, visit, told)  # 4
        except UpstreamFailed:
            self._back_off(slot, self._clock.monotonic_ns(), failed=True)
            self._spawn("stop child", child.stop)
            raise
        except asyncio.CancelledError:  # whoever asked for it is gone, and nobody else knows it
            self._spawn("stop child", child.stop)
            raise
        slot.child, slot.facts, slot.entry = child, facts, visit.server.stdio or ""
        slot.delay_ns = 0
        return child, facts

    async def _greet(self, child: Child, visit: Visit, told: str) -> Facts:
        """`server/discover` first: a modern server answers it, a legacy one refuses it."""
        if visit.server.era != "legacy":
            params: dict[str, Any] = {"_meta": modern_meta(NEWEST_MODERN)}
            reply = await child.talk.ask(_handshake("server/discover", params))
            facts = discovered(reply)
            if facts is not None:
                return facts
            if visit.server.era == "modern":
                raise UpstreamFailed("upstream_protocol", ran=False)
        params = {
            "protocolVersion": NEWEST_LEGACY,
            "capabilities": messages.decode(told.encode()),
            "clientInfo": OURS,
        }
        facts = introduced(await child.talk.ask(_handshake("initialize", params)))
        await child.talk.tell({"method": "notifications/initialized"})
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

    def _home(self, visit: Visit, command: Command) -> Path:
        """Private to the agent and server; its name tells neither. Raises OSError."""
        agent = _SHARED if visit.server.share == "server" else visit.caller.agent
        name = f"{visit.caller.tenant}|{agent}|{visit.slug}"
        home = self._homes / sha256(name.encode()).hexdigest()[:24]
        self._homes.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (home, home / "tmp"):
            directory.mkdir(mode=0o700, exist_ok=True)
            if command.uid is not None:  # whoever lives there may have put a link in its place
                os.chown(directory, command.uid, -1, follow_symlinks=False)
        return home

    def _line(self, command: Command, home: Path) -> list[str]:
        options: list[str] = ["--parent", str(os.getpid())]
        if command.uid is not None:
            options += ["--uid", str(command.uid), "--home", str(home)]
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


def _holder(visit: Visit, told: str) -> _Holder:
    agent = _SHARED if visit.server.share == "server" else visit.caller.agent
    return visit.caller.tenant, agent, visit.slug, told


def _told(session: Session | None) -> str:
    return session.id if session is not None and session.id else _NOTHING


def _handshake(method: str, params: dict[str, Any]) -> Request:
    return Request(method=method, params=params, timeout_s=HANDSHAKE_S)
