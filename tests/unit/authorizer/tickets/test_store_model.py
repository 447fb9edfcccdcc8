"""Random lives of tickets, with crashes in between, against a model that knows nothing but
core.md 9: how often each was used, and by what it ended.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from services.authorizer.tickets.local import LocalTicketStore, local_ticket_store
from services.authorizer.tickets.protocol import TooManyPending
from services.authorizer.tickets.ticket import Opening, Ticket, Verdict
from services.common.telemetry.logging import get_log
from tests.fakes.tickets import AGENT, MINUTE_MS, START_MS, TENANT, approval, opening, refusal

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class Modelled:
    opening: Opening
    state: str = "pending"
    uses: int = 0
    granted: int = 0
    until_ms: int = 0
    ended_ms: int = 0

    def end(self, state: str, now_ms: int) -> None:
        self.state, self.ended_ms = state, now_ms

    def look_at_the_clock(self, now_ms: int) -> None:
        if self.state == "pending" and now_ms > self.opening.decide_by_ms:
            self.end("expired", now_ms)
        if self.state == "approved" and now_ms > self.until_ms:
            self.end("lapsed", now_ms)

    def answers(self, now_ms: int) -> bool:
        if self.state in {"pending", "approved"}:
            return True
        if self.state == "denied":
            return now_ms <= max(self.opening.decide_by_ms, self.ended_ms + 5 * MINUTE_MS)
        if self.state in {"consumed", "superseded"}:
            return False
        return now_ms <= self.ended_ms + MINUTE_MS


@dataclass(slots=True)
class Model:
    tickets: dict[str, Modelled] = field(default_factory=dict)

    def newest(self, binding: str) -> Modelled | None:
        held = [one for one in self.tickets.values() if one.opening.binding == binding]
        return held[-1] if held else None

    def open(self, asked: Opening, now_ms: int) -> str | None:
        """The id that answers; None where there are too many."""
        newest = self.newest(asked.binding)
        if newest is not None:
            newest.look_at_the_clock(now_ms)
            if newest.answers(now_ms):
                return newest.opening.id
        rivals = [
            one
            for one in self.tickets.values()
            if one.state in {"pending", "approved"}
            and one.opening.subject == asked.subject
            and one.opening.policy_revision != asked.policy_revision
        ]
        pending = [one for one in self.tickets.values() if one.state == "pending"]
        if len([one for one in pending if one not in rivals]) >= 20:
            return None
        for one in rivals:
            one.look_at_the_clock(now_ms)
            if one.state in {"pending", "approved"}:
                one.end("superseded", now_ms)
        self.tickets[asked.id] = Modelled(asked)
        return asked.id


class Lives(RuleBasedStateMachine):
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp())
        self.number = 0
        self.now_ms = START_MS
        self.model = Model()
        self.open_journal()

    def run(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        return self.runner.run(work)

    def open_journal(self) -> None:
        opened = local_ticket_store(self.directory / str(self.number), get_log("test"))
        self.opened: AbstractAsyncContextManager[LocalTicketStore] = opened
        self.store = self.run(opened.__aenter__())

    @rule(
        target=ids,
        call=st.integers(0, 3),
        revision=st.sampled_from(["r1", "r2"]),
        minutes=st.integers(1, 60),
    )
    def ask(self, call: int, revision: str, minutes: int) -> str:
        asked = opening(
            at_ms=self.now_ms,
            decide_in_ms=minutes * MINUTE_MS,
            binding=f"b1:k:{call}:{revision}",
            subject=f"b1:s:{call}",
            policy_revision=revision,
        )
        expected = self.model.open(asked, self.now_ms)
        try:
            ticket = self.run(self.store.open(asked, now_ms=self.now_ms))
        except TooManyPending:
            assert expected is None
            return ""
        assert expected == ticket.id
        return ticket.id

    @rule(id=ids, uses=st.integers(1, 3), minutes=st.integers(1, 90))
    def approve(self, id: str, uses: int, minutes: int) -> None:
        if (held := self.model.tickets.get(id)) is None:
            return
        signed = approval(
            self.stored(id), at_ms=self.now_ms, uses=uses, execute_in_ms=minutes * MINUTE_MS
        )
        self.run(self.store.decide(TENANT, held.opening.id, signed, now_ms=self.now_ms))
        held.look_at_the_clock(self.now_ms)
        if held.state == "pending":
            held.state, held.granted = "approved", uses
            held.until_ms = self.now_ms + min(minutes, 60 if uses > 1 else minutes) * MINUTE_MS

    @rule(id=ids, verdict=st.sampled_from([Verdict.DENY, Verdict.REVOKE, Verdict.CANCEL]))
    def refuse(self, id: str, verdict: Verdict) -> None:
        if (held := self.model.tickets.get(id)) is None:
            return
        signed = refusal(self.stored(id), verdict)
        self.run(self.store.decide(TENANT, held.opening.id, signed, now_ms=self.now_ms))
        held.look_at_the_clock(self.now_ms)
        if held.state == "pending":
            held.end("cancelled" if verdict is Verdict.CANCEL else "denied", self.now_ms)
        elif held.state == "approved":
            held.end("revoked", self.now_ms)

    @rule(id=ids)
    def give_up(self, id: str) -> None:
        if (held := self.model.tickets.get(id)) is None:
            return
        self.run(self.store.cancel(TENANT, held.opening.id, agent=AGENT, now_ms=self.now_ms))
        held.look_at_the_clock(self.now_ms)
        if held.state == "pending":
            held.end("cancelled", self.now_ms)

    @rule(id=ids, at_once=st.integers(1, 4))
    def use(self, id: str, at_once: int) -> None:
        if (held := self.model.tickets.get(id)) is None:
            return
        before = held.uses
        held.look_at_the_clock(self.now_ms)
        if held.state == "approved":
            held.uses += min(at_once, held.granted - held.uses)
            if held.uses == held.granted:
                held.end("consumed", self.now_ms)
        if held.state == "expired" and self.stored(id).state == "pending":
            held.state = "pending"  # only asking and deciding look at that clock
        assert held.uses - before == self.run(self._take(held, at_once))

    async def _take(self, held: Modelled, at_once: int) -> int:
        opened = held.opening
        taken = await asyncio.gather(
            *(
                self.store.consume(TENANT, opened.id, binding=opened.binding, now_ms=self.now_ms)
                for _ in range(at_once)
            )
        )
        return len([one for one in taken if isinstance(one, Ticket)])

    @rule(keep=st.sampled_from(["r1", "r2"]))
    def change_policy(self, keep: str) -> None:
        self.run(self.store.supersede(TENANT, keep_revision=keep, now_ms=self.now_ms))
        for held in self.model.tickets.values():
            if held.opening.policy_revision != keep:
                held.look_at_the_clock(self.now_ms)
                if held.state in {"pending", "approved"}:
                    held.end("superseded", self.now_ms)

    @rule(minutes=st.integers(0, 40))
    def let_time_pass(self, minutes: int) -> None:
        self.now_ms += minutes * MINUTE_MS
        self.run(self.store.expire(now_ms=self.now_ms))
        for held in self.model.tickets.values():
            held.look_at_the_clock(self.now_ms)

    @rule()
    def crash(self) -> None:
        """The disk is what the next process finds; the old one goes on in a copy of its own."""
        old, self.number = self.number, self.number + 1
        shutil.copytree(self.directory / str(old), self.directory / str(self.number))
        self.run(self.opened.__aexit__(None, None, None))
        self.open_journal()

    @invariant()
    def both_tell_the_same(self) -> None:
        for known, held in self.model.tickets.items():
            ticket = self.stored(known)
            assert held.state == ticket.state
            assert held.uses <= max(held.granted, 0)
            if held.state == "approved":
                assert held.granted - held.uses == ticket.uses_left
                assert held.until_ms == ticket.execute_by_ms
            assert held.opening.decide_by_ms == ticket.decide_by_ms

    def stored(self, id: str) -> Ticket:
        ticket = self.run(self.store.get(TENANT, self.model.tickets[id].opening.id))
        assert ticket is not None
        return ticket

    def teardown(self) -> None:
        self.run(self.opened.__aexit__(None, None, None))
        self.runner.close()
        shutil.rmtree(self.directory)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
