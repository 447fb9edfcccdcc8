"""What a worker and the host of stdio servers tell each other beside MCP: encoder and decoder.

With each request goes who asks and of which server; of a child that cannot answer, the reason and
whether its tool ran. Both know each other by a socket that nobody else can open, so none of it is
proven again.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.proxy.backends.upstream import UpstreamFailed
from services.proxy.calls import Caller, Visit
from services.proxy.snapshot import Agent, Server, Tenant

VISIT: Final = b"behavry-visit"
FAILED: Final = "behavry-failed"
_RAN: Final[dict[bool | None, str]] = {True: "yes", False: "no", None: "unknown"}
_KNOWN: Final = {said: ran for ran, said in _RAN.items()}


class Garbled(ValueError):
    """Not from one of ours."""


class _Visit(msgspec.Struct, frozen=True, array_like=True):
    tenant: TenantId
    agent: AgentId
    slug: ServerSlug
    stdio: str
    share: Literal["agent", "server"]
    era: str


def visit_header(visit: Visit) -> bytes:
    server = visit.server
    caller = visit.caller
    made = _Visit(
        caller.tenant, caller.agent, visit.slug, server.stdio or "", server.share, server.era
    )
    return urlsafe_b64encode(msgspec.json.encode(made))


def read_visit(value: bytes) -> Visit:
    """As much of it as a child depends on. Raises Garbled."""
    try:
        told = msgspec.json.decode(urlsafe_b64decode(value), type=_Visit)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise Garbled from None
    return Visit(
        caller=Caller(
            tenant=told.tenant,
            agent=told.agent,
            session=SessionId(""),
            issued_at_s=0,
            expires_at_s=0,
            audiences=frozenset(),
        ),
        tenant=Tenant(slug="", status=""),
        agent=Agent(name="", status=""),
        slug=told.slug,
        server=Server(
            id="", domain="", transport="stdio", stdio=told.stdio, share=told.share, era=told.era
        ),
        revision="",
        client_ip="",
    )


def failure_header(failure: UpstreamFailed) -> bytes:
    return f"{failure.reason} {_RAN[failure.ran]}".encode("ascii")


def check(headers: Mapping[str, str]) -> None:
    """Raises UpstreamFailed where the host says that there is no answer to use."""
    said = headers.get(FAILED)
    if said is not None:
        reason, _, ran = said.partition(" ")
        raise UpstreamFailed(reason, ran=_KNOWN.get(ran))


def session_id(told: str) -> str:
    """The capabilities by which a child is known, as a header can carry them."""
    return urlsafe_b64encode(told.encode()).decode("ascii")


def read_session_id(value: bytes) -> str:
    """Raises Garbled."""
    try:
        return urlsafe_b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Garbled from None
