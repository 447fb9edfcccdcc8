"""Requests that the proxy answers without asking for a decision (mcp.md 4, class cheap).

Lifecycle is made here. `tools/list` is the agent's view, prompts and templates are whole lists that
all agents share, resources are relayed page by page with cursors of our own. None of these runs
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from services.common.errors import BehavryError
from services.proxy import answers, bridge, completing, messages
from services.proxy.answers import Answer, Rejection
from services.proxy.asking import grants
from services.proxy.backends.upstream import Backend, Request, Session, UpstreamFailed
from services.proxy.bridge import Untranslatable
from services.proxy.calls import Visit
from services.proxy.catalog import Catalog
from services.proxy.completing import Completing
from services.proxy.eras import Route
from services.proxy.lists import WHOLE
from services.proxy.messages import INVALID_PARAMS, METHOD_NOT_FOUND, Message
from services.proxy.pages import LIST_S, NoSuchList
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session as AgentSession
from services.proxy.sessions import Sessions, TooMany

RESOURCES: Final = "resources/list"
SET_LEVEL: Final = "logging/setLevel"
_BOTH: Final = frozenset({"tools/list", RESOURCES, completing.METHOD}) | WHOLE
_MODERN: Final = _BOTH | {"server/discover"}
_LEGACY: Final = _BOTH | {"initialize", "ping", SET_LEVEL}
SESSION_HEADER: Final = b"mcp-session-id"


class Refused(Exception):
    """The request ends here, and the record says why."""

    def __init__(self, why: Rejection) -> None:
        super().__init__(why.reason)
        self.why = why


@dataclass(frozen=True, slots=True)
class Local:
    catalog: Catalog
    sessions: Sessions
    seals: Seals
    completing: Completing
    backend: Callable[[Visit], Backend]

    def knows(self, method: str, route: Route) -> bool:
        return method in (_MODERN if route.modern else _LEGACY)

    async def answer(
        self, visit: Visit, message: Message, route: Route, session: AgentSession | None
    ) -> Answer:
        """Raises Refused."""
        if message.method == "ping":  # never goes upstream
            return answers.result(message.id, b"{}")
        try:
            backend = self.backend(visit)
            match message.method:
                case "initialize":
                    return await self._initialize(visit, message, route, backend)
                case "server/discover":
                    facts = await backend.facts(visit)
                    made = bridge.discovered(facts, visit.server.grants.extensions)
                    return answers.result(message.id, messages.encode(made))
                case "tools/list":
                    return await self._tools(visit, message, route, backend)
                case "resources/list":
                    return await self._page(visit, message, route, backend, session)
                case completing.METHOD:
                    if not completing.well_formed(message.params):
                        raise Refused(answers.bad_params("ref and argument are needed"))
                    upstream = upstream_session(session)
                    return await self.completing.answer(visit, message, route, backend, upstream)
                case "logging/setLevel":
                    return await self._set_level(visit, message, route, backend, session)
                case _:
                    return await self._whole(visit, message, route, backend)
        except UpstreamFailed as failure:
            raise Refused(failed(failure.reason)) from None
        except Untranslatable as odd:
            raise Refused(failed(odd.reason)) from None

    async def _initialize(
        self, visit: Visit, message: Message, route: Route, backend: Backend
    ) -> Answer:
        try:
            self.sessions.admit(visit)
        except TooMany:
            raise Refused(
                Rejection(
                    status=503,
                    code=answers.CODES["capacity"],
                    message="too many sessions",
                    reason="capacity",
                    headers=((b"retry-after", b"60"),),
                )
            ) from None
        facts = await backend.facts(visit)
        declared = grants.kept(message.params.get("capabilities"), route.version)
        upstream = await backend.open(visit, grants.granted(declared, visit.server.grants))
        sealed = self.sessions.open(visit, route.version, upstream, declared)
        encoded = messages.encode(bridge.initialized(facts, route.version))
        answer = answers.result(message.id, encoded)
        headers = (*answer.headers, (SESSION_HEADER, sealed.encode("ascii")))
        return Answer(answer.status, answer.body, headers)

    async def _tools(
        self, visit: Visit, message: Message, route: Route, backend: Backend
    ) -> Answer:
        if message.params.get("cursor") is not None:
            raise Refused(bad_cursor())  # the view is one page: no cursor was ever given
        listing = await self.catalog.listing(visit, backend)
        try:
            view = await self.catalog.view(visit, listing)
        except BehavryError:
            raise Refused(failed("policy_unavailable")) from None
        return answers.result(message.id, self.catalog.result(listing, view, modern=route.modern))

    async def _whole(
        self, visit: Visit, message: Message, route: Route, backend: Backend
    ) -> Answer:
        if message.params.get("cursor") is not None:
            raise Refused(bad_cursor())  # it is one page: no cursor was ever given
        try:
            encoded = await self.catalog.lists.result(
                visit, backend, message.method, modern=route.modern
            )
        except NoSuchList as refused:
            return relay_error(message, refused.error, METHOD_NOT_FOUND)
        return answers.result(message.id, encoded)

    async def _set_level(
        self,
        visit: Visit,
        message: Message,
        route: Route,
        backend: Backend,
        session: AgentSession | None,
    ) -> Answer:
        """A legacy agent's. Modern servers are told with each request."""
        level = message.params.get("level")
        if session is None or type(level) is not str or not bridge.is_level(level):
            raise Refused(answers.bad_params("unknown level"))
        facts = await backend.facts(visit)
        if type(facts.capabilities.get("logging")) is not dict:
            raise Refused(not_found(message, route))
        if not facts.modern:
            request = Request(method=SET_LEVEL, params={"level": level}, timeout_s=LIST_S)
            reply = await backend.ask(visit, request, upstream_session(session))
            if reply.result is None:
                return relay_error(message, reply.error or {}, METHOD_NOT_FOUND)
        await self.sessions.set_level(visit, session, level)
        return answers.result(message.id, b"{}")

    async def _page(
        self,
        visit: Visit,
        message: Message,
        route: Route,
        backend: Backend,
        session: AgentSession | None,
    ) -> Answer:
        facts = await backend.facts(visit)
        holder = (visit.caller.tenant, visit.caller.agent, visit.slug, message.method)
        given = message.params.get("cursor")
        decided: dict[str, Any] = {}  # nobody is asked about a list: the agent says nothing with it
        if given is not None:
            try:
                decided["cursor"] = self.seals.open("cursor", holder, str(given)).decode()
            except (Unsealed, ValueError):
                raise Refused(bad_cursor()) from None
        params = bridge.outgoing(message.params, facts, decided=decided)
        request = Request(method=message.method, params=params, timeout_s=LIST_S)
        reply = await backend.ask(visit, request, upstream_session(session))
        if reply.result is None:
            return relay_error(message, reply.error or {}, METHOD_NOT_FOUND)
        found = bridge.result(reply.result, message.method, facts, to_modern=route.modern)
        listed = found.get("resources")
        if type(listed) is list:
            found["resources"] = [bridge.unmarked(one) for one in listed if type(one) is dict]
        if type(found.get("nextCursor")) is str:
            found["nextCursor"] = self.seals.seal("cursor", holder, found["nextCursor"].encode())
        return answers.result(message.id, messages.encode(found))


