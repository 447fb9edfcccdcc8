"""What the proxy takes of a bundle: bundles of before a field mean the safe value."""

import json
from typing import Any

import pytest

from services.authorizer import plane_state
from services.authorizer.kill_switch import Stops
from services.authorizer.revocations import Revocations
from services.authorizer.snapshots import Ended, proxy_part
from services.common.ids import ServerSlug, TenantId
from services.proxy.snapshot import Grants, Server, SnapshotInvalid, decode

TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
OLD = {"id": "1", "domain": "files", "transport": "http", "urls": ["https://a/"]}
SAID = {
    "grants": {"sampling": True, "elicitation_hosts": ["pay.example"], "extensions": ["a/b"]},
    "first_byte_s": 600,
    "share": "server",
    "headers": {"X-Region": "eu"},
    "ca": "secret://ca",
    "credential": {"kind": "client_credentials", "client_id": "me", "token_url": "https://t/"},
}


def through_the_authorizer(server: dict[str, Any]) -> Server:
    """As the bundle says it, as the authorizer passes it on, as the proxy reads it."""
    tenant = {"slug": "acme", "policy_revision": "r", "servers": {"files": server}}
    state = {"plane": {"id": "dp", "environment": "t"}, "serial": 1, "tenants": {TENANT: tenant}}
    parsed = plane_state.parse(json.dumps({"behavry": {"state": state}}).encode())
    ended = Ended(revocations=Revocations(), stops=Stops(frozenset()), now_s=0)
    return decode(proxy_part(parsed, "r", ended)).tenants[TENANT].servers[ServerSlug("files")]


def direct(server: dict[str, Any]) -> Server:
    tenant = {"slug": "acme", "status": "active", "servers": {"files": server}}
    raw = json.dumps({"tenants": {TENANT: tenant}}).encode()
    return decode(raw).tenants[TENANT].servers[ServerSlug("files")]


@pytest.mark.parametrize("read", [direct, through_the_authorizer])
def test_a_bundle_of_before_the_fields_means_the_safe_values(read: Any) -> None:
    server = read(OLD)

    assert Grants() == server.grants
    assert (True, (), False, False, ()) == (
        server.grants.elicitation_form, server.grants.elicitation_hosts, server.grants.sampling,
        server.grants.roots, server.grants.extensions,
    )  # fmt: skip
    assert (120, "agent", {}, "") == (
        server.first_byte_s, server.share, server.headers, server.ca,
    )  # fmt: skip


@pytest.mark.parametrize("read", [direct, through_the_authorizer])
def test_what_is_said_of_a_server_arrives(read: Any) -> None:
    server = read({**OLD, **SAID})

    assert Grants(sampling=True, elicitation_hosts=("pay.example",), extensions=("a/b",)) == (
        server.grants
    )
    assert (600, "server", {"X-Region": "eu"}, "secret://ca") == (
        server.first_byte_s, server.share, server.headers, server.ca,
    )  # fmt: skip
    assert "client_credentials" == server.credential.kind


@pytest.mark.parametrize("wrong", [{"first_byte_s": 601}, {"first_byte_s": 0}, {"share": "all"}])
def test_what_no_bundle_says_is_no_snapshot(wrong: dict[str, Any]) -> None:
    with pytest.raises(SnapshotInvalid):
        direct({**OLD, **wrong})
