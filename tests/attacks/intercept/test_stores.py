"""What an agent tries with the tickets themselves: to be forgotten, to hide, to fill the store; and
what a hurried operator writes. Each attack has an innocent twin.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from services.authorizer import envelope
from services.authorizer.kill_file import parse
from services.authorizer.kill_switch import Stops
from services.authorizer.plane_state import Agent, Server, Tenant
from services.authorizer.shown_features import MAX_FEATURES_BYTES, shown
from services.authorizer.tickets.ticket import (
    KEPT_MAX,
    State,
    Ticket,
    forgotten,
    opened,
)
from services.cli.output import as_json
from services.proxy import features
from tests.fakes.envelopes import example
from tests.fakes.tickets import HOUR_MS, START_MS, another

TENANT_ID = "0199d0d0-0000-7000-8000-000000000001"
AGENT_ID = "0199d0d0-0000-7000-8000-00000000000a"


def ended(state: State, at_ms: int) -> Ticket:
    return msgspec.structs.replace(
        opened(another()), state=state, changed_at_ms=at_ms, kept_version=0, recorded_version=0
    )


def test_asking_and_giving_up_does_not_make_a_denial_forgotten() -> None:
    denied = ended(State.DENIED, START_MS)
    given_up = [ended(State.CANCELLED, START_MS + 1 + n) for n in range(KEPT_MAX)]
    later = START_MS + HOUR_MS // 2

    assert [given_up[0]] == forgotten([denied, *given_up], later)
    # The twin: once its time is over a denial goes like any other.
    assert [denied] == forgotten([denied, *given_up], START_MS + HOUR_MS + 1)


@pytest.mark.parametrize("letter", ["a", "\U0001f600", "\x01"])
def test_many_targets_neither_fill_the_inbox_nor_hide_there(letter: str) -> None:
    paths = [f"/srv/{number}/" + letter * 900 for number in range(64)]
    derived = features.derive({"paths": paths}, 0)
    decoded = msgspec.json.decode(derived.encoded, type=envelope.Features)
    told = json.loads(shown(decoded))

    assert MAX_FEATURES_BYTES < len(derived.encoded)
    assert len(shown(decoded)) <= MAX_FEATURES_BYTES
    assert (True, derived.resource) == (told["overflow"], told["paths"][0]["value"])


def test_what_fits_is_told_whole() -> None:
    decoded = msgspec.convert(example()["features"], envelope.Features)

    assert example()["features"] == json.loads(shown(decoded))


def test_what_an_agent_wrote_does_not_drive_the_terminal_of_who_decides() -> None:
    written = {"tool": "a\x9b2J\u202eb\x1b[0m\U000e0001", "resource": "/srv/caf\u00e9\n"}
    shown_as = as_json([written], indent=2)

    assert [written] == json.loads(shown_as)
    assert all(one.isprintable() for one in shown_as.replace("\n", ""))
    assert "caf\u00e9" in shown_as  # the twin: letters stay letters


@pytest.mark.parametrize(
    ("scope", "subject"), [("agent", AGENT_ID), ("class", "bots"), ("server", "files")]
)
def test_a_stop_written_by_hand_with_a_tenants_slug_stops(scope: str, subject: str) -> None:
    tenant = Tenant(
        slug="acme",
        policy_revision="sha256:0",
        agents={AGENT_ID: Agent(name="a", type="service", cls="bots", status="active")},
        servers={"files": Server(id="x", domain="filesystem", transport="http")},
    )
    for named in ("acme", TENANT_ID, ""):
        stop = {"scope": scope, "tenant": named, "subject": subject}
        stops = Stops(parse(json.dumps({"version": 1, "stops": [stop]}).encode()))
        assert stops.stopped(TENANT_ID, tenant, AGENT_ID, "files")

    other = {"scope": scope, "tenant": "acme", "subject": "somebody-else"}
    stops = Stops(parse(json.dumps({"version": 1, "stops": [other]}).encode()))
    assert not stops.stopped(TENANT_ID, tenant, AGENT_ID, "files")
