"""What workers and the host of stdio servers tell each other beside MCP."""

from typing import Any

import pytest

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.proxy.backends import host_wire
from services.proxy.backends.upstream import UpstreamFailed
from services.proxy.calls import Caller, Visit
from services.proxy.snapshot import Agent, Server, Tenant


def visit(**server: Any) -> Visit:
    caller = Caller(
        tenant=TenantId("t"),
        agent=AgentId("a"),
        session=SessionId("secret-session"),
        issued_at_s=1,
        expires_at_s=2,
        audiences=frozenset({"x"}),
    )
    entry = {"id": "i", "domain": "d", "transport": "stdio", "stdio": "git", **server}
    return Visit(
        caller=caller,
        tenant=Tenant(slug="t", status="active"),
        agent=Agent(name="n", status="active"),
        slug=ServerSlug("notes"),
        server=Server(**entry),
        revision="1",
        client_ip="192.0.2.1",
    )


@pytest.mark.parametrize("server", [{}, {"share": "server"}, {"era": "legacy"}, {"stdio": None}])
def test_whose_child_it_is_arrives_and_nothing_else_leaves(server: dict[str, Any]) -> None:
    told = visit(**server)

    heard = host_wire.read_visit(host_wire.visit_header(told))

    assert (told.caller.tenant, told.caller.agent) == (heard.caller.tenant, heard.caller.agent)
    assert told.slug == heard.slug
    for name in ("share", "era"):
        assert getattr(told.server, name) == getattr(heard.server, name)
    assert (told.server.stdio or "") == heard.server.stdio
    assert ("", "") == (heard.caller.session, heard.client_ip)


@pytest.mark.parametrize("value", [b"", b"e30=", b"%", b"bm8=", b"W10="])
def test_what_is_no_visit_is_refused(value: bytes) -> None:
    with pytest.raises(host_wire.Garbled):
        host_wire.read_visit(value)


@pytest.mark.parametrize("ran", [True, False, None])
def test_a_failure_arrives_with_what_is_known_of_the_tool(ran: bool | None) -> None:
    header = host_wire.failure_header(UpstreamFailed("capacity", ran=ran)).decode()

    with pytest.raises(UpstreamFailed, match="capacity") as failed:
        host_wire.check({host_wire.FAILED: header})

    assert failed.value.ran is ran
    host_wire.check({"content-type": "application/json"})


def test_a_sessions_id_is_fit_for_a_header() -> None:
    told = '{"elicitation":{"form":{}},"roots":{"x":"ünïcode \\n"}}'

    sent = host_wire.session_id(told)

    assert set(sent.encode()) <= set(range(0x21, 0x7F))
    assert told == host_wire.read_session_id(sent.encode())
    with pytest.raises(host_wire.Garbled):
        host_wire.read_session_id(b"e3")