def upstream_session(session: AgentSession | None) -> Session | None:
    """The tool server's own session that a legacy agent's session stands for."""
    if session is None or not session.upstream_version:
        return None
    return Session(session.upstream, session.upstream_version, session.upstream_url)


def relay_error(message: Message, error: dict[str, Any], code: int) -> Answer:
    """A tool server's error, with its text and data."""
    told = answers.theirs(error, code)
    return answers.error(message.id, told["code"], told["message"], data=told.get("data"))


def failed(reason: str) -> Rejection:
    """The upstream or a decision is not to be had."""
    status = 404 if reason == "unknown_session" else 200
    code = answers.CODES.get(reason, answers.POLICY)
    data = {"reason": reason, "retryable": reason in answers.RETRYABLE}
    return Rejection(status=status, code=code, message=reason, reason=reason, data=data)


def bad_cursor() -> Rejection:
    return Rejection(
        status=200, code=INVALID_PARAMS, message="Invalid cursor", reason="invalid_params"
    )


def not_found(message: Message, route: Route) -> Rejection:
    """Methods that nobody knows, that were removed, or that this version does not relay yet."""
    return Rejection(
        status=404 if route.modern else 200,
        code=METHOD_NOT_FOUND,
        message=f"Method not found: {message.method}",
        reason="unknown_method",
    )
