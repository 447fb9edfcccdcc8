"""What stands still, from which source, and what does not although it is near."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.authorizer import plane_state
from services.authorizer.kill_file import KillFile, parse
from services.authorizer.kill_switch import (
    FLEET,
    Change,
    KillSwitch,
    Stops,
    Switch,
    of_bundle,
    reach,
    switch,
)
from services.authorizer.plane_state import Agent, PlaneState, Server, Tenant
from services.authorizer.revocations import Revocations
from services.authorizer.snapshots import Ended, proxy_part

TENANT = "0199d0d0-0000-7000-8000-000000000001"
OTHER = "0199d0d0-0000-7000-8000-000000000002"
AGENT = "0199d0d0-0000-7000-8000-00000000000a"
SECOND = "0199d0d0-0000-7000-8000-00000000000b"


def agent(cls: str) -> Agent:
    return Agent(name="a", type="service", cls=cls, status="active", roles=("reader",))


def tenant(slug: str, *stops: plane_state.Stop) -> Tenant:
    server = Server(id="x", domain="filesystem", transport="http")
    return Tenant(
        slug=slug,
        policy_revision="sha256:0",
        roles={"reader": ("filesystem:read",)},
        agents={AGENT: agent("bots"), SECOND: agent("people")},
        servers={"files": server, "mail": server},
        stops=stops,
    )


def state(*stops: plane_state.Stop) -> PlaneState:
    return PlaneState(
        plane=plane_state.Plane(id="dp", environment="test"),
        serial=1,
        tenants={TENANT: tenant("acme", *stops), OTHER: tenant("globex")},
    )


Call = tuple[str, str, str]
CALL: Call = (TENANT, AGENT, "files")
#: The twin that goes on: another tenant, another agent (and class), another server.
ELSEWHERE: Call = (OTHER, AGENT, "files")
OTHER_AGENT: Call = (TENANT, SECOND, "files")
OTHER_SERVER: Call = (TENANT, AGENT, "mail")

SCOPES: dict[str, tuple[Switch, tuple[Call, ...]]] = {
    "an agent": (
        Switch(scope="agent", tenant=TENANT, subject=AGENT),
        (ELSEWHERE, OTHER_AGENT),
    ),
    "an agent, wherever": (Switch(scope="agent", subject=AGENT), (OTHER_AGENT,)),
    "a class": (
        Switch(scope="class", tenant=TENANT, subject="bots"),
        (ELSEWHERE, OTHER_AGENT),
    ),
    "a class, wherever": (Switch(scope="class", subject="bots"), (OTHER_AGENT,)),
    "a server": (
        Switch(scope="server", tenant=TENANT, subject="files"),
        (ELSEWHERE, OTHER_SERVER),
    ),
    "a server, wherever": (Switch(scope="server", subject="files"), (OTHER_SERVER,)),
    "a tenant": (Switch(scope="tenant", tenant=TENANT), (ELSEWHERE,)),
    "a tenant by its slug": (Switch(scope="tenant", tenant="acme"), (ELSEWHERE,)),
    "the fleet": (FLEET, ()),
}


def stopped(stops: Stops, call: Call) -> bool:
    tenant_id, agent_id, server = call
    return stops.stopped(tenant_id, state().tenants.get(tenant_id), agent_id, server)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_switch_stops_what_it_names_and_nothing_beside_it(scope: str) -> None:
    one, innocent = SCOPES[scope]
    stops = Stops(frozenset({one}))

    assert stopped(stops, CALL)
    assert not any(stopped(stops, call) for call in innocent)


def test_nothing_on_stops_nobody() -> None:
    assert not any(stopped(Stops(), call) for call in (CALL, ELSEWHERE, OTHER_AGENT))


def test_the_fleet_stands_even_where_the_tenant_is_unknown() -> None:
    assert stopped(Stops(frozenset({FLEET})), ("nobody", AGENT, "files"))
    assert not stopped(Stops(frozenset({SCOPES["a class"][0]})), ("nobody", AGENT, "files"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("agent", TENANT, AGENT), Switch(scope="agent", tenant=TENANT, subject=AGENT)),
        (("tenant", TENANT, ""), Switch(scope="tenant", tenant=TENANT)),
        (("tenant", "", TENANT), Switch(scope="tenant", tenant=TENANT)),
        (("fleet", "", ""), FLEET),
        (("agent", TENANT, ""), Switch(scope="tenant", tenant=TENANT)),
        (("agent", "", ""), FLEET),
        (("continent", TENANT, "x"), Switch(scope="tenant", tenant=TENANT)),
        (("continent", "", "x"), FLEET),
        (("fleet", TENANT, ""), Switch(scope="tenant", tenant=TENANT)),
    ],
)
def test_a_stop_that_cannot_be_understood_stops_more_and_never_less(
    words: tuple[str, str, str], expected: Switch
) -> None:
    assert expected == switch(*words)


def test_sources_are_ored_and_each_change_is_told_once_with_who_said_it() -> None:
    heard: list[list[Change]] = []
    kill = KillSwitch()
    kill.listen(heard.append)
    one, other = SCOPES["an agent"][0], SCOPES["a server"][0]

    kill.set("link", {one})
    kill.set("file", {one, other})
    kill.set("link", ())  # the file still holds it
    assert frozenset({one, other}) == kill.stops.switches
    kill.set("file", ())

    assert [
        [Change(switch=one, on=True, source="link")],
        [Change(switch=other, on=True, source="file")],
        [
            Change(switch=one, on=False, source="file"),
            Change(switch=other, on=False, source="file"),
        ],
    ] == heard
    assert not kill.stops.any


def test_a_switch_that_moves_from_the_link_into_the_bundle_never_goes_off() -> None:
    heard: list[list[Change]] = []
    kill = KillSwitch()
    one = SCOPES["an agent"][0]
    kill.set("link", {one})
    kill.listen(heard.append)

    kill.set_all({"link": (), "bundle": {one}})

    assert [] == heard
    assert kill.stops.switches == {one}


def test_a_tenants_part_of_the_bundle_stops_that_tenant_and_no_other() -> None:
    bundled = state(plane_state.Stop(scope="agent", subject=AGENT), plane_state.Stop(scope="fleet"))

    stops = Stops(frozenset(of_bundle(bundled)))

    assert stopped(stops, CALL)
    assert stopped(stops, OTHER_SERVER)
    assert not stopped(stops, ELSEWHERE)


def test_the_planes_part_of_the_bundle_stops_everybody() -> None:
    bundled = msgspec.structs.replace(state(), stops=(plane_state.Stop(scope="fleet"),))

    assert stopped(Stops(frozenset(of_bundle(bundled))), ELSEWHERE)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (SCOPES["an agent"][0], [(TENANT, (AGENT,))]),
        (SCOPES["an agent, wherever"][0], [(TENANT, (AGENT,))]),
        (SCOPES["a class"][0], [(TENANT, (AGENT,))]),
        (SCOPES["a class, wherever"][0], [(TENANT, (AGENT,)), (OTHER, (AGENT,))]),
        (SCOPES["a server"][0], [(TENANT, ())]),
        (SCOPES["a tenant"][0], [(TENANT, ())]),
        (SCOPES["a tenant by its slug"][0], [(TENANT, ())]),
        (FLEET, [("", ())]),
    ],
)
def test_who_has_to_ask_again_is_named(
    one: Switch, expected: list[tuple[str, tuple[str, ...]]]
) -> None:
    assert expected == reach(one, state())


def shown(one: Switch) -> dict[str, Any]:
    ended = Ended(revocations=Revocations(), stops=Stops(frozenset({one})), now_s=0)
    part = json.loads(proxy_part(state(), "r", ended))
    tenants: dict[str, Any] = part["tenants"]
    return tenants


def test_to_proxies_what_is_stopped_looks_inactive_and_the_rest_as_ever() -> None:
    by_agent = shown(SCOPES["an agent"][0])
    by_class = shown(SCOPES["a class"][0])
    by_server = shown(SCOPES["a server"][0])
    by_tenant = shown(SCOPES["a tenant"][0])

    for tenants in (by_agent, by_class):
        statuses = {id_: one["status"] for id_, one in tenants[TENANT]["agents"].items()}
        assert {AGENT: "suspended", SECOND: "active"} == statuses
        assert "active" == tenants[OTHER]["agents"][AGENT]["status"]
    trusts = {slug: one["trust"] for slug, one in by_server[TENANT]["servers"].items()}
    assert {"files": "blocked", "mail": "untrusted"} == trusts
    assert ("suspended", "active") == (by_tenant[TENANT]["status"], by_tenant[OTHER]["status"])
    assert all(one["status"] == "suspended" for one in shown(FLEET).values())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", {FLEET}),
        (b"\n", {FLEET}),
        (b"off", {FLEET}),
        (b"[]", {FLEET}),
        (b"{}", {FLEET}),
        (b'{"version":2,"stops":[]}', {FLEET}),
        (b'{"version":1}', {FLEET}),
        (b'{"version":1,"stops":[{"scope":"planet"}]}', {FLEET}),
        (b'{"version":1,"stops":[{"scope":"agent","tenant":"","subject":""}]}', {FLEET}),
        (b'{"version":1,"stops":[{"scope":"agent","subject":7}]}', {FLEET}),
        (b"\xff\xfe", {FLEET}),
        (b"[" * 100_000, {FLEET}),
        (b'{"version":1,"stops":[]}', set()),
        (
            b'{"version":1,"stops":[{"scope":"agent","subject":"a","reason":"r","at":"today"}]}',
            {Switch(scope="agent", subject="a")},
        ),
    ],
)
def test_only_a_list_that_says_so_stops_less_than_the_fleet(
    content: bytes, expected: set[Switch]
) -> None:
    assert expected == parse(content)


class Told(list[frozenset[Switch]]):
    def __call__(self, switches: Any) -> None:
        self.append(frozenset(switches))


def test_a_file_is_heard_when_it_comes_changes_and_goes(tmp_path: Path) -> None:
    told, path = Told(), tmp_path / "kill"
    file = KillFile(path=path, tell=told)

    file.look()
    path.write_bytes(b"")
    file.look()
    file.look()
    path.write_bytes(b'{"version":1,"stops":[]}')
    file.look()
    path.unlink()
    file.look()

    assert [frozenset({FLEET}), frozenset(), frozenset()] == told


def _directory(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _huge(path: Path) -> None:
    path.write_bytes(b'{"version":1,"stops":[]}' + b" " * (1 << 20))


def _parent_gone(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize("make", [_directory, os.mkfifo, _dangling, _huge, _parent_gone])
def test_what_cannot_be_read_stops_the_fleet(tmp_path: Path, make: Any) -> None:
    told, path = Told(), tmp_path / "state" / "kill"
    path.parent.mkdir()
    make(path)

    KillFile(path=path, tell=told).look()

    assert [frozenset({FLEET})] == told


def test_a_bundle_of_before_there_were_stops_still_parses() -> None:
    old = {
        "plane": {"id": "dp", "environment": "test"},
        "serial": 1,
        "tenants": {
            TENANT: {
                "slug": "acme",
                "policy_revision": "sha256:0",
                "agents": {AGENT: {"name": "a", "type": "t", "class": "bots", "status": "active"}},
            }
        },
    }

    parsed = plane_state.parse(json.dumps({"behavry": {"state": old}}).encode())

    one = parsed.tenants[TENANT]
    assert ((), (), {}) == (parsed.stops, one.stops, one.restricted_sessions)
    assert None is one.agents[AGENT].restriction
    assert (300, 100, 6000) == (
        one.limits.agent_per_minute,
        one.limits.agent_burst,
        one.limits.tenant_per_minute,
    )
    assert (86_400, 300, 900) == (
        one.escalations.decide_seconds.low,
        one.escalations.decide_seconds.critical,
        one.escalations.execute_seconds,
    )
