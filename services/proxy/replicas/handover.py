"""Requests of agents that reach one proxy and concern what another one holds: carried to it whole,
and served there as if they had come to it.

Decides as whom: the caller is who proved to be it where the request came in, and what it may do is
what the holder's own snapshot says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from services.common.ids import ServerSlug
from services.proxy import local, messages
from services.proxy.answers import Answer, Rejection
from services.proxy.asking.nobody import Nobody as Unheard
from services.proxy.calls import Caller, Visit
from services.proxy.eras import Route
from services.proxy.governed import Incoming
from services.proxy.local import Refused
from services.proxy.messages import Kind, Message
from services.proxy.replicas.post import Nobody, Post
from services.proxy.sessions import Session
from services.proxy.snapshot import Snapshot

#: How long a holder may take: a poll that begins a run waits 2 s for it.
PATIENCE_S: Final = 10.0

What = Literal["answer", "task"]
#: Serves it where it is held. None: it is not held there any more.
Serve = Callable[[Incoming], Awaitable[Answer | None]]


class _Handed(Struct, frozen=True, array_like=True):
    caller: Caller
    slug: ServerSlug
    client_ip: str
    requester: str
    delegation: bool
    workflow: bool
    #: A JSON-RPC message, as it would have been sent.
    message: bytes
    route: Route
    session: Session | None


class _Given(Struct, frozen=True, array_like=True):
    """An answer, a refusal, or neither."""

    answer: Answer | None = None
    refused: Rejection | None = None


_handed: Final = msgspec.msgpack.Decoder(_Handed)
_given: Final = msgspec.msgpack.Decoder(_Given)


class Handover:
    """One per process."""

    def __init__(self, post: Post, snapshot: Callable[[], Snapshot]) -> None:
        self._post = post
        self._snapshot = snapshot

    async def to(self, holder: str, what: What, incoming: Incoming) -> Answer | None:
        """None: nobody holds it any more. Raises Refused as the holder does, and NoWord."""
        try:
            said = await self._post.ask(holder, what, _packed(incoming), patience_s=PATIENCE_S)
        except Nobody:
            return None
        given = _given.decode(said)
        if given.refused is not None:
            raise Refused(given.refused)
        return given.answer

    def serving(self, what: What, serve: Serve) -> None:
        """From here on, requests that come this way are served like that."""

        async def answer(body: bytes) -> bytes:
            try:
                given = _Given(await serve(self._unpacked(_handed.decode(body))))
            except Refused as refused:
                given = _Given(None, refused.why)
            return msgspec.msgpack.encode(given)

        self._post.answers(what, answer)

    def _unpacked(self, handed: _Handed) -> Incoming:
        """Raises Refused where its rights ended meanwhile."""
        snapshot, caller = self._snapshot(), handed.caller
        tenant = snapshot.tenants.get(caller.tenant)
        agent = tenant.agents.get(caller.agent) if tenant else None
        server = tenant.servers.get(handed.slug) if tenant else None
        if tenant is None or agent is None or server is None or handed.slug not in agent.servers:
            raise Refused(local.failed("unknown_server"))
        visit = Visit(
            caller=caller,
            tenant=tenant,
            agent=agent,
            slug=handed.slug,
            server=server,
            revision=snapshot.revision,
            client_ip=handed.client_ip,
            requester_id=handed.requester,
            delegation=handed.delegation,
            workflow=handed.workflow,
        )
        if not visit.let_in or caller.session in tenant.revoked_sessions:
            raise Refused(local.failed("agent_suspended"))
        return Incoming(
            visit=visit,
            message=messages.parse(handed.message),
            route=handed.route,
            session=handed.session,
            headers={},
            stream=Unheard(),
        )


def _packed(incoming: Incoming) -> bytes:
    visit = incoming.visit
    handed = _Handed(
        visit.caller,
        visit.slug,
        visit.client_ip,
        visit.requester_id,
        visit.delegation,
        visit.workflow,
        _written(incoming.message),
        incoming.route,
        incoming.session,
    )
    return msgspec.msgpack.encode(handed)


def _written(message: Message) -> bytes:
    made: dict[str, Any] = {"jsonrpc": "2.0"}
    if message.kind is Kind.RESPONSE:
        made["id"] = message.id
        if message.error is not None:
            made["error"] = message.error
        else:
            made["result"] = message.result
        return messages.encode(made)
    if message.kind is Kind.REQUEST:
        made["id"] = message.id
    made["method"] = message.method
    if message.has_params:
        made["params"] = message.params
    return messages.encode(made)
